"""The operators as torch sees them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from foam_scenes import camera, leaves, random_cells, random_rays

from graftwork import extension
from graftwork_power_foam import overlap_neighbors, power_diagram, rasterize
from graftwork_power_foam.ops import native
from graftwork_power_foam.ops.lenses import tile_cones

CONSTANTS = [1e-3, 0.0, 0.0, -1e30, 1e-3]


@pytest.fixture(scope="module", autouse=True)
def library() -> None:
    try:
        extension.load(native.CPU)
    except extension.Unavailable as error:
        pytest.skip(str(error))


def raster_arguments(*, target: bool) -> tuple[Any, ...]:
    cells = leaves(random_cells(20, sites=2, axes=2, dtype=torch.float32))
    adjacency = overlap_neighbors(cells.centers, cells.radii)
    view = camera(11, dtype=torch.float32)
    lens = view.lenses[0]
    return (
        *cells.tensors(),
        *(adjacency.offsets, adjacency.neighbors, view.camera_to_world),
        torch.tensor([[lens.fx, lens.fy, lens.cx, lens.cy]], dtype=torch.float32),
        None,
        tile_cones(lens, torch.device("cpu"))[None],
        torch.rand(1, view.height, view.width, 3) if target else None,
        [view.width, view.height],
        CONSTANTS,
        [0.5],
    )


def trace_arguments() -> tuple[Any, ...]:
    cells = leaves(random_cells(20, sites=2, axes=2, dtype=torch.float32))
    diagram = power_diagram(cells.centers, cells.radii)
    rays = random_rays(30, dtype=torch.float32)
    return (
        *cells.tensors(),
        *(diagram.offsets, diagram.neighbors, None, rays.origins[None], rays.directions[None], None, None),
        [0],
        CONSTANTS,
        [0.5],
    )


@pytest.mark.parametrize("target", [False, True])
def test_rasterizer_is_a_proper_operator(target: bool) -> None:
    torch.library.opcheck(torch.ops.graftwork_power_foam.rasterize.default, raster_arguments(target=target))


def test_ray_tracer_is_a_proper_operator() -> None:
    torch.library.opcheck(torch.ops.graftwork_power_foam.raytrace.default, trace_arguments())


@pytest.mark.parametrize("name", ["rasterize", "raytrace"])
def test_backward_operators_are_proper(name: str) -> None:
    arguments = raster_arguments(target=False) if name == "rasterize" else trace_arguments()
    inputs = [item.detach() if isinstance(item, torch.Tensor) else item for item in arguments]
    images = getattr(torch.ops.graftwork_power_foam, name)(*inputs)
    gradients = [torch.ones_like(image) if index % 2 == 0 else None for index, image in enumerate(images[:6])]
    torch.library.opcheck(
        getattr(torch.ops.graftwork_power_foam, f"{name}_backward").default,
        (*gradients, *inputs[:14], *inputs[15:]),
    )


def test_memory_layout_does_not_matter() -> None:
    arguments = raster_arguments(target=False)
    strided = tuple(
        torch.stack([item.detach(), torch.zeros_like(item)], -1)[..., 0]
        if isinstance(item, torch.Tensor) and item.is_floating_point()
        else item
        for item in arguments
    )
    ours = torch.ops.graftwork_power_foam.rasterize(*strided)
    for one, other in zip(ours, torch.ops.graftwork_power_foam.rasterize(*arguments)):
        assert torch.equal(one, other)


def test_statistics_without_gradient_say_so() -> None:
    cells = leaves(random_cells(20, dtype=torch.float32))
    image = rasterize(cells, camera(11, dtype=torch.float32), backend="cpu")
    assert image.contribution.requires_grad
    assert not image.error.requires_grad
    assert not image.visible.requires_grad


def test_compiled_graph_gives_the_same_gradient() -> None:
    cells = random_cells(20, dtype=torch.float32)
    view = camera(11, dtype=torch.float32)
    adjacency = overlap_neighbors(cells.centers, cells.radii, margin=0.1)

    def loss(centers: torch.Tensor) -> torch.Tensor:
        image = rasterize(cells.with_(centers=centers), view, adjacency=adjacency, backend="cpu")
        return image.rgb.square().sum()

    results = []
    for function in (loss, torch.compile(loss, backend="aot_eager")):
        centers = cells.centers.clone().requires_grad_()
        function(centers).backward()
        results.append(centers.grad)
    torch.testing.assert_close(*results)
