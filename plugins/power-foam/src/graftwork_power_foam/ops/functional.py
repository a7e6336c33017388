"""Rendering as functions: ``rasterize`` for cameras, ``raytrace`` for any rays."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from graftwork.discovery import ALLOW_VARIABLE
from graftwork.extension.library import MODE_VARIABLE
from graftwork_power_foam.ops.adjacency import Adjacency, overlap_neighbors
from graftwork_power_foam.ops.cameras import Cameras, Rays
from graftwork_power_foam.ops.cells import Cells
from graftwork_power_foam.ops.power_diagram import power_diagram
from graftwork_power_foam.ops.rendering import Rendering, Settings

SCENE = "power-foam"


def rasterize(
    cells: Cells,
    cameras: Cameras,
    *,
    adjacency: Adjacency | None = None,
    background: Tensor | None = None,
    target: Tensor | None = None,
    settings: Settings | None = None,
    backend: str | Callable[..., Rendering] = "auto",
) -> Rendering:
    """Render cameras by sorting the cells once per camera; exact for every lens with one viewpoint.

    Differentiable in every tensor of ``cells`` through rgb, alpha, depth, normal, facing and contribution,
    and in ``background``; not in the cameras, nor through the order of the cells.

    Example:
        >>> image = rasterize(cells, cameras, background=torch.ones(3))  # doctest: +SKIP
        >>> (image.rgb - photograph).square().mean().backward()  # doctest: +SKIP

    Args:
        cells: N cells.
        cameras: C cameras with images of ``(H, W)``, on the device of the cells.
        adjacency: Overlapping balls, from :func:`overlap_neighbors`; made anew where None. One that was made
            with a margin may be kept while the cells move, as long as :meth:`Adjacency.holds` says so.
        background: RGB behind everything, broadcast to ``(C, H, W, 3)``; None for black.
        target: ``(C, H, W, 3)`` that each cell's own colour is compared with, for the error statistic.
        settings: Constants of the rendering.
        backend: ``"auto"``, ``"reference"``, ``"cpu"``, ``"cuda"`` or another installed one; or a renderer
            that was chosen before. ``"auto"`` takes the reference for float64.

    Returns:
        Images of ``(C, H, W, ...)`` and statistics of ``(C, N)``, in the dtype of the cells.

    Raises:
        ValueError: Shapes or devices do not fit, or the adjacency is not the cells'.
        Unavailable: The named backend cannot serve; with reason and fix.
    """
    settings = settings or Settings()
    _check_device(cells, cameras.camera_to_world)
    if adjacency is None:
        adjacency = overlap_neighbors(cells.centers, cells.radii)
    _check_adjacency(cells, adjacency)
    shape = (len(cameras), cameras.height, cameras.width)
    _check_target(target, shape)
    cameras = cameras.to(cells.dtype)
    if len(cells) == 0 or len(cameras) == 0:
        rendering = _nothing(cells, shape, (len(cameras), len(cells)), settings)
    else:
        renderer = _renderer("rasterize", cells, backend)
        rendering = renderer(cells, cameras, adjacency, settings, target)
    return _over(rendering, background)


def raytrace(
    cells: Cells,
    rays: Rays | Cameras,
    *,
    adjacency: Adjacency | None = None,
    background: Tensor | None = None,
    target: Tensor | None = None,
    settings: Settings | None = None,
    backend: str | Callable[..., Rendering] = "auto",
) -> Rendering:
    """Render rays with origins of their own by walking from cell to cell.

    Differentiable as :func:`rasterize`. For cameras both give the same image up to rounding if
    ``settings.stop`` is 0. Colours depend on the direction from each ray's origin to the site.

    Example:
        >>> diagram = power_diagram(cells.centers, cells.radii)  # doctest: +SKIP
        >>> image = raytrace(cells, cameras, adjacency=diagram)  # doctest: +SKIP

    Args:
        cells: N cells.
        rays: Rays of any batch shape, or cameras, whose rays share an eye and are rendered faster.
        adjacency: The power diagram, from :func:`power_diagram`; made anew where None, which takes long.
        background: RGB behind everything, broadcast to ``(..., 3)``; None for black.
        target: ``(..., 3)`` for the error statistic.
        settings: Constants of the rendering; ``near_plane`` is ignored.
        backend: As for :func:`rasterize`.

    Returns:
        Images of the rays' batch shape; statistics of ``(N,)`` for rays and ``(C, N)`` for cameras.

    Raises:
        ValueError: Shapes or devices do not fit, or the adjacency is not the cells'.
        Unavailable: The named backend cannot serve; with reason and fix.
    """
    settings = settings or Settings()
    if isinstance(rays, Cameras):
        _check_device(cells, rays.camera_to_world)
        shape: tuple[int, ...] = (len(rays), rays.height, rays.width)
        statistics: tuple[int, ...] = (len(rays), len(cells))
    else:
        _check_device(cells, rays.origins)
        shape, statistics = tuple(rays.shape), (len(cells),)
    rays = rays.to(cells.dtype)
    _check_target(target, shape)
    if len(cells) == 0 or 0 in shape:
        return _over(_nothing(cells, shape, statistics, settings), background)
    renderer = _renderer("raytrace", cells, backend)
    if adjacency is None:
        adjacency = power_diagram(cells.centers, cells.radii)
    _check_adjacency(cells, adjacency)
    if adjacency.kind != "diagram":
        raise ValueError(
            f"the ray tracer walks along the power diagram, got an adjacency of kind {adjacency.kind!r}; "
            "make one with power_diagram(cells.centers, cells.radii)."
        )
    return _over(renderer(cells, rays, adjacency, settings, target), background)


def _renderer(kind: Any, cells: Cells, backend: str | Callable[..., Rendering]) -> Callable[..., Rendering]:
    if callable(backend):
        return backend
    if backend == "auto" and cells.dtype == torch.float64:
        backend = "reference"
    environment = (os.environ.get(MODE_VARIABLE), os.environ.get(ALLOW_VARIABLE))
    return _chosen(kind, cells.device, backend, environment)


@functools.lru_cache(maxsize=64)
def _chosen(
    kind: Any, device: torch.device, backend: str, environment: tuple[str | None, ...]
) -> Callable[..., Rendering]:
    from graftwork.backends import choose

    return choose(SCENE, kind, device, backend).callable


def _check_device(cells: Cells, other: Tensor) -> None:
    if other.device != cells.device:
        raise ValueError(
            f"cells are on {cells.device}, the cameras or rays on {other.device}; move them with .to()."
        )


def _check_adjacency(cells: Cells, adjacency: Adjacency) -> None:
    if len(adjacency) != len(cells):
        raise ValueError(
            f"the adjacency was made for {len(adjacency)} cells, there are {len(cells)}; make it anew after "
            "cells were added, removed or sorted."
        )
    if adjacency.offsets.device != cells.device:
        raise ValueError(f"the adjacency is on {adjacency.offsets.device}, the cells on {cells.device}.")


def _check_target(target: Tensor | None, shape: tuple[int, ...]) -> None:
    if target is not None and tuple(target.shape) != (*shape, 3):
        raise ValueError(f"target must have shape {(*shape, 3)}, got {tuple(target.shape)}.")


def _over(rendering: Rendering, background: Tensor | None) -> Rendering:
    if background is None:
        return rendering
    if background.shape[-1:] != (3,):
        raise ValueError(f"background must end in 3 channels, got shape {tuple(background.shape)}.")
    return replace(rendering, rgb=rendering.rgb + (1 - rendering.alpha)[..., None] * background)


def _nothing(
    cells: Cells, shape: tuple[int, ...], statistics: tuple[int, ...], settings: Settings
) -> Rendering:
    """Return the images of a scene without cells, or of no rays, connected to the parameters."""
    like = cells.centers
    zero = sum(tensor.sum() for tensor in cells.tensors()) * 0
    image = like.new_zeros(shape) + zero
    return Rendering(
        rgb=image[..., None].expand(*shape, 3),
        alpha=image,
        depth=image[..., None].expand(*shape, len(settings.quantiles)) - 1,
        normal=image[..., None].expand(*shape, 3),
        facing=image,
        intersections=torch.zeros(shape, dtype=torch.int32, device=like.device),
        contribution=like.new_zeros(statistics) + zero,
        error=like.new_zeros(statistics),
        visible=torch.zeros(statistics, dtype=torch.bool, device=like.device),
    )
