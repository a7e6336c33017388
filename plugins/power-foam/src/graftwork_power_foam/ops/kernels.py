"""The native renderers as operators of torch, with shapes for the compiler and gradients for autograd.

The operators are plumbing: plain tensors, float32, images over black. Use the functions in functional.py.

Legend: N cells, C cameras, G groups of P rays, Q quantiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from graftwork_power_foam.ops import native

NUM_CELL_TENSORS = len(native.CELL_FIELDS)
DIFFERENTIABLE_IMAGES = 6
IMAGES = (*native.IMAGE_FIELDS, "contribution", "error", "intersections", "visible")

_CELLS = ", ".join(f"Tensor {name}" for name in native.CELL_FIELDS)
_CAMERAS = (
    "Tensor offsets, Tensor neighbors, Tensor poses, Tensor intrinsics, Tensor? directions, Tensor cones"
)
_RAYS = "Tensor offsets, Tensor neighbors, Tensor? eyes, Tensor? origins, Tensor directions, Tensor? far"
_CONSTANTS = "int[] size, float[] constants, float[] quantiles"
_OUT = ", ".join("Tensor" for _ in IMAGES)
_GRADS = ", ".join(f"Tensor? grad_{name}" for name in (*native.IMAGE_FIELDS, "contribution"))
_CELL_GRADS = ", ".join("Tensor" for _ in native.CELL_FIELDS)


def _dense(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _images(cells: Sequence[Tensor], batch: Sequence[int], groups: int, quantiles: int) -> dict[str, Tensor]:
    """Return uninitialised images of a batch shape, and zeroed statistics."""
    like, count = cells[0], cells[0].shape[0]
    return {
        "rgb": like.new_empty(*batch, 3),
        "alpha": like.new_empty(*batch),
        "depth": like.new_empty(*batch, quantiles),
        "normal": like.new_empty(*batch, 3),
        "facing": like.new_empty(*batch),
        "contribution": like.new_zeros(groups, count),
        "error": like.new_zeros(groups, count),
        "intersections": like.new_empty(*batch, dtype=torch.int32),
        "visible": like.new_zeros(groups, count, dtype=torch.bool),
    }


def _scene(cells: Sequence[Tensor], offsets: Tensor, neighbors: Tensor) -> native.SceneArgs:
    return native.scene_args([tensor.contiguous() for tensor in cells], offsets, neighbors)


def _cameras(
    poses: Tensor, intrinsics: Tensor, directions: Tensor | None, cones: Tensor, size: Sequence[int]
) -> native.CameraArgs:
    return native.camera_args(
        poses.contiguous(), intrinsics.contiguous(), _dense(directions), cones.contiguous(), *size
    )


def _camera_batch(poses: Tensor, size: Sequence[int]) -> tuple[int, int, int]:
    return poses.shape[0], size[1], size[0]


@torch.library.custom_op(
    "graftwork_power_foam::rasterize",
    mutates_args=(),
    device_types=("cpu", "cuda"),
    schema=f"({_CELLS}, {_CAMERAS}, Tensor? target, {_CONSTANTS}) -> ({_OUT})",
)
def rasterize(*args: Any) -> tuple[Tensor, ...]:
    """Render cameras; the order of the results is ``IMAGES``."""
    cells, (offsets, neighbors, poses, intrinsics, directions, cones) = args[:8], args[8:14]
    target, size, constants, quantiles = args[14:]
    images = _images(cells, _camera_batch(poses, size), poses.shape[0], len(quantiles))
    native.rasterize(
        (
            _scene(cells, offsets, neighbors),
            _cameras(poses, intrinsics, directions, cones, size),
            native.settings_args(constants, quantiles),
            native.image_args({**images, "target": _dense(target)}),
        ),
        backward=False,
        neighbors=neighbors,
        cameras=len(poses),
    )
    return tuple(images[name] for name in IMAGES)


@rasterize.register_fake
def _(*args: Any) -> tuple[Tensor, ...]:
    poses, size, quantiles = args[10], args[15], args[17]
    images = _images(args[:8], _camera_batch(poses, size), poses.shape[0], len(quantiles))
    return tuple(images[name] for name in IMAGES)


@torch.library.custom_op(
    "graftwork_power_foam::rasterize_backward",
    mutates_args=(),
    device_types=("cpu", "cuda"),
    schema=f"({_GRADS}, {_CELLS}, {_CAMERAS}, {_CONSTANTS}) -> ({_CELL_GRADS})",
)
def rasterize_backward(*args: Any) -> tuple[Tensor, ...]:
    """Return the gradients of the cells from those of the differentiable images."""
    incoming, cells, (offsets, neighbors, poses, intrinsics, directions, cones) = (
        args[:6],
        args[6:14],
        args[14:20],
    )
    size, constants, quantiles = args[20:]
    gradients = tuple(torch.zeros_like(tensor, memory_format=torch.contiguous_format) for tensor in cells)
    native.rasterize(
        (
            _scene(cells, offsets, neighbors),
            _cameras(poses, intrinsics, directions, cones, size),
            native.settings_args(constants, quantiles),
            native.image_gradients([_dense(tensor) for tensor in incoming]),
            native.scene_gradients(gradients),
        ),
        backward=True,
        neighbors=neighbors,
        cameras=len(poses),
    )
    return gradients


@torch.library.custom_op(
    "graftwork_power_foam::raytrace",
    mutates_args=(),
    device_types=("cpu", "cuda"),
    schema=f"({_CELLS}, {_RAYS}, Tensor? target, {_CONSTANTS}) -> ({_OUT})",
)
def raytrace(*args: Any) -> tuple[Tensor, ...]:
    """Render rays along the power diagram; the order of the results is ``IMAGES``."""
    cells, (offsets, neighbors, eyes, origins, directions, far) = args[:8], args[8:14]
    target, size, constants, quantiles = args[14:]
    images = _images(cells, directions.shape[:2], directions.shape[0], len(quantiles))
    native.raytrace(
        (
            _scene(cells, offsets, neighbors),
            native.ray_args(_dense(eyes), _dense(origins), directions.contiguous(), _dense(far), size[0]),
            native.settings_args(constants, quantiles),
            native.image_args({**images, "target": _dense(target)}),
        ),
        backward=False,
        neighbors=neighbors,
    )
    return tuple(images[name] for name in IMAGES)


@raytrace.register_fake
def _(*args: Any) -> tuple[Tensor, ...]:
    directions, quantiles = args[12], args[17]
    images = _images(args[:8], directions.shape[:2], directions.shape[0], len(quantiles))
    return tuple(images[name] for name in IMAGES)


@torch.library.custom_op(
    "graftwork_power_foam::raytrace_backward",
    mutates_args=(),
    device_types=("cpu", "cuda"),
    schema=f"({_GRADS}, {_CELLS}, {_RAYS}, {_CONSTANTS}) -> ({_CELL_GRADS})",
)
def raytrace_backward(*args: Any) -> tuple[Tensor, ...]:
    """Return the gradients of the cells from those of the differentiable images."""
    incoming, cells, (offsets, neighbors, eyes, origins, directions, far) = (
        args[:6],
        args[6:14],
        args[14:20],
    )
    size, constants, quantiles = args[20:]
    gradients = tuple(torch.zeros_like(tensor, memory_format=torch.contiguous_format) for tensor in cells)
    native.raytrace(
        (
            _scene(cells, offsets, neighbors),
            native.ray_args(_dense(eyes), _dense(origins), directions.contiguous(), _dense(far), size[0]),
            native.settings_args(constants, quantiles),
            native.image_gradients([_dense(tensor) for tensor in incoming]),
            native.scene_gradients(gradients),
        ),
        backward=True,
        neighbors=neighbors,
    )
    return gradients


def _fake_gradients(*args: Any) -> tuple[Tensor, ...]:
    return tuple(torch.zeros_like(tensor, memory_format=torch.contiguous_format) for tensor in args[6:14])


rasterize_backward.register_fake(_fake_gradients)
raytrace_backward.register_fake(_fake_gradients)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    kept = inputs[:14]
    ctx.present = [tensor is not None for tensor in kept]
    ctx.save_for_backward(*(tensor for tensor in kept if tensor is not None))
    ctx.settings = inputs[15:]
    ctx.mark_non_differentiable(*output[DIFFERENTIABLE_IMAGES:])
    ctx.set_materialize_grads(False)


def _saved(ctx: Any) -> list[Tensor | None]:
    tensors = iter(ctx.saved_tensors)
    return [next(tensors) if present else None for present in ctx.present]


def _rasterize_vjp(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
    found = rasterize_backward(*gradients[:DIFFERENTIABLE_IMAGES], *_saved(ctx), *ctx.settings)
    return (*found, *(None,) * 10)


def _raytrace_vjp(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
    found = raytrace_backward(*gradients[:DIFFERENTIABLE_IMAGES], *_saved(ctx), *ctx.settings)
    return (*found, *(None,) * 10)


rasterize.register_autograd(_rasterize_vjp, setup_context=_save)
raytrace.register_autograd(_raytrace_vjp, setup_context=_save)
