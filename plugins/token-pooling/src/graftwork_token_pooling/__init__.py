"""Token Pooling: vision transformers that keep accuracy with fewer tokens (arXiv 2110.03860), for timm.

Example:
    >>> import timm, graftwork_token_pooling as tp
    >>> model = tp.apply(timm.create_model("deit_small_patch16_224"), schedule="r70")
    >>> round(tp.cost_of(model).gmacs, 3)
    2.904

Importing this package registers nothing with timm; ``import graftwork.timm`` does.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graftwork_token_pooling.blocks import POSITIONS, PoolingOptions
    from graftwork_token_pooling.clustering import (
        INITS,
        k_means,
        k_medoids,
        reconstruction_error,
        weighted_means,
    )
    from graftwork_token_pooling.cost import Cost
    from graftwork_token_pooling.patching import apply, cost_of, remove, schedule_of
    from graftwork_token_pooling.pooling import METHODS, token_pool, token_pool_with_assignment, unpool
    from graftwork_token_pooling.schedule import Schedule, ScheduleError
    from graftwork_token_pooling.vit import (
        TokenPoolingVisionTransformer,
        TokenPoolingVisionTransformerDistilled,
    )

_HOME = {
    "INITS": "clustering",
    "METHODS": "pooling",
    "POSITIONS": "blocks",
    "Cost": "cost",
    "PoolingOptions": "blocks",
    "Schedule": "schedule",
    "ScheduleError": "schedule",
    "TokenPoolingVisionTransformer": "vit",
    "TokenPoolingVisionTransformerDistilled": "vit",
    "apply": "patching",
    "cost_of": "patching",
    "k_means": "clustering",
    "k_medoids": "clustering",
    "reconstruction_error": "clustering",
    "remove": "patching",
    "schedule_of": "patching",
    "token_pool": "pooling",
    "token_pool_with_assignment": "pooling",
    "unpool": "pooling",
    "weighted_means": "clustering",
}

__all__ = [
    "INITS",
    "METHODS",
    "POSITIONS",
    "Cost",
    "PoolingOptions",
    "Schedule",
    "ScheduleError",
    "TokenPoolingVisionTransformer",
    "TokenPoolingVisionTransformerDistilled",
    "apply",
    "cost_of",
    "k_means",
    "k_medoids",
    "reconstruction_error",
    "remove",
    "schedule_of",
    "token_pool",
    "token_pool_with_assignment",
    "unpool",
    "weighted_means",
]


def __getattr__(name: str) -> Any:
    # Imported on first use: the description of the plugin, a module of this package, must not bring torch in.
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
