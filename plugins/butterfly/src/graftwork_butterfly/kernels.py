"""The fused transform: native kernels that keep a tile of pixels in cache through all stages.

:func:`fused` serves plain eager calls directly; everything that watches or transforms the program
(torch.compile, dispatch modes, fake tensors) sees the operator ``graftwork_butterfly::transform`` instead,
which has the same code inside. Equivalent in plain torch:
:func:`graftwork_butterfly.functional.apply_staged`.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from ctypes import c_int, c_int64, c_void_p

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils.flop_counter import register_flop_formula

from graftwork import extension
from graftwork_butterfly import functional as reference

LARGEST_RADIX = 8
"""Largest radix the kernels are compiled for (``kMaxRadix`` in ``csrc/butterfly.h``)."""

MOST_STAGES = 24
"""Most stages the kernels hold (``kMaxStages`` in ``csrc/butterfly.h``)."""

DTYPES = {torch.float32: 0, torch.bfloat16: 1}
"""Activations the kernels take; they compute in float32, and weights are always float32 to them."""

_FORWARD = (c_void_p, c_void_p, c_void_p, c_int64, c_int64, c_void_p, c_int, c_int, c_int)
_BACKWARD = (
    c_void_p,
    c_void_p,
    c_void_p,
    c_void_p,
    c_void_p,
    c_int64,
    c_int64,
    c_void_p,
    c_int,
    c_int,
    c_int,
)

CPU = extension.Library(
    name="butterfly_cpu",
    package="graftwork_butterfly",
    sources=["csrc/butterfly_cpu.cpp"],
    functions={"bft_forward_cpu": _FORWARD, "bft_backward_cpu": _BACKWARD},
)
CUDA = extension.Library(
    name="butterfly_cuda",
    package="graftwork_butterfly",
    sources=["csrc/butterfly_cuda.cu"],
    # a stream in place of the thread count; the backward pass takes a number of blocks after its pointers
    functions={
        "bft_forward_cuda": (*_FORWARD[:-1], c_void_p),
        "bft_backward_cuda": (*_BACKWARD[:5], c_int, *_BACKWARD[5:-1], c_void_p),
    },
    language="cuda",
)
_LIBRARIES = {"cpu": CPU, "cuda": CUDA}
_loaded: dict[str, extension.Native | extension.Unavailable] = {}
_plans: dict[tuple[int, ...], ctypes.Array[ctypes.c_int32]] = {}


def native(device_type: str) -> extension.Native:
    """Return the native library for a kind of device, compiling it at its first use.

    Args:
        device_type: ``"cpu"`` or ``"cuda"``.

    Returns:
        The library; success and failure are remembered.

    Raises:
        Unavailable: There is none, with the reason and the fix.
    """
    found = _loaded.get(device_type)
    if found is None:
        try:
            if device_type not in _LIBRARIES:
                raise extension.Unavailable(
                    f"the fused butterfly has no kernel for devices of type {device_type!r}.",
                    'Use backend="two_factor" there.',
                )
            found = extension.load(_LIBRARIES[device_type])
        except extension.Unavailable as error:
            found = error
        _loaded[device_type] = found
    if isinstance(found, extension.Unavailable):
        raise extension.Unavailable(found.reason, found.fix)
    return found


def available(device_type: str) -> bool:
    """Say whether the native library can be had, compiling it if that is what it takes."""
    found = _loaded.get(device_type)
    if found is None:
        try:
            found = native(device_type)
        except extension.Unavailable:
            return False
    return isinstance(found, extension.Native)


def refusal(layout: list[int], dtype: torch.dtype) -> str:
    """Say why the kernels cannot serve a layer, or return an empty string.

    Args:
        layout: Shape of the layer, see :attr:`graftwork_butterfly.structure.Structure.layout`.
        dtype: Of the activations.
    """
    if dtype not in DTYPES:
        return f"activations are {dtype}, the kernels take float32 and bfloat16"
    if reference.adds_every_other(layout):
        return "the residual 'every_other' is not built into the kernels"
    if max(layout[7:]) > LARGEST_RADIX:
        return f"a stage of radix {max(layout[7:])} is beyond the kernels' largest, {LARGEST_RADIX}"
    if layout[6] > MOST_STAGES:
        return f"{layout[6]} stages are more than the kernels' {MOST_STAGES}"
    return ""


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
    reason = refusal(layout, x.dtype)
    if reason:
        raise ValueError(f'backend "fused" cannot serve this layer: {reason}. Use backend="auto".')
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return _reference(x, weight, layout)  # vmap, forward mode: the operators have no rules for them
    if torch.compiler.is_compiling() or not _unwatched(x, weight):
        result: Tensor = torch.ops.graftwork_butterfly.transform(x, weight, layout)
        return result
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return _Transform.apply(x, weight, layout)
    return _forward(x, weight, layout)


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
        return _forward(x, weight, layout)

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, weight = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph: a gradient that can be differentiated again
            return (*_differentiable_gradient(grad, x, weight, ctx.layout, ctx.needs_input_grad), None)
        gx, gw = _backward(grad, x, weight, ctx.layout, ctx.needs_input_grad[1])
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


# ------------------------------------------------------------------------------- calls into native code


def _dense(x: Tensor) -> tuple[Tensor, bool]:
    """Return x in a layout the kernels read, and whether that is channels-last."""
    if x.is_contiguous():
        return x, x.dim() == 2
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return x, True
    return x.contiguous(), x.dim() == 2


def _like(x: Tensor, channels: int, channels_last: bool) -> Tensor:
    shape = (x.shape[0], channels, *x.shape[2:])
    if channels_last and x.dim() == 4:
        return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    return x.new_empty(shape)


def _check(x: Tensor, weight: Tensor, layout: list[int]) -> None:
    """Refuse what would make native code read beyond a tensor."""
    weights = layout[2] * layout[1] * sum(layout[7:])
    if x.dim() < 2 or x.shape[1] != layout[3] or weight.numel() != weights or weight.device != x.device:
        raise ValueError(
            f"the layer takes {layout[3]} channels and {weights} weights on one device, got an input of "
            f"shape {tuple(x.shape)} on {x.device} and {weight.numel()} weights on {weight.device}."
        )


def _arguments(x: Tensor, layout: list[int], channels_last: bool) -> tuple[int, int, int, int, int]:
    """Images, pixels, address of the layout, dtype and memory layout, as the native functions take them."""
    key = tuple(layout)
    plan = _plans.get(key)
    if plan is None:
        plan = _plans.setdefault(key, (ctypes.c_int32 * len(key))(*key))
    images = x.shape[0]
    pixels = x.numel() // (images * x.shape[1]) if images else 0
    return images, pixels, ctypes.addressof(plan), DTYPES[x.dtype], int(channels_last)


def _forward(x: Tensor, weight: Tensor, layout: list[int]) -> Tensor:
    _check(x, weight, layout)
    x, channels_last = _dense(x)
    w = weight if weight.dtype == torch.float32 and weight.is_contiguous() else weight.float().contiguous()
    y = _like(x, layout[4], channels_last)
    if y.numel() == 0:
        return y
    arguments = _arguments(x, layout, channels_last)
    library = native(x.device.type)
    if x.is_cuda:
        with extension.cuda_stream(x.device) as stream:
            library.bft_forward_cuda(x.data_ptr(), w.data_ptr(), y.data_ptr(), *arguments, stream)
    else:
        library.bft_forward_cpu(x.data_ptr(), w.data_ptr(), y.data_ptr(), *arguments, torch.get_num_threads())
    return y


def _backward(
    grad: Tensor, x: Tensor, weight: Tensor, layout: list[int], need_weight: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of x and of the weights; without `need_weight` the latter is empty."""
    _check(x, weight, layout)
    x, channels_last = _dense(x)
    grad = grad.to(x.dtype).contiguous(
        memory_format=torch.channels_last if channels_last and x.dim() == 4 else torch.contiguous_format
    )
    w = weight.float().contiguous()
    gx = _like(x, layout[3], channels_last)
    gw = torch.empty_like(w) if need_weight else w.new_empty(0)
    if x.numel() == 0:
        return gx, gw.zero_().to(weight.dtype)
    arguments = _arguments(x, layout, channels_last)
    library = native(x.device.type)
    inputs = (x.data_ptr(), w.data_ptr(), grad.data_ptr(), gx.data_ptr())
    if x.is_cuda:
        # one set of sums per block; their number only decides how the work is spread
        blocks = 2 * torch.cuda.get_device_properties(x.device).multi_processor_count
        sums = w.new_zeros((blocks, w.numel())) if need_weight else None
        with extension.cuda_stream(x.device) as stream:
            pointer = None if sums is None else sums.data_ptr()
            library.bft_backward_cuda(*inputs, pointer, blocks, *arguments, stream)
        gw = gw if sums is None else sums.sum(0)
    else:
        pointer = gw.data_ptr() if need_weight else None
        library.bft_backward_cpu(*inputs, pointer, *arguments, torch.get_num_threads())
    return gx, gw.to(weight.dtype)


# ----------------------------------------------------------------------------- operators of torch.library


@torch.library.custom_op(
    "graftwork_butterfly::transform",
    mutates_args=(),
    schema="(Tensor x, Tensor weight, int[] layout) -> Tensor",
)
def _transform(x, weight, layout):
    return _forward(x, weight, layout)


@_transform.register_fake
def _(x, weight, layout):
    torch._check(x.shape[1] == layout[3])
    return _like(x, layout[4], _dense(x)[1])


@torch.library.custom_op(
    "graftwork_butterfly::transform_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor x, Tensor weight, int[] layout, bool need_weight) -> (Tensor, Tensor)",
)
def _transform_backward(grad, x, weight, layout, need_weight):
    return _backward(grad, x, weight, layout, need_weight)


@_transform_backward.register_fake
def _(grad, x, weight, layout, need_weight):
    gw = (
        torch.empty_like(weight, memory_format=torch.contiguous_format)
        if need_weight
        else weight.new_empty(0)
    )
    return _like(x, layout[3], _dense(x)[1]), gw


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
