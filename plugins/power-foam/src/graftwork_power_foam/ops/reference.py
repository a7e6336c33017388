"""The renderers in plain torch: the definition that every other backend is measured against.

Differentiable by autograd alone, in float32 and float64, on any device. Memory grows with rays times
overlapping balls, so this is for tests, small scenes, and machines without a compiler.

Legend: P rays, N cells, M (ray, cell) pairs whose ball is hit, S most pairs on one ray, D most neighbours of
a cell, K sites, L axes, Q quantiles.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from graftwork_power_foam.ops.adjacency import Adjacency
from graftwork_power_foam.ops.cameras import Cameras, Rays
from graftwork_power_foam.ops.cells import Cells, frames
from graftwork_power_foam.ops.rendering import Rendering, Settings

SITE_SHARPNESS = 10.0
_PAIRS_AT_ONCE = 1 << 24


def rasterize(
    cells: Cells,
    cameras: Cameras,
    adjacency: Adjacency,
    settings: Settings,
    target: Tensor | None = None,
) -> Rendering:
    """Render cameras; see :func:`graftwork_power_foam.rasterize`. The background stays black.

    Args:
        cells: The scene.
        cameras: C cameras, in the dtype and on the device of the scene.
        adjacency: Neighbours that clip each cell.
        settings: Constants.
        target: ``(C, H, W, 3)`` for the error statistic.

    Returns:
        The images over black.
    """
    rays = cameras.rays()
    forward = cameras.rotations[:, :, 2]
    depths = torch.einsum("cni,ci->cn", cells.centers - cameras.positions[:, None], forward)
    return _stacked(
        _render(
            cells,
            Rays(rays.origins[index], rays.directions[index]),
            adjacency,
            settings,
            None if target is None else target[index],
            candidates=depths[index] >= settings.near_plane,
        )
        for index in range(len(cameras))
    )


def raytrace(
    cells: Cells,
    rays: Rays | Cameras,
    adjacency: Adjacency,
    settings: Settings,
    target: Tensor | None = None,
) -> Rendering:
    """Render rays; see :func:`graftwork_power_foam.raytrace`. The background stays black.

    The reference does not walk from cell to cell: it sorts the cells of each ray, as the rasterizer does.

    Args:
        cells: The scene.
        rays: Any batch shape, or cameras; in the dtype and on the device of the scene.
        adjacency: Neighbours that clip each cell.
        settings: Constants.
        target: ``(..., 3)`` for the error statistic.

    Returns:
        The image over black.
    """
    shown = adjacency.shown() if adjacency.kind == "diagram" else None
    if isinstance(rays, Rays):
        return _render(cells, rays, adjacency, settings, target, candidates=shown)
    pixels = rays.rays()
    return _stacked(
        _render(
            cells,
            Rays(pixels.origins[index], pixels.directions[index]),
            adjacency,
            settings,
            None if target is None else target[index],
            candidates=shown,
        )
        for index in range(len(rays))
    )


def _stacked(renderings: Iterable[Rendering]) -> Rendering:
    return Rendering(*(torch.stack(parts) for parts in zip(*(vars(one).values() for one in renderings))))


def site_colors(axes: Tensor, colors: Tensor, toward: Tensor) -> Tensor:
    """Blend the colours of a spherical Voronoi diagram as seen along a direction.

    Args:
        axes: ``(..., L, 3)``, directions whose length is the sharpness.
        colors: ``(..., L, 3)``, offsets from 0.5.
        toward: ``(..., 3)``, unit vectors from the eye to the site.

    Returns:
        ``(..., 3)``, RGB, not negative.
    """
    sharpness = axes.norm(dim=-1)
    distance = (toward[..., None, :] - torch.nn.functional.normalize(axes, dim=-1)).norm(dim=-1)
    weights = torch.softmax(-sharpness * distance, -1)
    return (0.5 + (weights[..., None] * colors).sum(-2)).clamp(min=0)


@dataclass
class _Pairs:
    """(ray, cell) pairs sorted by ray, then front to back; ``slot`` counts within the ray."""

    ray: Tensor
    cell: Tensor
    slot: Tensor
    slots: int


def _render(
    cells: Cells,
    rays: Rays,
    adjacency: Adjacency,
    settings: Settings,
    target: Tensor | None,
    candidates: Tensor | None,
) -> Rendering:
    shape = rays.shape
    origins, directions = rays.origins.reshape(-1, 3), rays.directions.reshape(-1, 3)
    far = None if rays.far is None else rays.far.reshape(-1)
    count, size = len(origins), len(cells)
    earlier = adjacency.padded() < torch.arange(size, device=cells.device)[:, None]
    shadowed = (_identical(cells, adjacency) & earlier).any(-1)
    candidates = ~shadowed if candidates is None else candidates & ~shadowed
    pairs = _hit_pairs(cells, origins, directions, settings, candidates)
    origin, direction = origins[pairs.ray], directions[pairs.ray]
    limit = None if far is None else far[pairs.ray]
    normals, tangents, bitangents = frames(cells.quaternions)
    center, radius = cells.centers[pairs.cell], cells.radii[pairs.cell]
    normal, tangent, bitangent = normals[pairs.cell], tangents[pairs.cell], bitangents[pairs.cell]
    enter, leave = _clip(cells, origin, direction, center, radius, pairs, adjacency, settings)

    # the displaced plane: n.(x - c) = height(x), solved by one fixed-point step
    facing = (normal * direction).sum(-1)
    offset = ((center - origin) * normal).sum(-1)
    leaving = facing >= 0
    plane = _divide(offset, facing, settings.grazing)
    query = torch.where(leaving, enter, torch.minimum(torch.maximum(enter, plane), leave))
    weights = _site_weights(
        cells, pairs, origin + query[:, None] * direction - center, radius, tangent, bitangent
    )
    height = radius * (weights * cells.heights[pairs.cell]).sum(-1)
    surface = _divide(offset + height, facing, settings.grazing)
    valid = leave > enter
    enter = torch.where(leaving, enter, torch.maximum(enter, surface)).clamp(min=settings.near)
    leave = torch.where(leaving, torch.minimum(leave, surface), leave)
    leave = leave if limit is None else torch.minimum(leave, limit)
    valid = valid & (leave > enter)

    weights = _site_weights(
        cells, pairs, origin + enter[:, None] * direction - center, radius, tangent, bitangent
    )
    color = (weights[..., None] * _pair_colors(cells, pairs, origins)).sum(-2)

    # compositing on (P, S): empty slots have optical depth 0
    density = cells.density[pairs.cell]
    optical = torch.where(valid, density * (leave - enter), torch.zeros_like(density))
    grid = optical.new_zeros(count, pairs.slots).index_put((pairs.ray, pairs.slot), optical)
    before = grid.cumsum(-1) - grid
    alive = (-before).exp() >= settings.stop
    before, grid = (
        torch.where(alive, before, grid.new_zeros(())),
        torch.where(alive, grid, grid.new_zeros(())),
    )
    total = grid.sum(-1)
    before = before[pairs.ray, pairs.slot]
    optical = grid[pairs.ray, pairs.slot]
    weight = (-before).exp() * -torch.expm1(-optical)

    def gather(values: Tensor) -> Tensor:
        image = values.new_zeros(count, *values.shape[1:]).index_add(0, pairs.ray, values)
        return image.reshape(*shape, *values.shape[1:])

    depths = [_quantile_depth(q, count, pairs, before, optical, enter, density) for q in settings.quantiles]
    depth = torch.stack(depths, -1) if depths else grid.new_zeros(count, 0)
    per_pixel = 1.0 / max(count, 1)
    contribution = weight.new_zeros(size).index_add(0, pairs.cell, weight * per_pixel)
    error = weight.new_zeros(size)
    if target is not None:
        difference = (color - target.reshape(-1, 3)[pairs.ray]).abs().sum(-1)
        error = error.index_add(0, pairs.cell, (weight * difference).detach() * per_pixel)
    visible = torch.zeros(size, dtype=torch.bool, device=weight.device)
    visible[pairs.cell] = True
    return Rendering(
        rgb=gather(weight[:, None] * color),
        alpha=-torch.expm1(-total).reshape(shape),
        depth=depth.reshape(*shape, len(settings.quantiles)),
        normal=gather(weight[:, None] * normal),
        facing=gather(weight * facing.clamp(min=0) ** 2),
        intersections=gather((optical.detach() > 0).to(torch.int32)),
        contribution=contribution,
        error=error,
        visible=visible,
    )


@torch.no_grad()
def _identical(cells: Cells, adjacency: Adjacency) -> Tensor:
    """Say which neighbours ``(N, D)`` are the same ball; the first of several owns their cell."""
    padded = adjacency.padded()
    same = (cells.centers[padded] == cells.centers[:, None]).all(-1)
    return same & (cells.radii[padded] == cells.radii[:, None]) & (padded >= 0)


@torch.no_grad()
def _hit_pairs(
    cells: Cells, origins: Tensor, directions: Tensor, settings: Settings, candidates: Tensor
) -> _Pairs:
    """Find the balls on each ray and sort them by the power of the ray's origin, the exact visible order."""
    index = ((cells.density > 0) & candidates).nonzero().squeeze(1)
    centers, radii = cells.centers[index], cells.radii[index]
    rows, columns, keys = [], [], []
    chunk = max(1, _PAIRS_AT_ONCE // max(1, 3 * len(index)))
    for start in range(0, len(origins), chunk):
        to_center = centers - origins[start : start + chunk, None]
        direction = directions[start : start + chunk, None]
        along = (to_center * direction).sum(-1)
        square = to_center.square().sum(-1)
        half = radii.square() - (to_center - along[..., None] * direction).square().sum(-1)
        hit = (half > 0) & (along + half.clamp(min=0).sqrt() > settings.near)
        hit &= square >= (settings.near_radii * radii).square()
        hit &= direction.square().sum(-1) > 0
        row, column = hit.nonzero(as_tuple=True)
        rows.append(row + start)
        columns.append(index[column])
        distance = square[row, column].sqrt()
        keys.append((distance - radii[column]) * (distance + radii[column]))
    if not rows:
        rows, columns, keys = [index[:0]], [index[:0]], [radii[:0]]
    ray, cell, key = torch.cat(rows), torch.cat(columns), torch.cat(keys)
    order = torch.argsort(key, stable=True)
    order = order[torch.argsort(ray[order], stable=True)]
    ray, cell = ray[order], cell[order]
    counts = torch.bincount(ray, minlength=len(origins))
    slot = torch.arange(len(ray), device=ray.device) - (counts.cumsum(0) - counts)[ray]
    return _Pairs(ray, cell, slot, int(counts.max()) if len(counts) else 0)


def _divide(numerator: Tensor, cosine: Tensor, grazing: float) -> Tensor:
    """Divide exactly, with gradients that divide by a cosine clamped away from zero."""
    # a ray parallel to the surface lies on one side of it: the quotient is plus or minus infinity
    tiny = torch.finfo(cosine.dtype).tiny ** 0.5
    safe = torch.where(cosine.abs() < tiny, torch.where(cosine < 0, -tiny, tiny), cosine)
    value = (numerator / safe).detach()
    clamped = torch.where(cosine.abs() < grazing, torch.where(cosine < 0, -grazing, grazing), safe).detach()
    change = (numerator - value * cosine) / clamped
    return value + (change - change.detach())


def _clip(
    cells: Cells,
    origin: Tensor,
    direction: Tensor,
    center: Tensor,
    radius: Tensor,
    pairs: _Pairs,
    adjacency: Adjacency,
    settings: Settings,
) -> tuple[Tensor, Tensor]:
    """Intersect each pair's ball with the half-spaces of the cell's neighbours."""
    to_center = center - origin
    along = (to_center * direction).sum(-1)
    half = radius.square() - (to_center - along[:, None] * direction).square().sum(-1)
    root = half.detach().clamp(min=0).sqrt()
    # root has value sqrt(half) and a gradient that is clamped like those of the planes
    slope = torch.maximum(root, settings.grazing * radius.detach())
    slope = slope.clamp(min=torch.finfo(root.dtype).tiny ** 0.5)
    change = half / (2 * slope)
    root = root + (change - change.detach())
    ends = [along - root, along + root]
    for index, wall in enumerate(_nearest_walls(cells, origin, direction, pairs, adjacency)):
        some = (wall >= 0).nonzero().squeeze(1)
        other = wall[some]
        toward = cells.centers[other] - center[some]
        offset = 0.5 * (toward.square().sum(-1) + radius[some].square() - cells.radii[other].square())
        numerator = offset + (toward * to_center[some]).sum(-1)
        length = toward.detach().norm(dim=-1).clamp(min=torch.finfo(root.dtype).tiny ** 0.5)
        cosine = (toward * direction[some]).sum(-1)
        distance = _divide(numerator / length, cosine / length, settings.grazing)
        nearer = torch.maximum if index == 0 else torch.minimum
        ends[index] = ends[index].index_put((some,), nearer(ends[index][some], distance))
    enter, leave = ends
    return enter, leave


@torch.no_grad()
def _nearest_walls(
    cells: Cells, origin: Tensor, direction: Tensor, pairs: _Pairs, adjacency: Adjacency
) -> tuple[Tensor, Tensor]:
    """Return the neighbour behind the last wall that is entered and the first that is left, -1 for none."""
    padded = adjacency.padded()
    walls = (padded >= 0) & ~_identical(cells, adjacency)
    near, far = torch.full_like(pairs.cell, -1), torch.full_like(pairs.cell, -1)
    chunk = max(1, _PAIRS_AT_ONCE // max(1, 3 * padded.shape[1]))
    for start in range(0, len(pairs.cell), chunk):
        part = slice(start, start + chunk)
        cell = pairs.cell[part]
        neighbors = padded[cell]
        some = walls[cell]
        center, radius = cells.centers[cell], cells.radii[cell]
        toward = cells.centers[neighbors] - center[:, None]
        offset = 0.5 * (
            toward.square().sum(-1) + (radius.square()[:, None] - cells.radii[neighbors].square())
        )
        numerator = offset + (toward * (center - origin[part])[:, None]).sum(-1)
        cosine = (toward * direction[part][:, None]).sum(-1)
        tiny = torch.finfo(cosine.dtype).tiny ** 0.5
        distance = numerator / torch.where(cosine.abs() < tiny, torch.where(cosine < 0, -tiny, tiny), cosine)
        if padded.shape[1] == 0:
            continue
        entered = torch.where(some & (cosine < 0), distance, -torch.inf).max(-1)
        left = torch.where(some & (cosine >= 0), distance, torch.inf).min(-1)
        near[part] = torch.where(
            entered.values > -torch.inf, neighbors.gather(1, entered.indices[:, None])[:, 0], -1
        )
        far[part] = torch.where(left.values < torch.inf, neighbors.gather(1, left.indices[:, None])[:, 0], -1)
    return near, far


def _site_weights(
    cells: Cells, pairs: _Pairs, point: Tensor, radius: Tensor, tangent: Tensor, bitangent: Tensor
) -> Tensor:
    """Return the soft Voronoi weights ``(M, K)`` of the detail sites at points relative to the centres.

    The paper's distances are three-dimensional; the part along the normal is common to all sites of a cell
    and cancels in the normalisation.
    """
    sites = cells.sites[pairs.cell]
    u = (point * tangent).sum(-1) / radius
    v = (point * bitangent).sum(-1) / radius
    square = (u[:, None] - sites[..., 0]).square() + (v[:, None] - sites[..., 1]).square()
    return torch.softmax(-SITE_SHARPNESS * square, -1)


def _pair_colors(cells: Cells, pairs: _Pairs, origins: Tensor) -> Tensor:
    """Return the site colours ``(M, K, 3)`` as seen from each ray's origin."""
    _, tangents, bitangents = frames(cells.quaternions)
    with torch.no_grad():  # by design no gradient moves a site to change how it is seen
        sites = cells.centers[:, None] + cells.radii[:, None, None] * (
            cells.sites[..., :1] * tangents[:, None] + cells.sites[..., 1:] * bitangents[:, None]
        )
        shared = bool(len(origins)) and bool((origins == origins[0]).all())
    if shared:
        toward = torch.nn.functional.normalize(sites - origins[0], dim=-1)
        return site_colors(cells.axes, cells.colors, toward)[pairs.cell]
    toward = torch.nn.functional.normalize(sites[pairs.cell] - origins[pairs.ray][:, None], dim=-1)
    return site_colors(cells.axes[pairs.cell], cells.colors[pairs.cell], toward)


def _quantile_depth(
    quantile: float,
    count: int,
    pairs: _Pairs,
    before: Tensor,
    optical: Tensor,
    enter: Tensor,
    density: Tensor,
) -> Tensor:
    """Return the ``(P,)`` lengths at which the transmittance falls below a level, -1 where it does not."""
    level = -torch.log(torch.as_tensor(quantile, dtype=before.dtype, device=before.device))
    crossing = ((before <= level) & (before + optical > level)).nonzero().squeeze(1)
    length = enter[crossing] + (level - before[crossing]) / density[crossing]
    return before.new_full((count,), -1.0).index_put((pairs.ray[crossing],), length)
