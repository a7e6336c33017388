"""timm-style factories of the variants, one per row of :mod:`graftwork_spin.variants`.

Example:
    >>> from graftwork_spin.models import convmixer_spin
    >>> model = convmixer_spin(dim=64, depth=8, patch_size=4, num_classes=10)

Each takes ``pretrained`` (False: no weights are published) and every argument of its class. They need no
registration; ``import graftwork.timm`` makes them known to ``timm.create_model``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from timm.models import build_model_with_cfg, get_pretrained_cfg, resolve_pretrained_cfg
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor, nn

from graftwork_spin.checkpoint import own_layout
from graftwork_spin.convmixer import SpinConvMixer
from graftwork_spin.convnext import SpinConvNeXt
from graftwork_spin.network import SharedNetwork
from graftwork_spin.variants import CFGS, VARIANTS, Variant
from graftwork_spin.vit import SpinVisionTransformer


def _convmixer_filter(state_dict: Mapping[str, Any], model: SharedNetwork) -> dict[str, Tensor]:
    return own_layout(state_dict, model.sharing.mapping)


_CLASSES: dict[str, type[SharedNetwork]] = {
    "convmixer": SpinConvMixer,
    "deit": SpinVisionTransformer,
    "convnext": SpinConvNeXt,
}
_FILTERS: dict[str, Callable[..., dict[str, Tensor]] | None] = {
    "convmixer": _convmixer_filter,
    "deit": partial(checkpoint_filter_fn, adapt_layer_scale=True),
    "convnext": None,
}


def _create(variant: Variant, pretrained: bool, **kwargs: Any) -> nn.Module:
    cfg = kwargs.pop("pretrained_cfg", None)
    if not cfg and get_pretrained_cfg(variant.name, allow_unregistered=True) is None:
        cfg = {"architecture": variant.name, "tag": "untrained", **CFGS[variant.family]}
    if pretrained:
        overlay = kwargs.get("pretrained_cfg_overlay")
        resolved = resolve_pretrained_cfg(variant.name, pretrained_cfg=cfg, pretrained_cfg_overlay=overlay)
        if not (resolved.has_weights or resolved.state_dict):
            raise RuntimeError(
                f"no pretrained weights are published for {variant.name}: the authors' repository holds "
                "git-LFS pointers only. Build it with pretrained=False, or name a checkpoint: "
                "pretrained_cfg_overlay=dict(file='weights.safetensors')."
            )
    return build_model_with_cfg(
        _CLASSES[variant.family],
        variant.name,
        pretrained,
        pretrained_cfg=cfg,
        pretrained_filter_fn=_FILTERS[variant.family],
        feature_cfg={"out_indices": kwargs.pop("out_indices", 3), "feature_cls": "getter"},
        **{**variant.args, **kwargs},
    )


def _factory(variant: Variant) -> Callable[..., nn.Module]:
    def factory(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return _create(variant, pretrained, **kwargs)

    factory.__name__ = factory.__qualname__ = variant.name
    factory.__doc__ = f"{variant.summary}."
    return factory


__all__ = [variant.name for variant in VARIANTS]
globals().update({variant.name: _factory(variant) for variant in VARIANTS})
