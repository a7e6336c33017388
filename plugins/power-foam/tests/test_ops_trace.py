"""The C++ ray tracer against the rasterizer and the reference."""

from __future__ import annotations

import pytest
import torch
from foam_scenes import camera, leaves, psnr, random_cells, random_rays, relative

from graftwork import extension
from graftwork_power_foam import (
    Cells,
    Rays,
    Rendering,
    Settings,
    Sphere,
    add_steiner_cells,
    power_diagram,
    rasterize,
    raytrace,
    raytrace_with_sphere,
    reflect,
    refract,
)
from graftwork_power_foam.ops import native

IMAGES = ("rgb", "alpha", "depth", "normal", "facing")
EXACT = Settings(stop=0.0, grazing=0.0, quantiles=(0.8, 0.5))
SINGLE = torch.float32


@pytest.fixture(scope="module", autouse=True)
def library() -> None:
    try:
        extension.load(native.CPU)
    except extension.Unavailable as error:
        pytest.skip(str(error))


def both(
    cells: Cells, rays: Rays, settings: Settings = EXACT
) -> tuple[tuple[Cells, Rendering], tuple[Cells, Rendering]]:
    """Trace the same float32 numbers natively and, in float64, by the reference."""
    single, double = leaves(cells.to(SINGLE)), leaves(cells.to(SINGLE).to(torch.float64))
    diagram = power_diagram(single.centers, single.radii)
    rays = rays.to(SINGLE)
    ours = raytrace(single, rays, adjacency=diagram, settings=settings, backend="cpu")
    theirs = raytrace(
        double, rays.to(torch.float64), adjacency=diagram, settings=settings, backend="reference"
    )
    return (single, ours), (double, theirs)


def check_images(ours: Rendering, theirs: Rendering, tolerance: float = 1e-4) -> None:
    for name in (*IMAGES, "contribution"):
        difference = (getattr(ours, name).double() - getattr(theirs, name)).abs()
        assert float((difference > tolerance).double().mean()) < 3e-3, (
            f"{name}: {float(difference.max()):.2g}"
        )


def gradients(cells: Cells, image: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    draw = torch.Generator().manual_seed(1)
    upstream = torch.randn(image.shape, generator=draw).to(image)
    return torch.autograd.grad(
        (image * upstream).sum(), cells.tensors(), retain_graph=True, allow_unused=True
    )


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ray_tracer_and_rasterizer_give_the_same_image(seed: int) -> None:
    cells = random_cells(300, seed=seed, dtype=SINGLE, radius=0.3)
    view = camera(64, dtype=SINGLE)
    rastered = rasterize(cells, view, settings=EXACT, backend="cpu")
    traced = raytrace(cells, view, settings=EXACT, backend="cpu")
    assert psnr(rastered.rgb, traced.rgb) > 60
    assert psnr(rastered.alpha, traced.alpha) > 60
    assert psnr(0.5 * rastered.normal, 0.5 * traced.normal) > 60
    torch.testing.assert_close(rastered.contribution, traced.contribution, atol=1e-5, rtol=1e-2)


@pytest.mark.parametrize("image", [*IMAGES, "contribution"])
def test_gradients_for_cameras_equal_the_rasterizers(image: str) -> None:
    cells = leaves(random_cells(150, dtype=SINGLE))
    view = camera(48, dtype=SINGLE)
    rastered = rasterize(cells, view, settings=EXACT, backend="cpu")
    traced = raytrace(cells, view, settings=EXACT, backend="cpu")
    for one, other in zip(
        gradients(cells, getattr(traced, image)), gradients(cells, getattr(rastered, image))
    ):
        assert relative(one, other) < 0.01


@pytest.mark.parametrize("seed", [0, 1])
def test_rays_with_their_own_origins_equal_the_reference(seed: int) -> None:
    (_, ours), (_, theirs) = both(random_cells(150, seed=seed), random_rays(seed=seed))
    check_images(ours, theirs)


@pytest.mark.parametrize("image", [*IMAGES, "contribution"])
def test_gradients_of_own_rays_equal_the_reference(image: str) -> None:
    (single, ours), (double, theirs) = both(random_cells(120), random_rays())
    found = gradients(single, getattr(ours, image))
    expected = gradients(double, getattr(theirs, image))
    errors = {name: relative(one, other) for (name, _), one, other in zip(single.named(), found, expected)}
    assert max(errors.values()) < 0.01, errors


def test_other_numbers_of_sites_and_axes() -> None:
    (single, ours), (double, theirs) = both(random_cells(60, sites=3, axes=5), random_rays(200))
    check_images(ours, theirs)
    for one, other in zip(gradients(single, ours.rgb), gradients(double, theirs.rgb)):
        assert relative(one, other) < 0.01


def test_rays_end_where_they_are_told() -> None:
    rays = random_rays()
    far = torch.linspace(0.2, 3.0, 300, dtype=torch.float64)
    cells = random_cells(120)
    (single, ours), (double, theirs) = both(cells, Rays(rays.origins, rays.directions, far))
    check_images(ours, theirs)
    for one, other in zip(gradients(single, ours.rgb), gradients(double, theirs.rgb)):
        assert relative(one, other) < 0.01
    assert float((ours.alpha < both(cells, rays)[0][1].alpha).double().mean()) > 0.1


@pytest.mark.parametrize(
    "settings",
    [Settings(stop=0.05), Settings(near=0.5), Settings(near_radii=4.0)],
    ids=["stop", "near", "radii"],
)
def test_every_constant_means_the_same(settings: Settings) -> None:
    (_, ours), (_, theirs) = both(random_cells(100), random_rays(), settings)
    check_images(ours, theirs)


def test_rays_of_any_batch_shape() -> None:
    cells, rays = random_cells(60, dtype=SINGLE), random_rays(120, dtype=SINGLE)
    flat = raytrace(cells, rays, backend="cpu")
    for shape in ((120,), (12, 10), (3, 8, 5)):
        shaped = Rays(rays.origins.view(*shape, 3), rays.directions.view(*shape, 3))
        image = raytrace(cells, shaped, backend="cpu")
        assert image.rgb.shape == (*shape, 3)
        assert image.depth.shape == (*shape, 1)
        assert image.contribution.shape == (60,)
        torch.testing.assert_close(image.rgb.reshape(-1, 3), flat.rgb)


def test_hidden_and_single_cells() -> None:
    rays = camera(24).rays()
    cells = random_cells(2).with_(
        centers=torch.tensor([[0.0, 0, 0], [0.3, 0, 0]]).double(), radii=torch.tensor([1.0, 0.2]).double()
    )
    (_, two), _ = both(cells, rays)
    (_, one), (_, expected) = both(cells.select(torch.tensor([0])), rays)
    torch.testing.assert_close(two.rgb, one.rgb)
    check_images(one, expected)
    assert float(one.alpha.max()) > 0.5


def test_steiner_cells_change_nothing() -> None:
    cells = random_cells(200, radius=0.12, dtype=SINGLE)
    more = add_steiner_cells(cells, generator=torch.Generator().manual_seed(0))
    view = camera(48, dtype=SINGLE)
    assert (
        psnr(
            raytrace(cells, view, settings=EXACT, backend="cpu").rgb,
            raytrace(more, view, settings=EXACT, backend="cpu").rgb,
        )
        > 60
    )


def test_threads_do_not_change_a_bit() -> None:
    cells, rays = leaves(random_cells(200, dtype=SINGLE)), random_rays(500, dtype=SINGLE)
    diagram = power_diagram(cells.centers, cells.radii)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            image = raytrace(cells, rays, adjacency=diagram, backend="cpu")
            results.append((image.rgb, *torch.autograd.grad(image.rgb.square().sum(), cells.tensors())))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, other) for one, other in zip(*results))


def test_walking_needs_the_diagram() -> None:
    from graftwork_power_foam import overlap_neighbors

    cells = random_cells(20, dtype=SINGLE)
    with pytest.raises(ValueError, match="power_diagram"):
        raytrace(cells, random_rays(4, dtype=SINGLE), adjacency=overlap_neighbors(cells.centers, cells.radii))


def test_mirror_shows_the_mirrored_scene() -> None:
    """A plane mirror at z = -2 shows what rays from behind it would see of the scene mirrored."""
    cells = random_cells(120)
    rays = random_rays(200)
    down = torch.tensor([0.0, 0, 1], dtype=torch.float64)
    toward = torch.nn.functional.normalize(rays.directions * torch.tensor([0.2, 0.2, 1.0]), dim=-1)
    toward[:, 2] = -toward[:, 2].abs()
    distance = (-2 - rays.origins[:, 2]) / toward[:, 2]
    keep = distance > 0
    rays, distance = Rays(rays.origins[keep], toward[keep]), distance[keep]
    sent_on = reflect(rays, distance, down.expand_as(rays.origins), offset=0.0)
    torch.testing.assert_close(sent_on.origins[:, 2], torch.full_like(distance, -2.0))
    torch.testing.assert_close(sent_on.directions, rays.directions * torch.tensor([1.0, 1.0, -1.0]))
    (_, ours), (_, theirs) = both(cells, sent_on)
    check_images(ours, theirs)
    assert float(ours.alpha.mean()) > 0.05


def test_refraction_obeys_snells_law() -> None:
    angles = torch.linspace(0.0, 1.5, 16, dtype=torch.float64)
    directions = torch.stack([angles.sin(), torch.zeros_like(angles), -angles.cos()], -1)
    rays = Rays(torch.zeros_like(directions), directions)
    normal = torch.tensor([0.0, 0, 1], dtype=torch.float64).expand_as(directions)
    bent, total = refract(rays, torch.ones_like(angles), normal, 1 / 1.5)
    assert not bool(total.any())
    torch.testing.assert_close(bent.directions[:, 0] * 1.5, angles.sin())
    _, total = refract(rays, torch.ones_like(angles), normal, 1.5)
    assert torch.equal(total, angles.sin() * 1.5 > 1)


def test_glass_of_index_one_is_not_there() -> None:
    cells = random_cells(120)
    diagram = power_diagram(cells.centers, cells.radii)
    rays = camera(16).rays()

    def render(rays: Rays) -> Rendering:
        return raytrace(cells, rays, adjacency=diagram, settings=EXACT)

    glass = Sphere(torch.zeros(3, dtype=torch.float64), 0.4, index=1.0)
    flat = cells.with_(axes=cells.axes * 1e-9)  # colours depend on the origin of the ray, which moves
    cells = flat
    color, alpha = raytrace_with_sphere(render, rays, glass)
    plain = render(rays)
    torch.testing.assert_close(alpha, plain.alpha, atol=2e-3, rtol=0)
    torch.testing.assert_close(color, plain.rgb, atol=2e-2, rtol=0)
    mirror, _ = raytrace_with_sphere(render, rays, Sphere(torch.zeros(3, dtype=torch.float64), 0.4))
    assert float((mirror - plain.rgb).abs().max()) > 0.1
