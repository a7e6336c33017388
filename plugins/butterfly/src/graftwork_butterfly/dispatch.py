"""Which implementation serves a call: a measured rule, and portable code where the call is recorded."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from graftwork_butterfly import functional as reference
from graftwork_butterfly import kernels, native

BACKENDS = ("auto", "dense", "staged", "two_factor", "fused")
"""What a layer may be asked to use. ``dense`` multiplies the layer out and runs a convolution, ``staged``
runs one einsum per stage, ``two_factor`` two batched matrix products, ``fused`` a native kernel."""


def butterfly(x: Tensor, weight: Tensor, layout: list[int], backend: str = "auto") -> Tensor:
    """Apply a butterfly layer to the channel axis.

    Example:
        >>> plan = structure(64, 128)
        >>> butterfly(torch.randn(1, 64, 9), torch.randn(plan.weights), plan.layout).shape
        torch.Size([1, 128, 9])

    Args:
        x: (B, in, ...) activations, at least two axes.
        weight: (W,) weights of all stages.
        layout: Shape of the layer, :attr:`graftwork_butterfly.structure.Structure.layout`.
        backend: One of :data:`BACKENDS`. Under TorchScript, tracing and export, ``auto`` and ``fused``
            become a portable form made of ordinary operators.

    Returns:
        (B, out, ...).

    Raises:
        ValueError: Wrong number of channels, or the named backend cannot serve.
        Unavailable: ``fused`` was asked for and there is no native library for x's device.
    """
    if torch.jit.is_scripting():
        return _portable(x, weight, layout, backend)
    else:  # noqa: RET505  without it TorchScript would compile the eager branch
        return _eager(x, weight, layout, backend)


def choose(layout: list[int], device_type: str, dtype: torch.dtype) -> str:
    """Choose the backend for ``auto``.

    The rule stands on the table that ``graftwork bench butterfly --parts layer`` prints: the fused kernel
    is the fastest in every cell, forward and backward, at every number of threads; without it two factors
    are, except for small squares.
    """
    # on the meta device nothing is computed, but shapes and operation counts should be those of the kernel
    if not native.refusal(layout, dtype) and (
        device_type == "meta" or (device_type == "cpu" and native.available(device_type))
    ):
        return "fused"
    return _portable_choice(layout)


def _portable_choice(layout: list[int]) -> str:
    if layout[0] < 64 or reference.adds_every_other(layout):
        return "dense"
    return "two_factor"


def _eager(x: Tensor, weight: Tensor, layout: list[int], backend: str) -> Tensor:
    if x.dim() < 2 or x.shape[1] != layout[3]:
        raise ValueError(
            f"the layer takes an input of shape (batch, {layout[3]}, ...), got {tuple(x.shape)}; "
            "the second axis holds the channels."
        )
    if torch.amp.is_autocast_available(x.device.type) and torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    if _recording():
        return _portable(x, weight, layout, backend)
    if backend == "auto":
        backend = choose(layout, x.device.type, x.dtype)
    if backend == "fused":
        return kernels.fused(x, weight, layout)
    return _portable(x, weight, layout, backend)


def _recording() -> bool:
    """Whether the call is being recorded for use elsewhere, where the native library may not exist."""
    return _is_exporting() or torch._C._get_tracing_state() is not None


# torch.compiler.is_exporting came with torch 2.7
_is_exporting = getattr(torch.compiler, "is_exporting", lambda: False)


def _portable(x: Tensor, weight: Tensor, layout: list[int], backend: str) -> Tensor:
    """Evaluate with ordinary operators only; scriptable."""
    if backend == "auto" or backend == "fused":
        backend = _portable_choice(layout)
    if backend == "dense":
        matrix = reference.dense_matrix(weight, layout).to(x.dtype)
        if x.dim() == 2:
            return functional.linear(x, matrix)
        if x.dim() == 4:
            return functional.conv2d(x, matrix.unsqueeze(-1).unsqueeze(-1))
        return torch.matmul(matrix, x.flatten(2)).view(_output_shape(x, layout))
    # (B, C, P), or for a matrix of rows one image whose pixels are the rows
    flat = x.t().unsqueeze(0) if x.dim() == 2 else x.flatten(2)
    if backend == "staged":
        y = reference.apply_staged(flat, weight.to(x.dtype), layout)
    elif reference.adds_every_other(layout):
        raise ValueError('residual="every_other" has no two-factor form; use backend="staged" or "dense".')
    else:
        y = reference.apply_two_factor(flat, weight.to(x.dtype), layout)
    return y[0].t() if x.dim() == 2 else y.view(_output_shape(x, layout))


def _output_shape(x: Tensor, layout: list[int]) -> list[int]:
    shape = list(x.shape)
    shape[1] = layout[4]
    return shape
