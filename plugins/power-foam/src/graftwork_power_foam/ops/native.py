"""The native libraries: their description, the structures they are called with, and calls on plain tensors.

Everything here is float32, contiguous and on one device; kernels.py makes sure of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from ctypes import POINTER, Structure, byref, c_double, c_int64, c_void_p
from typing import TypeVar, cast

import torch
from torch import Tensor

from graftwork import extension
from graftwork_power_foam.ops import tile_lists

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


class RayArgs(Structure):
    """Groups of rays."""

    _fields_ = (
        *((name, c_int64) for name in ("groups", "count", "width")),
        *((name, c_void_p) for name in ("eyes", "origins", "directions", "far")),
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


_FORWARD = (POINTER(SettingsArgs), POINTER(ImageArgs))
_BACKWARD = (POINTER(SettingsArgs), POINTER(ImageGradients), POINTER(SceneGradients))
_CAMERAS = (POINTER(SceneArgs), POINTER(CameraArgs))
_RAYS = (POINTER(SceneArgs), POINTER(RayArgs))
_LISTS = (c_int64, c_int64, c_void_p)  # edges, capacity of the tiles' lists, how long they are

CPU = extension.Library(
    name="power_foam_cpu",
    package="graftwork_power_foam",
    sources=[
        "csrc/frame.cpp",
        "csrc/raster.cpp",
        "csrc/raster_backward.cpp",
        "csrc/walk.cpp",
        "csrc/trace.cpp",
        "csrc/trace_backward.cpp",
        "csrc/overlaps.cpp",
    ],
    functions={
        "foam_rasterize": (*_CAMERAS, *_FORWARD, c_int64),
        "foam_rasterize_backward": (*_CAMERAS, *_BACKWARD, c_int64),
        "foam_raytrace": (*_RAYS, *_FORWARD, c_int64),
        "foam_raytrace_backward": (*_RAYS, *_BACKWARD, c_int64),
        "foam_find_overlaps": (c_void_p, c_void_p, c_int64, c_double, c_void_p, c_int64),
        "foam_take_overlaps": (c_void_p, c_int64),
    },
    flags=["-fno-math-errno", "-fno-trapping-math"],
)

CUDA = extension.Library(
    name="power_foam_cuda",
    package="graftwork_power_foam",
    language="cuda",
    sources=["csrc/raster.cu", "csrc/trace.cu", "csrc/overlaps.cu"],
    functions={
        "foam_cuda_rasterize": (*_CAMERAS, *_FORWARD, *_LISTS, c_void_p),
        "foam_cuda_rasterize_backward": (*_CAMERAS, *_BACKWARD, *_LISTS, c_void_p),
        "foam_cuda_raytrace": (*_RAYS, *_FORWARD, c_int64, c_void_p),
        "foam_cuda_raytrace_backward": (*_RAYS, *_BACKWARD, c_int64, c_void_p),
        "foam_cuda_overlaps": (
            *(c_void_p, c_void_p, c_int64, c_double),
            *(c_void_p, c_void_p, c_int64, c_void_p),
        ),
    },
)


def _address(tensor: Tensor | None, dtype: torch.dtype = torch.float32) -> int | None:
    return None if tensor is None else extension.pointer(tensor, dtype, device=tensor.device).value


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


def ray_args(
    eyes: Tensor | None, origins: Tensor | None, directions: Tensor, far: Tensor | None, width: int
) -> RayArgs:
    """Describe ``(G, P)`` rays, which share an eye in each group or have origins of their own."""
    args = RayArgs(
        directions.shape[0],
        directions.shape[1],
        width,
        _address(eyes),
        _address(origins),
        _address(directions),
        _address(far),
    )
    return _keep(args, eyes, origins, directions, far)


def image_args(images: Mapping[str, Tensor | None]) -> ImageArgs:
    """Describe the output tensors and the optional target."""
    dtypes = {"intersections": torch.int32, "visible": torch.bool}
    args = ImageArgs(
        **{name: _address(tensor, dtypes.get(name, torch.float32)) for name, tensor in images.items()}
    )
    return _keep(args, *images.values())


def image_gradients(gradients: Sequence[Tensor | None]) -> ImageGradients:
    """Describe the gradients of rgb, alpha, depth, normal, facing and contribution."""
    return _keep(ImageGradients(*(_address(tensor) for tensor in gradients)), *gradients)


def scene_gradients(gradients: Sequence[Tensor]) -> SceneGradients:
    """Describe where the gradients of the cells go; the tensors must be zero."""
    return _keep(SceneGradients(*(_address(tensor) for tensor in gradients)), *gradients)


def rasterize(structures: Sequence[Structure], *, backward: bool, neighbors: Tensor, cameras: int) -> None:
    """Rasterize into tensors, on the device of the adjacency.

    Args:
        structures: Scene, cameras, settings, and the images or both kinds of gradients.
        backward: Whether gradients are wanted.
        neighbors: The neighbours in the adjacency.
        cameras: How many cameras there are.
    """
    suffix = "_backward" if backward else ""
    references = [byref(item) for item in structures]
    if neighbors.device.type == "cpu":
        getattr(extension.load(CPU), f"foam_rasterize{suffix}")(*references, extension.threads())
        return
    view = cast("CameraArgs", structures[1])
    lists = tile_lists.estimate(neighbors.device, int(view.width), int(view.height))
    function = getattr(extension.load(CUDA), f"foam_cuda_rasterize{suffix}")
    with extension.cuda_stream(neighbors.device) as stream:
        lists.run(
            lambda capacity, pairs: function(
                *references, len(neighbors), capacity, _address(pairs, torch.int64), stream
            ),
            cameras,
            exact=not backward,
        )


def raytrace(structures: Sequence[Structure], *, backward: bool, neighbors: Tensor) -> None:
    """Trace rays into tensors, on the device of the adjacency; see :func:`rasterize`."""
    suffix = "_backward" if backward else ""
    references = [byref(item) for item in structures]
    if neighbors.device.type == "cpu":
        getattr(extension.load(CPU), f"foam_raytrace{suffix}")(*references, extension.threads())
        return
    function = getattr(extension.load(CUDA), f"foam_cuda_raytrace{suffix}")
    with extension.cuda_stream(neighbors.device) as stream:
        function(*references, len(neighbors), stream)


def overlaps(centers: Tensor, radii: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    """Return offsets and neighbours of all balls that overlap or have a gap below the margin."""
    offsets = torch.empty(len(centers) + 1, dtype=torch.int32, device=centers.device)
    balls = (_address(centers), _address(radii), len(centers), margin, _address(offsets, torch.int32))
    if centers.device.type == "cpu":
        library = extension.load(CPU)
        library.foam_find_overlaps(*balls, extension.threads())
        neighbors = torch.empty(int(offsets[-1]), dtype=torch.int32)
        library.foam_take_overlaps(_address(neighbors, torch.int32), len(neighbors))
        return offsets, neighbors
    library = extension.load(CUDA)
    capacity = 48 * len(centers)
    with extension.cuda_stream(centers.device) as stream:
        while True:
            neighbors = torch.empty(capacity, dtype=torch.int32, device=centers.device)
            library.foam_cuda_overlaps(*balls, _address(neighbors, torch.int32), capacity, stream)
            total = int(offsets[-1])
            if total <= capacity:
                return offsets, neighbors[:total].clone()
            capacity = total
