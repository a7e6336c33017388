"""Tensors as arguments of native functions: checked pointers, the thread count, the CUDA stream."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def pointer(
    tensor: torch.Tensor,
    dtype: torch.dtype | Sequence[torch.dtype],
    *,
    device: str | torch.device = "cpu",
    shape: Sequence[int | None] | None = None,
    name: str = "tensor",
    contiguous: bool = True,
) -> ctypes.c_void_p:
    """Return the address of a tensor's data after checking what native code must be able to rely on.

    The result keeps the tensor alive, so that ``pointer(x.contiguous(), ...)`` is safe as an argument.

    Example:
        >>> pointer(torch.zeros(2, 3), torch.float32, shape=(2, None), name="weight")  # doctest: +SKIP
        c_void_p(94029450)

    Args:
        tensor: The argument.
        dtype: Required dtype, or those allowed.
        device: Required device; without an index any device of that type.
        shape: Required shape; None stands for any size.
        name: How errors call the argument.
        contiguous: False if the function takes strides.

    Returns:
        The pointer, for a parameter of type ``ctypes.c_void_p``.

    Raises:
        TypeError: Not a tensor, or one of another dtype.
        ValueError: Another device, shape or memory layout.
    """
    import torch

    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}.")
    allowed = (dtype,) if isinstance(dtype, torch.dtype) else tuple(dtype)
    if tensor.dtype not in allowed:
        names = " or ".join(str(item) for item in allowed)
        raise TypeError(
            f"{name} must have dtype {names}, got {tensor.dtype}; convert it with {name}.to({allowed[0]})."
        )
    required = torch.device(device)
    if tensor.device.type != required.type or required.index not in (None, tensor.device.index):
        raise ValueError(
            f"{name} must be on device {required}, got {tensor.device}; "
            f"move it with {name}.to({str(required)!r})."
        )
    if shape is not None and (
        tensor.dim() != len(shape)
        or any(want is not None and want != got for want, got in zip(shape, tensor.shape))
    ):
        expected = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{name} must have shape ({expected}), got {tuple(tensor.shape)}.")
    if tensor.layout is not torch.strided or tensor.is_conj() or tensor.is_neg():
        raise ValueError(
            f"{name} must be a plain dense tensor, got layout {tensor.layout} or a lazy view; use "
            f"{name}.to_dense(), {name}.resolve_conj() or {name}.resolve_neg()."
        )
    if contiguous and not tensor.is_contiguous():
        raise ValueError(
            f"{name} must be contiguous, got shape {tuple(tensor.shape)} with strides {tensor.stride()}; "
            f"pass {name}.contiguous()."
        )
    try:
        address = tensor.data_ptr()
    except RuntimeError:  # a batched tensor of vmap, and other wrappers
        address = 0
    if address == 0 and tensor.numel() > 0:  # a fake tensor of torch.compile has no address either
        raise ValueError(
            f"{name} is a {type(tensor).__name__} without data; "
            "call native code inside a torch.library.custom_op."
        )
    result = ctypes.c_void_p(address)
    result.tensor = tensor  # type: ignore[attr-defined]
    return result


def threads() -> int:
    """Return torch's thread count, to be passed to native code for ``num_threads``.

    Passing it makes ``torch.set_num_threads`` count. It is 1 in ``DataLoader`` workers, which keeps forked
    ones away from OpenMP's thread pool: the pool does not survive a fork.
    """
    import torch

    return torch.get_num_threads()


@contextlib.contextmanager
def cuda_stream(device: torch.device) -> Iterator[ctypes.c_void_p]:
    """Make a CUDA device current and give torch's current stream on it.

    Example:
        >>> with extension.cuda_stream(x.device) as stream:  # doctest: +SKIP
        ...     lib.axpy(pointer(x, torch.float32, device=x.device), ..., stream)

    Args:
        device: Device of the tensors; its index is the current device's if it has none.

    Yields:
        The ``cudaStream_t``, to be used within the block.

    Raises:
        ValueError: Not a CUDA device.
    """
    import torch

    if device.type != "cuda":
        raise ValueError(f"a CUDA stream needs a CUDA device, got {device}; move the tensors with .cuda().")
    with torch.cuda.device(device):
        yield ctypes.c_void_p(torch.cuda.current_stream(device).cuda_stream)
