"""Blocks and models of another class around the same parameters, without a copy and without a change.

timm's modules are never patched: a pooled block or model is a second object whose class pools and whose
parameters, buffers and sub-modules are those of the first.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any, TypeVar

from timm.layers import Attention
from timm.models.vision_transformer import Block, ResPostBlock
from torch import nn

from graftwork_token_pooling.blocks import (
    PoolingBlock,
    PoolingBlockMixin,
    PoolingOptions,
    PoolingResPostBlock,
)
from graftwork_token_pooling.pooling import SCORED

ModuleT = TypeVar("ModuleT", bound=nn.Module)

_POOLING_CLASS: dict[type[nn.Module], type[PoolingBlockMixin]] = {
    Block: PoolingBlock,
    ResPostBlock: PoolingResPostBlock,
}


def pooling_block(
    block: Any, before: Fraction, fraction: Fraction, num_prefix_tokens: int, options: PoolingOptions
) -> PoolingBlockMixin:
    """Build a pooling block around the sub-modules of a plain one, which stays as it is.

    Args:
        block: timm's ``Block`` or ``ResPostBlock``.
        before: Fraction of the patch tokens that it receives.
        fraction: Fraction that it leaves.
        num_prefix_tokens: Tokens that are never pooled.
        options: How to pool.

    Returns:
        The pooling block; both share their parameters.

    Raises:
        TypeError: Another kind of block or attention, whose scores are unknown.
    """
    kind = next((plain for plain in _POOLING_CLASS if type(block).forward is plain.forward), None)
    if kind is None:
        raise TypeError(
            f"Token Pooling knows timm's Block and ResPostBlock, got {type(block).__name__}; "
            "choose blocks for the schedule that are of these types, or another model."
        )
    needs_scores, needs_metric = options.method in SCORED, options.method == "tome"
    if (needs_scores or needs_metric) and type(block.attn).forward is not Attention.forward:
        raise TypeError(
            f"method {options.method!r} reads the weights of timm's Attention, got "
            f"{type(block.attn).__name__}; choose a method that needs no scores: "
            "k_medoids, k_means, random or grid."
        )
    pooled = recast(block, _POOLING_CLASS[kind])
    # plain attributes: TorchScript takes over what it has types for
    added = {
        "plain_type": type(block),
        "before_numerator": before.numerator,
        "before_denominator": before.denominator,
        "numerator": fraction.numerator,
        "denominator": fraction.denominator,
        "num_prefix_tokens": num_prefix_tokens,
        "method": options.method,
        "output": options.output,
        "iterations": options.iterations,
        "init": options.init,
        "pre_mlp": options.position == "pre_mlp",
        "exclude_self": options.exclude_self,
        "needs_scores": needs_scores,
        "needs_metric": needs_metric,
    }
    for name, value in {**added, "added": tuple(added)}.items():
        setattr(pooled, name, value)
    return pooled


def plain_block(block: PoolingBlockMixin) -> nn.Module:
    """Build the plain block back from a pooling one; both share their parameters."""
    plain = recast(block, block.plain_type)
    for name in (*block.added, "added"):
        delattr(plain, name)
    return plain


def recast(module: nn.Module, kind: type[ModuleT]) -> ModuleT:
    """Return a module of another class that shares parameters, buffers and sub-modules with the given one.

    The given module stays as it is: each has its own registers, so replacing a sub-module of one leaves
    the other alone.

    Args:
        module: Where the contents come from.
        kind: A class that finds its attributes in them.
    """
    twin = kind.__new__(kind)
    for name, value in vars(module).items():
        # the registers of nn.Module (parameters, buffers, modules, hooks) and timm's records are containers
        twin.__dict__[name] = value.copy() if isinstance(value, dict | set | list) else value
    return twin
