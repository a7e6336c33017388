"""Neighbours: exact, with a margin that keeps them exact while balls move; the complete power diagram."""

from __future__ import annotations

import pytest
import torch
from foam_scenes import camera, random_cells

from graftwork_power_foam import Rays, Settings, add_steiner_cells, overlap_neighbors, power, power_diagram
from graftwork_power_foam.ops import neighbors, reference


def pairs(offsets: torch.Tensor, found: torch.Tensor) -> set[tuple[int, int]]:
    row = torch.repeat_interleave(torch.arange(len(offsets) - 1), offsets.diff().long())
    return set(zip(row.tolist(), found.tolist()))


@pytest.mark.parametrize("spread", [0.0, 2.0], ids=["equal radii", "radii from tiny to huge"])
@pytest.mark.parametrize("margin", [0.0, 0.05])
def test_tree_finds_what_brute_force_finds(spread: float, margin: float) -> None:
    draw = torch.Generator().manual_seed(0)
    centers = torch.randn(2000, 3, generator=draw)
    radii = 0.1 * torch.exp(spread * torch.randn(2000, generator=draw).clamp(max=1.0))
    found = pairs(*neighbors.overlaps(centers, radii, margin))
    gap = (centers[:, None].double() - centers.double()).norm(dim=-1) - (radii[:, None] + radii).double()
    gap.fill_diagonal_(1.0)
    must = set(map(tuple, (gap < margin - 1e-5).nonzero().tolist()))
    may = set(map(tuple, (gap < margin + 1e-4).nonzero().tolist()))
    assert must <= found <= may
    assert len(must) > 2000


def test_rows_start_with_the_wall_that_cuts_most() -> None:
    cells = random_cells(300, dtype=torch.float32)
    adjacency = overlap_neighbors(cells.centers, cells.radii)
    padded = adjacency.padded()
    toward = cells.centers[padded] - cells.centers[:, None]
    square = toward.square().sum(-1)
    distance = 0.5 * (square + cells.radii.square()[:, None] - cells.radii[padded].square()) / square.sqrt()
    both = (padded[:, 1:] >= 0).nonzero(as_tuple=True)
    assert bool((distance[:, 1:][both] >= distance[:, :-1][both] - 1e-6).all())


def test_margin_keeps_the_list_exact_while_balls_move() -> None:
    cells = random_cells(300, dtype=torch.float32)
    margin = 0.1
    adjacency = overlap_neighbors(cells.centers, cells.radii, margin)
    draw = torch.Generator().manual_seed(1)
    step = torch.nn.functional.normalize(torch.randn(300, 3, generator=draw), dim=-1)
    centers, radii = cells.centers + 0.03 * step, cells.radii + 0.019
    assert adjacency.holds(centers, radii)
    now = overlap_neighbors(centers, radii)
    assert pairs(now.offsets, now.neighbors) <= pairs(adjacency.offsets, adjacency.neighbors)
    assert not adjacency.holds(cells.centers + 0.06 * step, cells.radii)
    assert not adjacency.holds(cells.centers[:-1], cells.radii[:-1])


def test_longer_list_gives_the_same_image() -> None:
    cells = random_cells(60)
    images = [
        reference.rasterize(
            cells, camera(24), overlap_neighbors(cells.centers, cells.radii, margin), Settings(stop=0.0)
        )
        for margin in (0.0, 0.3)
    ]
    torch.testing.assert_close(images[0].rgb, images[1].rgb)


def owners_by_clipping(points: torch.Tensor, centers: torch.Tensor, radii: torch.Tensor) -> torch.Tensor:
    diagram = power_diagram(centers, radii)
    padded = diagram.padded()
    toward = centers[padded] - centers[:, None]
    wall = 0.5 * (toward.square().sum(-1) + radii.square()[:, None] - radii[padded].square())
    beyond = torch.einsum("pni,ndi->pnd", points[:, None] - centers, toward) > wall
    claims = ~(beyond & (padded >= 0)).any(-1) & diagram.shown()
    assert bool((claims.sum(-1) == 1).all()), "cells overlap or leave a gap"
    return claims.int().argmax(-1)


@pytest.mark.parametrize("seed", [0, 1])
def test_power_diagram_partitions_all_space(seed: int) -> None:
    cells = random_cells(150, seed=seed)
    points = 3 * torch.randn(2000, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    owner = power(points[:, None], cells.centers, cells.radii).argmin(-1)
    assert torch.equal(owners_by_clipping(points, cells.centers, cells.radii), owner)


def test_hidden_balls_have_no_walls() -> None:
    cells = random_cells(30)
    centers = torch.cat([cells.centers, cells.centers[:5] + 0.01])
    radii = torch.cat([cells.radii, 0.01 * torch.ones(5, dtype=torch.float64)])
    shown = power_diagram(centers, radii).shown()
    assert bool(shown[:30].any())
    assert not bool(shown[30:].any())


@pytest.mark.parametrize("shape", ["plane", "line", "grid", "one", "two", "same"])
def test_power_diagram_of_degenerate_balls(shape: str) -> None:
    step = torch.arange(5, dtype=torch.float64)
    centers = {
        "plane": torch.cartesian_prod(step, step, torch.zeros(1, dtype=torch.float64)),
        "line": torch.stack([torch.arange(20.0).double(), *torch.zeros(2, 20).double()], -1),
        "grid": torch.cartesian_prod(step, step, step),
        "one": torch.zeros(1, 3, dtype=torch.float64),
        "two": torch.tensor([[0.0, 0, 0], [1, 0, 0]], dtype=torch.float64),
        "same": torch.zeros(12, 3, dtype=torch.float64),
    }[shape]
    radii = torch.full((len(centers),), 0.6, dtype=torch.float64)
    points = 2 + 2 * torch.randn(500, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    owner = power(points[:, None], centers, radii).argmin(-1)
    found = owners_by_clipping(points, centers, radii)
    torch.testing.assert_close(
        power(points, centers[found], radii[found]), power(points, centers[owner], radii[owner])
    )


def test_steiner_cells_leave_the_image_and_shorten_walks() -> None:
    cells = random_cells(60, radius=0.12)
    more = add_steiner_cells(cells, generator=torch.Generator().manual_seed(0))
    assert len(more) > len(cells)
    rays = camera(16).rays()
    rays = Rays(rays.origins[0], rays.directions[0])
    settings = Settings(stop=0.0)
    before = reference.raytrace(cells, rays, power_diagram(cells.centers, cells.radii), settings)
    after = reference.raytrace(more, rays, power_diagram(more.centers, more.radii), settings)
    torch.testing.assert_close(before.rgb, after.rgb)
    gap = torch.cdist(more.centers[60:], cells.centers) - more.radii[60:, None] - cells.radii
    assert bool((gap > 0).all())


def test_bad_balls_are_named() -> None:
    centers, radii = torch.zeros(4, 3), torch.tensor([1.0, 1.0, -1.0, 1.0])
    with pytest.raises(ValueError, match="cell 2 of 4 is no ball"):
        overlap_neighbors(centers, radii)
    with pytest.raises(ValueError, match="margin must not be negative"):
        overlap_neighbors(centers, radii.abs(), -0.1)
