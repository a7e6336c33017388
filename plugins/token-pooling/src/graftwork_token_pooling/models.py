"""timm's entry points of the named variants, such as ``deit_small_patch16_224_tp_r70``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from timm.models import build_model_with_cfg
from timm.models.vision_transformer import checkpoint_filter_fn

from graftwork_token_pooling.variants import BASES, SCHEDULES
from graftwork_token_pooling.vit import TokenPoolingVisionTransformer

__all__ = [f"{base}_tp_{schedule}" for base in BASES for schedule in SCHEDULES]


def _factory(base: str, schedule: str) -> Callable[..., TokenPoolingVisionTransformer]:
    name = f"{base}_tp_{schedule}"

    def factory(pretrained: bool = False, **kwargs: Any) -> TokenPoolingVisionTransformer:
        out_indices = kwargs.pop("out_indices", 3)
        model: TokenPoolingVisionTransformer = build_model_with_cfg(
            TokenPoolingVisionTransformer,
            name,
            pretrained,
            pretrained_filter_fn=partial(checkpoint_filter_fn, adapt_layer_scale=base.startswith("deit")),
            feature_cfg={"out_indices": out_indices, "feature_cls": "getter"},
            **{**BASES[base].sizes, "schedule": schedule, **kwargs},
        )
        return model

    factory.__name__ = factory.__qualname__ = name
    factory.__doc__ = f"{BASES[base].label} at 224 pixels with Token Pooling: {SCHEDULES[schedule]}."
    return factory


globals().update(
    {f"{base}_tp_{schedule}": _factory(base, schedule) for base in BASES for schedule in SCHEDULES}
)
