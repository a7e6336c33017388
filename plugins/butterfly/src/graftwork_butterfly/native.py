"""The native libraries: which layers they serve, and the calls into them."""

from __future__ import annotations

import ctypes
from ctypes import c_int, c_int64, c_void_p

import torch
from torch import Tensor

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


def library(device_type: str) -> extension.Native:
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
            found = library(device_type)
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


def dense(x: Tensor) -> tuple[Tensor, bool]:
    """Return x in a layout the kernels read, and whether that is channels-last."""
    if x.is_contiguous():
        return x, x.dim() == 2
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return x, True
    return x.contiguous(), x.dim() == 2


def empty_like(x: Tensor, channels: int, channels_last: bool) -> Tensor:
    """Return uninitialised activations of another number of channels in x's layout."""
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
    # with one pixel per image the layouts agree, and channels-last fills tiles from many images
    return images, pixels, ctypes.addressof(plan), DTYPES[x.dtype], int(channels_last or pixels == 1)


def forward(x: Tensor, weight: Tensor, layout: list[int]) -> Tensor:
    """Run the layer: (B, in, ...) to (B, out, ...) in the same dtype and memory format."""
    _check(x, weight, layout)
    x, channels_last = dense(x)
    w = weight if weight.dtype == torch.float32 and weight.is_contiguous() else weight.float().contiguous()
    y = empty_like(x, layout[4], channels_last)
    if y.numel() == 0:
        return y
    arguments = _arguments(x, layout, channels_last)
    functions = library(x.device.type)
    if x.is_cuda:
        with extension.cuda_stream(x.device) as stream:
            functions.bft_forward_cuda(x.data_ptr(), w.data_ptr(), y.data_ptr(), *arguments, stream)
    else:
        functions.bft_forward_cpu(
            x.data_ptr(), w.data_ptr(), y.data_ptr(), *arguments, torch.get_num_threads()
        )
    return y


def backward(
    grad: Tensor, x: Tensor, weight: Tensor, layout: list[int], need_weight: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of x and of the weights; without `need_weight` the latter is empty."""
    _check(x, weight, layout)
    x, channels_last = dense(x)
    grad = grad.to(x.dtype).contiguous(
        memory_format=torch.channels_last if channels_last and x.dim() == 4 else torch.contiguous_format
    )
    w = weight.float().contiguous()
    gx = empty_like(x, layout[3], channels_last)
    gw = torch.empty_like(w) if need_weight else w.new_empty(0)
    if x.numel() == 0:
        return gx, gw.zero_().to(weight.dtype)
    arguments = _arguments(x, layout, channels_last)
    functions = library(x.device.type)
    inputs = (x.data_ptr(), w.data_ptr(), grad.data_ptr(), gx.data_ptr())
    if x.is_cuda:
        # one set of sums per block; their number only decides how the work is spread
        blocks = 2 * torch.cuda.get_device_properties(x.device).multi_processor_count
        sums = w.new_zeros((blocks, w.numel())) if need_weight else None
        with extension.cuda_stream(x.device) as stream:
            pointer = None if sums is None else sums.data_ptr()
            functions.bft_backward_cuda(*inputs, pointer, blocks, *arguments, stream)
        gw = gw if sums is None else sums.sum(0)
    else:
        pointer = gw.data_ptr() if need_weight else None
        functions.bft_backward_cpu(*inputs, pointer, *arguments, torch.get_num_threads())
    return gx, gw.to(weight.dtype)
