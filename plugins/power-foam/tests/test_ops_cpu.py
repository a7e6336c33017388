"""The C++ rasterizer against the reference in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from foam_scenes import camera, leaves, look_at, random_cells, relative

from graftwork import extension
from graftwork_power_foam import Cameras, Cells, Lens, Rendering, Settings, overlap_neighbors, rasterize
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
    cells: Cells, cameras: Cameras, settings: Settings = EXACT, target: torch.Tensor | None = None
) -> tuple[tuple[Cells, Rendering], tuple[Cells, Rendering]]:
    """Render the same float32 numbers natively and, in float64, by the reference."""
    single, double = leaves(cells.to(SINGLE)), leaves(cells.to(SINGLE).to(torch.float64))
    cameras = cameras.to(SINGLE)
    adjacency = overlap_neighbors(single.centers, single.radii)
    ours = rasterize(single, cameras, adjacency=adjacency, settings=settings, target=target, backend="cpu")
    theirs = rasterize(
        double,
        cameras.to(torch.float64),
        adjacency=adjacency,
        settings=settings,
        target=None if target is None else target.double(),
        backend="reference",
    )
    return (single, ours), (double, theirs)


def check_images(ours: Rendering, theirs: Rendering, tolerance: float = 1e-4) -> None:
    for name in (*IMAGES, "contribution", "error"):
        difference = (getattr(ours, name).double() - getattr(theirs, name)).abs()
        # a pixel whose ray grazes an edge may flip
        assert float((difference > tolerance).double().mean()) < 1e-3, (
            f"{name}: {float(difference.max()):.2g}"
        )
    assert bool((theirs.visible <= ours.visible).all())
    assert float((ours.intersections != theirs.intersections).double().mean()) < 2e-3


def gradients(cells: Cells, image: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    draw = torch.Generator().manual_seed(1)
    upstream = torch.randn(image.shape, generator=draw).to(image)
    return torch.autograd.grad(
        (image * upstream).sum(), cells.tensors(), retain_graph=True, allow_unused=True
    )


@pytest.mark.parametrize("seed", [0, 1])
def test_images_equal_the_reference(seed: int) -> None:
    target = torch.rand(1, 45, 48, 3, generator=torch.Generator().manual_seed(seed))
    (_, ours), (_, theirs) = both(random_cells(150, seed=seed), camera(48), target=target)
    check_images(ours, theirs)
    assert float(theirs.error.sum()) > 0


@pytest.mark.parametrize("image", [*IMAGES, "contribution"])
@pytest.mark.parametrize("seed", [0, 1])
def test_gradients_equal_the_reference(seed: int, image: str) -> None:
    (single, ours), (double, theirs) = both(random_cells(150, seed=seed), camera(48))
    found = gradients(single, getattr(ours, image))
    expected = gradients(double, getattr(theirs, image))
    errors = {name: relative(one, other) for (name, _), one, other in zip(single.named(), found, expected)}
    assert max(errors.values()) < 0.01, errors
    if image == "rgb":
        assert all(float(gradient.norm()) > 0 for gradient in expected if gradient is not None)


def test_gradients_with_damping_equal_the_damped_reference() -> None:
    settings = replace(EXACT, grazing=0.05, stop=1e-3)
    (single, ours), (double, theirs) = both(random_cells(150), camera(48), settings)
    for image in IMAGES:
        found, expected = (
            gradients(one, getattr(two, image)) for one, two in ((single, ours), (double, theirs))
        )
        for (name, _), one, other in zip(single.named(), found, expected):
            assert relative(one, other) < 0.05, (image, name)


@pytest.mark.parametrize(("sites", "axes"), [(1, 1), (3, 5), (8, 8), (16, 2)])
def test_any_number_of_sites_and_axes(sites: int, axes: int) -> None:
    (single, ours), (double, theirs) = both(random_cells(60, sites=sites, axes=axes), camera(24))
    check_images(ours, theirs)
    for one, other in zip(gradients(single, ours.rgb), gradients(double, theirs.rgb)):
        assert relative(one, other) < 0.01


def test_flat_cells_take_the_short_way() -> None:
    (single, ours), (double, theirs) = both(random_cells(60, heights=0.0), camera(32))
    check_images(ours, theirs)
    for one, other in zip(gradients(single, ours.rgb), gradients(double, theirs.rgb)):
        assert relative(one, other) < 0.01
    assert float(gradients(double, theirs.rgb)[5].norm()) > 0  # heights learn from zero


@pytest.mark.parametrize(
    "settings",
    [
        Settings(stop=0.05),
        Settings(near=2.2),
        Settings(near_radii=4.0),
        Settings(near_plane=2.5),
        Settings(quantiles=()),
    ],
    ids=["stop", "near", "near_radii", "near_plane", "no quantile"],
)
def test_every_constant_means_the_same(settings: Settings) -> None:
    cells = random_cells(100)
    plain, _ = both(cells, camera(32), Settings())
    (_, ours), (_, theirs) = both(cells, camera(32), settings)
    check_images(ours, theirs)
    if settings.quantiles:
        assert not torch.equal(plain[1].rgb, ours.rgb), "the constant has no effect on this scene"


def test_camera_inside_the_scene() -> None:
    (single, ours), (double, theirs) = both(random_cells(150), camera(32, eye=(0.1, 0.2, -0.1)))
    check_images(ours, theirs)
    for one, other in zip(gradients(single, ours.rgb), gradients(double, theirs.rgb)):
        assert relative(one, other) < 0.01


@pytest.mark.parametrize(
    "lens",
    [
        Lens(width=40, height=30, fx=35.0, fy=30.0, cx=60.0, cy=-5.0),
        Lens(
            width=40, height=30, fx=30.0, fy=30.0, cx=20.0, cy=15.0, distortion=(0.1, 0.02, 0, 0, 0.01, 0.02)
        ),
        Lens(width=40, height=40, fx=12.0, fy=12.0, cx=20.0, cy=20.0, model="fisheye"),
        Lens(width=48, height=24, model="equirectangular"),
    ],
    ids=["principal point outside", "distorted", "fisheye", "equirectangular"],
)
@pytest.mark.parametrize("eye", [(2.5, 1.0, 0.8), (0.2, 0.1, 0.05)], ids=["outside", "inside"])
def test_every_lens(lens: Lens, eye: tuple[float, float, float]) -> None:
    (single, ours), (double, theirs) = both(random_cells(100), Cameras(look_at(eye), lens))
    check_images(ours, theirs)
    for one, other in zip(gradients(single, ours.rgb), gradients(double, theirs.rgb)):
        assert relative(one, other) < 0.01


def test_a_batch_of_cameras_is_the_cameras_in_turn() -> None:
    cells = leaves(random_cells(80, dtype=SINGLE))
    poses = torch.cat([look_at((2.5, 1.0, 0.8), SINGLE), look_at((-1.0, 2.0, 0.5), SINGLE)])
    lenses = [
        Lens(width=33, height=17, fx=30.0, fy=30.0, cx=16.0, cy=8.0),
        Lens(width=33, height=17, fx=20.0, fy=25.0, cx=10.0, cy=9.0, distortion=(0.05, 0, 0, 0, 0, 0)),
    ]
    batch = rasterize(cells, Cameras(poses, lenses), backend="cpu")
    apart = [rasterize(cells, Cameras(poses[i : i + 1], lenses[i]), backend="cpu") for i in range(2)]
    for name in (*IMAGES, "contribution", "visible"):
        # the first camera's rays come from a table in the batch, from its matrix alone
        torch.testing.assert_close(
            getattr(batch, name), torch.cat([getattr(one, name) for one in apart]), atol=1e-4, rtol=1e-3
        )
    whole = torch.autograd.grad(batch.rgb.sum(), cells.tensors())
    parts = torch.autograd.grad(sum(one.rgb.sum() for one in apart), cells.tensors())
    for one, other in zip(whole, parts):
        assert relative(one, other) < 1e-3


def test_threads_do_not_change_a_bit() -> None:
    cells, view = leaves(random_cells(300, dtype=SINGLE)), camera(64, dtype=SINGLE)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            image = rasterize(cells, view, backend="cpu")
            loss = image.rgb.square().sum() + image.contribution.square().sum()
            results.append((image, torch.autograd.grad(loss, cells.tensors())))
    finally:
        torch.set_num_threads(before)
    for image, found in results[1:]:
        assert torch.equal(image.rgb, results[0][0].rgb)
        assert torch.equal(image.contribution, results[0][0].contribution)
        assert all(torch.equal(one, other) for one, other in zip(found, results[0][1]))


def test_background_shows_through_and_gets_a_gradient() -> None:
    cells = random_cells(20, dtype=SINGLE)
    color = torch.tensor([0.2, 0.5, 0.9], requires_grad=True)
    black = rasterize(cells, camera(24, dtype=SINGLE), backend="cpu")
    image = rasterize(cells, camera(24, dtype=SINGLE), background=color, backend="cpu")
    torch.testing.assert_close(image.rgb, black.rgb + (1 - black.alpha)[..., None] * color)
    image.rgb.sum().backward()
    torch.testing.assert_close(color.grad, (1 - black.alpha).sum().expand(3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_cells_are_rendered_in_single(dtype: torch.dtype) -> None:
    cells = leaves(random_cells(40, dtype=dtype))
    image = rasterize(cells, camera(24, dtype=SINGLE), backend="cpu")
    expected = rasterize(
        cells.map(lambda t: t.detach().float()), camera(24, dtype=dtype).to(SINGLE), backend="cpu"
    )
    assert image.rgb.dtype == dtype
    torch.testing.assert_close(image.rgb.float(), expected.rgb, atol=0.05, rtol=0.05)
    image.rgb.sum().backward()
    assert cells.centers.grad is not None
    assert cells.centers.grad.dtype == dtype


def test_double_precision_is_refused_by_name_and_served_by_auto() -> None:
    cells = random_cells(10)
    with pytest.raises(extension.Unavailable, match="float64"):
        rasterize(cells, camera(16), backend="cpu")
    assert rasterize(cells, camera(16)).rgb.dtype == torch.float64


def test_nothing_to_see() -> None:
    view = camera(24, dtype=SINGLE)
    away = random_cells(20, dtype=SINGLE).with_(centers=torch.full((20, 3), 50.0))
    clear = random_cells(20, dtype=SINGLE).with_(density=torch.zeros(20))
    for cells in (away, clear):
        cells = leaves(cells)
        image = rasterize(cells, view, backend="cpu")
        assert float(image.alpha.abs().sum()) == 0
        image.rgb.sum().backward()
        assert all(float(tensor.grad.abs().sum()) == 0 for tensor in cells.tensors())
    empty = leaves(random_cells(3, dtype=SINGLE).select(torch.zeros(0, dtype=torch.long)))
    rasterize(empty, view).rgb.sum().backward()
    assert empty.centers.grad is not None


def test_identical_balls_show_one_cell() -> None:
    cells = random_cells(1, dtype=SINGLE).with_(centers=torch.zeros(1, 3))
    twice = cells.select(torch.tensor([0, 0]))
    (_, ours), (_, theirs) = both(twice, camera(24))
    check_images(ours, theirs)
    torch.testing.assert_close(ours.rgb, rasterize(cells, camera(24, dtype=SINGLE), settings=EXACT).rgb)


def test_wrong_input_is_explained() -> None:
    cells, view = random_cells(10, dtype=SINGLE), camera(16, dtype=SINGLE)
    adjacency = overlap_neighbors(cells.centers[:5], cells.radii[:5])
    with pytest.raises(ValueError, match="made for 5 cells, there are 10"):
        rasterize(cells, view, adjacency=adjacency)
    with pytest.raises(ValueError, match="target must have shape"):
        rasterize(cells, view, target=torch.zeros(16, 16, 3))
    with pytest.raises(ValueError, match="background must end in 3"):
        rasterize(cells, view, background=torch.zeros(4))
    with pytest.raises(ValueError, match="cell 3 of 10 is no ball"):
        centers = cells.centers.clone()
        centers[3, 1] = float("nan")
        rasterize(cells.with_(centers=centers), view)
    with pytest.raises(ValueError, match=r"radii must have shape \(10,\)"):
        cells.with_(radii=torch.ones(10, 1))
