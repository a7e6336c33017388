"""The three renderers behind graftwork's render-backend hook: reference, cpu, cuda.

A renderer of kind ``"rasterize"`` is called as ``(cells, cameras, adjacency, settings, target=None)``, one of
kind ``"raytrace"`` as ``(cells, rays, adjacency, settings, target=None)``, where rays may be cameras. Both
return a :class:`~graftwork_power_foam.ops.rendering.Rendering` over black; a plugin may offer others.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from graftwork import extension
from graftwork.extension import Status, Unavailable
from graftwork_power_foam.ops import native
from graftwork_power_foam.ops.adjacency import Adjacency
from graftwork_power_foam.ops.cameras import Cameras, Rays
from graftwork_power_foam.ops.cells import Cells
from graftwork_power_foam.ops.lenses import pixel_directions, tile_cones
from graftwork_power_foam.ops.rendering import Rendering, Settings

Renderer = Callable[..., Rendering]


def reference(kind: str, device: torch.device) -> Renderer:
    """Return the reference in plain torch; it serves everywhere."""
    from graftwork_power_foam.ops import reference as plain

    return plain.rasterize if kind == "rasterize" else plain.raytrace


def cpu(kind: str, device: torch.device) -> Renderer:
    """Return the C++ renderer, building its library at the first use.

    Raises:
        Unavailable: There is neither a prebuilt library nor a compiler.
    """
    extension.load(native.CPU)
    return _rasterize if kind == "rasterize" else _raytrace


def cuda(kind: str, device: torch.device) -> Renderer:
    """Return the CUDA renderer, building its library at the first use.

    Raises:
        Unavailable: There is no CUDA device, or neither a prebuilt library nor nvcc.
    """
    extension.load(native.CUDA)
    return _rasterize if kind == "rasterize" else _raytrace


def _cpu_status(kind: str, device: torch.device) -> Status:
    return extension.status(native.CPU)


def _cuda_status(kind: str, device: torch.device) -> Status:
    return extension.status(native.CUDA)


cpu.status = _cpu_status  # type: ignore[attr-defined]
cuda.status = _cuda_status  # type: ignore[attr-defined]


def _numbers(settings: Settings) -> list[float]:
    return [settings.stop, settings.near, settings.near_radii, settings.near_plane, settings.grazing]


def _single(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach().to(torch.float32)


def _check_dtype(cells: Cells) -> None:
    if cells.dtype == torch.float64:
        raise Unavailable(
            "the native renderers compute in float32, the cells are float64.",
            'Convert them with cells.to(torch.float32), or choose backend="reference".',
        )


def _rendering(results: tuple[Tensor, ...], dtype: torch.dtype) -> Rendering:
    from graftwork_power_foam.ops import kernels

    images = dict(zip(kernels.IMAGES, results))
    return Rendering(
        **{name: image.to(dtype) if image.is_floating_point() else image for name, image in images.items()}
    )


def _rasterize(
    cells: Cells, cameras: Cameras, adjacency: Adjacency, settings: Settings, target: Tensor | None = None
) -> Rendering:
    from graftwork_power_foam.ops import kernels

    _check_dtype(cells)
    lenses, device = cameras.lenses, cells.device
    pinhole = all(lens.is_pinhole for lens in lenses)
    tables = None
    if not pinhole:
        tables = torch.stack([pixel_directions(lens, device, torch.float32) for lens in lenses])
    numbers = torch.tensor([[lens.fx, lens.fy, lens.cx, lens.cy] for lens in lenses], dtype=torch.float32)
    results = kernels.rasterize(
        *(tensor.to(torch.float32) for tensor in cells.tensors()),
        adjacency.offsets,
        adjacency.neighbors,
        cameras.camera_to_world[:, :3].detach().to(torch.float32),
        numbers.expand(len(cameras), 4).to(device),
        tables,
        torch.stack([tile_cones(lens, device) for lens in lenses]),
        _single(target),
        [cameras.width, cameras.height],
        _numbers(settings),
        list(settings.quantiles),
    )
    return _rendering(results, cells.dtype)


def _raytrace(
    cells: Cells,
    rays: Rays | Cameras,
    adjacency: Adjacency,
    settings: Settings,
    target: Tensor | None = None,
) -> Rendering:
    from graftwork_power_foam.ops import kernels

    _check_dtype(cells)
    eyes: Tensor | None = None
    origins: Tensor | None = None
    far: Tensor | None = None
    if isinstance(rays, Cameras):
        shape = torch.Size([len(rays), rays.height, rays.width])
        eyes, directions = rays.positions, rays.rays().directions
        groups, width = len(rays), rays.width
    else:
        shape, origins, directions, far = rays.shape, rays.origins, rays.directions, rays.far
        groups, width = 1, shape[-1] if len(shape) >= 2 else 0
    results = kernels.raytrace(
        *(tensor.to(torch.float32) for tensor in cells.tensors()),
        adjacency.offsets,
        adjacency.neighbors,
        _single(eyes),
        _single(None if origins is None else origins.reshape(1, -1, 3)),
        _single(directions.reshape(groups, -1, 3)),
        _single(None if far is None else far.reshape(1, -1)),
        _single(None if target is None else target.reshape(groups, -1, 3)),
        [width],
        _numbers(settings),
        list(settings.quantiles),
    )
    found = _rendering(results, cells.dtype)
    shaped = {}
    for name, image in vars(found).items():
        if name in ("contribution", "error", "visible"):
            shaped[name] = image if isinstance(rays, Cameras) else image[0]
        else:
            shaped[name] = image.reshape(*shape, *image.shape[2:])
    return Rendering(**shaped)
