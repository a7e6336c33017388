"""The fused transform: native kernels that keep a tile of pixels in cache through all stages.

:func:`fused` serves plain eager calls directly; everything that watches or transforms the program
(torch.compile, dispatch modes, fake tensors) sees the operator ``graftwork_butterfly::transform`` instead,
which has the same code inside. Equivalent in plain torch:
:func:`graftwork_butterfly.functional.apply_staged`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils.flop_counter import register_flop_formula

from graftwork_butterfly import functional as reference
from graftwork_butterfly import native


def fused(x: Tensor, weight: Tensor, layout: list[int]) -> Tensor:
    """Apply a butterfly layer in one pass over the activations.

    Example:
        >>> from graftwork_butterfly.structure import structure
        >>> plan = structure(64, 64)
        >>> fused(torch.randn(1, 64, 9), torch.randn(plan.weights), plan.layout).shape  # doctest: +SKIP
        torch.Size([1, 64, 9])

    Args:
        x: (B, in, ...) float32 or bfloat16, contiguous or channels-last; others are copied.
        weight: (W,) stage weights; used in float32 whatever their dtype.
        layout: Shape of the layer.

    Returns:
        (B, out, ...) in x's dtype and memory format. Gradients flow to x and weight; those of the weights are
        summed in an order that depends on the number of threads.

    Raises:
        Unavailable: There is no native library for x's device.
        ValueError: The kernels do not serve this layer or dtype.
    """
    reason = native.refusal(layout, x.dtype)
    if reason:
        raise ValueError(f'backend "fused" cannot serve this layer: {reason}. Use backend="auto".')
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return _reference(x, weight, layout)  # vmap, forward mode: the operators have no rules for them
    if torch.compiler.is_compiling() or not _unwatched(x, weight):
        result: Tensor = torch.ops.graftwork_butterfly.transform(x, weight, layout)
        return result
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return _Transform.apply(x, weight, layout)
    return native.forward(x, weight, layout)


def _unwatched(x: Tensor, weight: Tensor) -> bool:
    """Whether this is a plain eager call that nothing but autograd needs to know of."""
    return (
        type(x) is Tensor
        and not x.is_meta
        and type(weight) in (nn.Parameter, Tensor)
        and not torch._C._len_torch_dispatch_stack()
    )


class _Transform(torch.autograd.Function):
    """The eager path. An operator of torch.library does the same at several times the call overhead."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, layout: list[int]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.layout = layout
        return native.forward(x, weight, layout)

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, weight = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph: a gradient that can be differentiated again
            return (*_differentiable_gradient(grad, x, weight, ctx.layout, ctx.needs_input_grad), None)
        gx, gw = native.backward(grad, x, weight, ctx.layout, ctx.needs_input_grad[1])
        return gx, gw if ctx.needs_input_grad[1] else None, None


def _reference(x: Tensor, weight: Tensor, layout: list[int]) -> Tensor:
    flat = x.flatten(2) if x.dim() > 2 else x.unsqueeze(-1)
    y = reference.apply_two_factor(flat, weight.to(x.dtype), layout)
    return y.reshape((x.shape[0], layout[4], *x.shape[2:]))


def _differentiable_gradient(
    grad: Tensor, x: Tensor, weight: Tensor, layout: list[int], needed: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None]:
    y = _reference(x, weight, layout)
    wanted = [tensor for tensor, use in zip((x, weight), needed) if use]
    found = iter(torch.autograd.grad(y, wanted, grad, create_graph=True))
    return (next(found) if needed[0] else None, next(found) if needed[1] else None)


# ----------------------------------------------------------------------------- operators of torch.library


@torch.library.custom_op(
    "graftwork_butterfly::transform",
    mutates_args=(),
    schema="(Tensor x, Tensor weight, int[] layout) -> Tensor",
)
def _transform(x, weight, layout):
    return native.forward(x, weight, layout)


@_transform.register_fake
def _(x, weight, layout):
    torch._check(x.shape[1] == layout[3])
    return native.empty_like(x, layout[4], native.dense(x)[1])


@torch.library.custom_op(
    "graftwork_butterfly::transform_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor x, Tensor weight, int[] layout, bool need_weight) -> (Tensor, Tensor)",
)
def _transform_backward(grad, x, weight, layout, need_weight):
    return native.backward(grad, x, weight, layout, need_weight)


@_transform_backward.register_fake
def _(grad, x, weight, layout, need_weight):
    gw = (
        torch.empty_like(weight, memory_format=torch.contiguous_format)
        if need_weight
        else weight.new_empty(0)
    )
    return native.empty_like(x, layout[3], native.dense(x)[1]), gw


def _save(ctx, inputs, output) -> None:
    x, weight, layout = inputs
    ctx.save_for_backward(x, weight)
    ctx.layout = layout


def _operator_backward(ctx, grad):
    x, weight = ctx.saved_tensors
    need = ctx.needs_input_grad[1]
    gx, gw = torch.ops.graftwork_butterfly.transform_backward(grad, x, weight, ctx.layout, need)
    return gx, gw if need else None, None


_transform.register_autograd(_operator_backward, setup_context=_save)


@register_flop_formula(torch.ops.graftwork_butterfly.transform)
def _transform_flops(x, weight, layout, *args, **kwargs) -> int:
    return 2 * weight[0] * (math.prod(x) // x[1])


@register_flop_formula(torch.ops.graftwork_butterfly.transform_backward)
def _transform_backward_flops(grad, x, weight, layout, need_weight, *args, **kwargs) -> int:
    return 2 * weight[0] * (math.prod(x) // x[1]) * (2 if need_weight else 1)
