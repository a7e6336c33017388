"""The C++ library: its description, the structures it is called with, and calls on plain tensors.

Everything here is float32, contiguous and on the CPU; kernels.py makes sure of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from ctypes import POINTER, Structure, byref, c_double, c_int64, c_void_p
from typing import TypeVar

import torch
from torch import Tensor

from graftwork import extension

MAX_QUANTILES = 8

_Args = TypeVar("_Args", bound=Structure)

CELL_FIELDS = ("centers", "radii", "density", "quaternions", "sites", "heights", "axes", "colors")
IMAGE_FIELDS = ("rgb", "alpha", "depth", "normal", "facing")


class SceneArgs(Structure):
    """Cells and their adjacency, as ``abi.h``."""

    _fields_ = (
        *((name, c_int64) for name in ("count", "num_sites", "num_axes")),
        *((name, c_void_p) for name in (*CELL_FIELDS, "offsets", "neighbors")),
    )


class SceneGradients(Structure):
    """Where the gradients of the cells go."""

    _fields_ = tuple((name, c_void_p) for name in CELL_FIELDS)


class SettingsArgs(Structure):
    """Constants of a rendering."""

    _fields_ = (
        *((name, c_double) for name in ("stop", "near", "near_radii", "near_plane", "grazing")),
        ("quantiles", c_int64),
        ("level", c_double * MAX_QUANTILES),
    )


class CameraArgs(Structure):
    """A batch of cameras."""

    _fields_ = (
        *((name, c_int64) for name in ("count", "width", "height")),
        *((name, c_void_p) for name in ("poses", "intrinsics", "directions", "cones")),
        ("tables", c_int64),
    )


class ImageArgs(Structure):
    """Where the images go, and the target they are compared with."""

    _fields_ = tuple(
        (name, c_void_p)
        for name in (*IMAGE_FIELDS, "intersections", "contribution", "error", "visible", "target")
    )


class ImageGradients(Structure):
    """Gradients of the images; null where there is none."""

    _fields_ = tuple((name, c_void_p) for name in (*IMAGE_FIELDS, "contribution"))


LIBRARY = extension.Library(
    name="power_foam_cpu",
    package="graftwork_power_foam",
    sources=["csrc/frame.cpp", "csrc/raster.cpp", "csrc/raster_backward.cpp"],
    functions={
        "foam_rasterize": (
            POINTER(SceneArgs),
            POINTER(CameraArgs),
            POINTER(SettingsArgs),
            POINTER(ImageArgs),
            c_int64,
        ),
        "foam_rasterize_backward": (
            POINTER(SceneArgs),
            POINTER(CameraArgs),
            POINTER(SettingsArgs),
            POINTER(ImageGradients),
            POINTER(SceneGradients),
            c_int64,
        ),
    },
    flags=["-fno-math-errno", "-fno-trapping-math"],
)


def _address(tensor: Tensor | None, dtype: torch.dtype = torch.float32) -> int | None:
    return None if tensor is None else extension.pointer(tensor, dtype).value


def _keep(args: _Args, *tensors: Tensor | None) -> _Args:
    """Let a structure keep alive the tensors whose addresses it holds."""
    args.tensors = tensors  # type: ignore[attr-defined]
    return args


def scene_args(cells: Sequence[Tensor], offsets: Tensor, neighbors: Tensor) -> SceneArgs:
    """Describe cells, given in the order of the fields of ``Cells``, and their neighbours."""
    args = SceneArgs(
        cells[0].shape[0],
        cells[4].shape[1],
        cells[6].shape[2],
        *(_address(tensor) for tensor in cells),
        _address(offsets, torch.int32),
        _address(neighbors, torch.int32),
    )
    return _keep(args, *cells, offsets, neighbors)


def settings_args(numbers: Sequence[float], quantiles: Sequence[float]) -> SettingsArgs:
    """Describe the constants: stop, near, near_radii, near_plane, grazing."""
    levels = [-math.log(quantile) for quantile in quantiles]
    return SettingsArgs(*numbers, len(levels), (c_double * MAX_QUANTILES)(*levels))


def camera_args(
    poses: Tensor, intrinsics: Tensor, directions: Tensor | None, cones: Tensor, width: int, height: int
) -> CameraArgs:
    """Describe cameras."""
    args = CameraArgs(
        poses.shape[0],
        width,
        height,
        _address(poses),
        _address(intrinsics),
        _address(directions),
        _address(cones),
        cones.shape[0],
    )
    return _keep(args, poses, intrinsics, directions, cones)


def rasterize(
    scene: SceneArgs, cameras: CameraArgs, settings: SettingsArgs, images: dict[str, Tensor | None]
) -> None:
    """Fill the images and statistics; ``images`` holds the tensors named in ``ImageArgs``."""
    args = image_args(images)
    lib = extension.load(LIBRARY)
    lib.foam_rasterize(byref(scene), byref(cameras), byref(settings), byref(args), extension.threads())


def rasterize_backward(
    scene: SceneArgs,
    cameras: CameraArgs,
    settings: SettingsArgs,
    image_gradients: Sequence[Tensor | None],
    gradients: Sequence[Tensor],
) -> None:
    """Fill the gradients of the cells, which must be zero, from those of the images and contributions."""
    incoming = ImageGradients(*(_address(tensor) for tensor in image_gradients))
    outgoing = SceneGradients(*(_address(tensor) for tensor in gradients))
    lib = extension.load(LIBRARY)
    lib.foam_rasterize_backward(
        byref(scene), byref(cameras), byref(settings), byref(incoming), byref(outgoing), extension.threads()
    )


def image_args(images: dict[str, Tensor | None]) -> ImageArgs:
    """Describe the output tensors and the optional target."""
    dtypes = {"intersections": torch.int32, "visible": torch.bool}
    args = ImageArgs(
        **{name: _address(tensor, dtypes.get(name, torch.float32)) for name, tensor in images.items()}
    )
    return _keep(args, *images.values())
