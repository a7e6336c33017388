"""Token Pooling for a model that exists: apply it, remove it, ask for its schedule and its cost."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from timm.models import VisionTransformer
from timm.models.deit import VisionTransformerDistilled
from torch import nn

from graftwork_token_pooling.blocks import PoolingBlockMixin, PoolingOptions
from graftwork_token_pooling.cost import Cost, Shape
from graftwork_token_pooling.grafting import plain_block, recast
from graftwork_token_pooling.schedule import Schedule, ScheduleLike
from graftwork_token_pooling.vit import (
    TokenPoolingMixin,
    TokenPoolingVisionTransformer,
    TokenPoolingVisionTransformerDistilled,
)

_POOLED: dict[type[nn.Module], type[TokenPoolingMixin]] = {
    VisionTransformer: TokenPoolingVisionTransformer,
    VisionTransformerDistilled: TokenPoolingVisionTransformerDistilled,
}


def apply(
    model: nn.Module,
    schedule: ScheduleLike = "r70",
    method: str = "wk_medoids",
    *,
    output: str = "mean",
    iterations: int = 5,
    init: str = "auto",
    position: str = "auto",
    exclude_self: bool = False,
    prop_attn: bool | None = None,
) -> TokenPoolingVisionTransformer | TokenPoolingVisionTransformerDistilled:
    """Give a vision transformer Token Pooling.

    Example:
        >>> import timm
        >>> pooled = apply(timm.create_model("deit_small_patch16_224"), schedule="0.58x")
        >>> schedule_of(pooled).counts(196)
        {3: 126, 6: 81, 9: 52}

    Args:
        model: Any model of timm's ``VisionTransformer`` class: ViT, DeiT, DeiT-3, distilled DeiT, CLIP,
            DINOv2 with or without registers, and the like. Pooling that it already has is replaced.
        schedule: ``"r70"`` leaves 70 % of the tokens at each of three blocks, ``"r70@2,5"`` after blocks 2
            and 5; ``"d13"`` takes 13 away after every block; ``"0.58x"`` and ``"2.7G"`` find the ratio for
            a budget of multiply-accumulates; a list gives K_1, K_2, ..., a mapping the blocks (from 1)
            with a count or a share; a path ending in .json names a schedule file.
        method: One of :data:`~graftwork_token_pooling.pooling.METHODS`.
        output: As in :class:`~graftwork_token_pooling.blocks.PoolingOptions`, like the arguments that follow.
        iterations: See there.
        init: See there.
        position: See there.
        exclude_self: See there.
        prop_attn: See there.

    Returns:
        A new model that shares every parameter with the given one, which stays as it is. Its state dict
        has the same keys; :func:`remove` undoes it.

    Raises:
        TypeError: Not a vision transformer of timm, or blocks that cannot be pooled after.
        ValueError: A schedule or option that cannot be.

    Note:
        A site after the last block is left out, because only the head follows it.
    """
    options = PoolingOptions(method, output, iterations, init, position, exclude_self, prop_attn)
    plain: Any = remove(model) if isinstance(model, TokenPoolingMixin) else model
    kind = _POOLED.get(type(plain))
    if kind is None:
        raise TypeError(
            "Token Pooling works on timm's VisionTransformer and VisionTransformerDistilled, got "
            f"{type(model).__module__}.{type(model).__qualname__}. Unwrap a compiled, parallel or "
            "features_only model first; other architectures have no plain sequence of blocks on patch tokens."
        )
    pooled: Any = recast(plain, kind)
    pooled.blocks = recast(plain.blocks, type(plain.blocks))
    pooled.install(schedule, options)
    return pooled


def remove(model: nn.Module) -> VisionTransformer:
    """Undo :func:`apply`: return a plain model that shares every parameter with the pooled one.

    Args:
        model: A pooled model, which stays as it is.

    Raises:
        TypeError: It is not pooled.
    """
    kind = next((plain for plain, pooled in _POOLED.items() if isinstance(model, pooled)), None)
    if kind is None or not isinstance(model, TokenPoolingMixin):
        raise TypeError(
            f"expected a model with Token Pooling, as apply() returns it, got {type(model).__name__}."
        )
    plain: Any = recast(model, kind)
    for name in ("pooling_options", "prop_attn", "needs_sizes"):
        delattr(plain, name)
    plain.blocks = recast(model.blocks, type(model.blocks))
    for index, block in enumerate(model.blocks):
        if isinstance(block, PoolingBlockMixin):
            plain.blocks[index] = plain_block(block)
    return plain


def schedule_of(model: VisionTransformer | TokenPoolingMixin) -> Schedule:
    """Return the schedule of a pooled model; a plain one has an empty schedule."""
    return Schedule(
        tuple(
            (index, Fraction(block.numerator, block.denominator))
            for index, block in enumerate(model.blocks, start=1)
            if isinstance(block, PoolingBlockMixin)
        )
    )


def cost_of(model: VisionTransformer | TokenPoolingMixin) -> Cost:
    """Count the multiply-accumulates of one image, pooled or not.

    Example:
        >>> import timm
        >>> round(cost_of(timm.create_model("deit_small_patch16_224")).gmacs, 4)
        4.5989

    Args:
        model: A vision transformer of timm, with or without Token Pooling.

    Returns:
        Cost of the network and of the pooling.
    """
    options = getattr(model, "pooling_options", PoolingOptions())
    return Shape.of(model).cost(schedule_of(model), options.method, options.iterations, options.position)
