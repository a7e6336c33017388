"""The mathematics of the reference against definitions that share no code with it."""

from __future__ import annotations

import math

import pytest
import torch
from foam_scenes import camera, random_cells

from graftwork_power_foam.ops import reference
from graftwork_power_foam.ops.adjacency import overlap_neighbors
from graftwork_power_foam.ops.cameras import Rays
from graftwork_power_foam.ops.cells import Cells, frames, power
from graftwork_power_foam.ops.rendering import Rendering, Settings

EXACT = Settings(stop=0.0, grazing=0.0)


def render(cells: Cells, settings: Settings = EXACT, size: int = 24) -> Rendering:
    adjacency = overlap_neighbors(cells.centers, cells.radii)
    return reference.rasterize(cells, camera(size, dtype=cells.dtype), adjacency, settings)


def powers(points: torch.Tensor, cells: Cells) -> torch.Tensor:
    """Return the power of every point in every ball, from the expanded squares."""
    constant = cells.centers.square().sum(-1) - cells.radii.square()
    return points.square().sum(-1, keepdim=True) - 2 * points @ cells.centers.T + constant


def march(cells: Cells, rays: Rays, steps: int = 6000, end: float = 5.0) -> tuple[torch.Tensor, ...]:
    """Integrate density and normals along rays by sampling the definition of a flat dipole cell."""
    distances = (torch.arange(steps, dtype=cells.dtype) + 0.5) * (end / steps)
    normals, _, _ = frames(cells.quaternions)
    points = rays.origins[:, None] + distances[:, None] * rays.directions[:, None]
    smallest, owner = powers(points, cells).min(-1)
    filled = ((points - cells.centers[owner]) * normals[owner]).sum(-1) < 0
    optical = torch.where((smallest < 0) & filled, cells.density[owner], 0.0) * (end / steps)
    before = optical.cumsum(-1) - optical
    weight = torch.exp(-before) * -torch.expm1(-optical)
    median = torch.where(before + optical > math.log(2), distances, torch.inf).min(-1).values
    return 1 - torch.exp(-optical.sum(-1)), (weight[..., None] * normals[owner]).sum(-2), median


def test_flat_cells_look_like_their_sampled_definition() -> None:
    cells = random_cells(40, heights=0.0)
    rays = camera(12).rays()
    rays = Rays(rays.origins.reshape(-1, 3), rays.directions.reshape(-1, 3))
    alpha, normal, median = march(cells, rays)
    adjacency = overlap_neighbors(cells.centers, cells.radii)
    image = reference.raytrace(cells, rays, adjacency, EXACT)
    torch.testing.assert_close(image.alpha, alpha, atol=1e-2, rtol=0)
    torch.testing.assert_close(image.normal, normal, atol=1e-2, rtol=0)
    reached = image.depth[:, 0] > 0
    assert torch.equal(reached, median.isfinite())
    torch.testing.assert_close(image.depth[reached, 0], median[reached], atol=6e-3, rtol=0)


def test_gradients_agree_with_finite_differences() -> None:
    cells = random_cells(8, sites=3, axes=2, radius=0.8, density=2.0, heights=0.1)
    adjacency = overlap_neighbors(cells.centers, cells.radii, margin=0.1)
    view = camera(6)

    def images(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        result = reference.rasterize(Cells(*tensors), view, adjacency, EXACT)
        return result.rgb, result.alpha, result.depth, result.normal, result.facing, result.contribution

    # a site's colour depends on its direction, which is not differentiated: keep it fixed for positions
    flat = cells.with_(axes=cells.axes * 1e-9)
    tensors = tuple(tensor.clone().requires_grad_() for tensor in flat.tensors()[:6])
    assert torch.autograd.gradcheck(
        lambda *geometry: images(*geometry, flat.axes, flat.colors),
        tensors,
        eps=1e-7,
        atol=2e-4,
        rtol=1e-3,
        fast_mode=True,
    )
    look = tuple(tensor.clone().requires_grad_() for tensor in cells.tensors()[6:])
    assert torch.autograd.gradcheck(
        lambda *appearance: images(*cells.tensors()[:6], *appearance),
        look,
        eps=1e-6,
        atol=1e-6,
        fast_mode=True,
    )


def test_grazing_only_damps_gradients() -> None:
    cells = random_cells(30)
    results = []
    for grazing in (0.0, 0.3):
        centers = cells.centers.clone().requires_grad_()
        image = render(cells.with_(centers=centers), Settings(stop=0.0, grazing=grazing))
        image.alpha.sum().backward()
        results.append((image.rgb.detach(), centers.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert results[1][1].norm() < results[0][1].norm()


def test_overlapping_balls_suffice_to_find_the_owner() -> None:
    """Clipping by overlapping balls gives every point of a ball exactly one owner: the least power."""
    count, samples = 150, 1000
    for seed in range(3):
        cells = random_cells(count, seed=seed)
        padded = overlap_neighbors(cells.centers, cells.radii).padded()
        draw = torch.Generator().manual_seed(seed)
        offset = torch.randn(samples, 3, generator=draw, dtype=torch.float64)
        pick = torch.randint(count, (samples,), generator=draw)
        length = torch.rand(samples, generator=draw, dtype=torch.float64)[:, None]
        unit = offset / offset.norm(dim=-1, keepdim=True)
        points = cells.centers[pick] + cells.radii[pick, None] * length * unit
        toward = cells.centers[padded] - cells.centers[:, None]
        squares = cells.radii.square()
        wall = 0.5 * (toward.square().sum(-1) + squares[:, None] - squares[padded])
        relative = points[:, None] - cells.centers
        beyond = torch.einsum("pni,ndi->pnd", relative, toward) > wall
        beyond &= padded >= 0
        claims = (relative.norm(dim=-1) < cells.radii) & ~beyond.any(-1)
        assert bool((claims.sum(-1) == 1).all())
        assert torch.equal(claims.int().argmax(-1), powers(points, cells).argmin(-1))


def test_power_of_the_eye_orders_the_cells_of_every_ray() -> None:
    violations = segments = 0
    for seed in range(5):
        cells = random_cells(200, seed=seed, density=0.3)
        draw = torch.Generator().manual_seed(seed)
        directions = torch.nn.functional.normalize(
            torch.randn(60, 3, generator=draw, dtype=torch.float64), dim=-1
        )
        eye = 2 * torch.rand(3, generator=draw, dtype=torch.float64) - 1
        distances = torch.linspace(0, 4, 3001, dtype=torch.float64)
        points = eye + distances[:, None] * directions[:, None]
        owner = powers(points, cells).argmin(-1)
        at_eye = power(eye, cells.centers, cells.radii)
        steps = at_eye[owner].diff(dim=-1)
        changes = owner.diff(dim=-1) != 0
        segments += int(changes.sum())
        violations += int((steps[changes] < 0).sum())
    assert segments > 1200
    assert violations == 0


def test_hidden_cell_is_invisible() -> None:
    # the small ball lies within the large one and nowhere has the smaller power
    cells = random_cells(2)
    cells = cells.with_(
        centers=torch.tensor([[0.0, 0, 0], [0.3, 0, 0]]).double(), radii=torch.tensor([1.0, 0.2]).double()
    )
    both, large = render(cells), render(cells.select(torch.tensor([0])))
    torch.testing.assert_close(both.rgb, large.rgb)
    assert both.contribution[0, 1] == 0


def test_camera_inside_a_cell_sees_it() -> None:
    eye = torch.tensor([[2.5, 1.0, 0.8]], dtype=torch.float64)
    cells = random_cells(1, heights=0.0).with_(centers=eye, radii=torch.ones(1, dtype=torch.float64))
    toward_camera = torch.tensor([[0.0, 0.0, 0.0, 1.0]], dtype=torch.float64)  # normal +x turned to -x
    cells = cells.with_(quaternions=toward_camera.roll(1, -1))
    facing_it = (frames(cells.quaternions)[0] * camera().rays().directions).sum(-1) < 0
    image = render(cells)
    expected = 1 - torch.exp(-cells.density)  # from the plane through the eye to the ball around it
    torch.testing.assert_close(image.alpha, torch.where(facing_it, expected, 0.0))
    assert bool(facing_it.any())
    assert render(cells, Settings(near_radii=4.0)).alpha.sum() == 0


def test_empty_scene_is_black() -> None:
    image = render(random_cells(3).select(torch.zeros(0, dtype=torch.long)))
    assert image.rgb.shape == (1, 21, 24, 3)
    assert float(image.rgb.abs().sum()) == 0
    assert float(image.alpha.sum()) == 0
    assert bool((image.depth == -1).all())


def test_far_end_of_a_ray_hides_what_is_behind() -> None:
    cells = random_cells(40)
    adjacency = overlap_neighbors(cells.centers, cells.radii)
    rays = camera(12).rays()
    whole = reference.raytrace(cells, rays, adjacency, EXACT)
    depth = whole.depth[..., 0]
    half = Rays(rays.origins, rays.directions, torch.where(depth > 0, depth, 9.0))
    cut = reference.raytrace(cells, half, adjacency, EXACT)
    torch.testing.assert_close(cut.alpha[depth > 0], torch.full_like(cut.alpha[depth > 0], 0.5))


@pytest.mark.parametrize("quantile", [0.9, 0.5, 0.1])
def test_depth_is_where_the_transmittance_falls_below_the_quantile(quantile: float) -> None:
    cells = random_cells(40)
    adjacency = overlap_neighbors(cells.centers, cells.radii)
    rays = camera(12).rays()
    depth = reference.raytrace(cells, rays, adjacency, Settings((quantile,), stop=0.0)).depth[..., 0]
    cut = reference.raytrace(cells, Rays(rays.origins, rays.directions, depth.clamp(min=0)), adjacency, EXACT)
    torch.testing.assert_close(1 - cut.alpha[depth > 0], torch.full_like(depth[depth > 0], quantile))
