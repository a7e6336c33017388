"""The CUDA kernels: compiled by nvcc where there is one, and run lane by lane on the CPU for their logic."""

from __future__ import annotations

import ctypes
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from foam_scenes import camera, leaves, random_cells, random_rays, relative
from torch import Tensor

from graftwork import extension
from graftwork.extension.toolchain import cxx, nvcc
from graftwork_power_foam import (
    Cameras,
    Cells,
    Rays,
    Settings,
    overlap_neighbors,
    power_diagram,
    rasterize,
    raytrace,
)
from graftwork_power_foam.ops import kernels, native, neighbors

HERE = Path(__file__).parent
SOURCES = Path(native.__file__).parents[1] / "csrc"
SETTINGS = Settings(stop=1e-3, grazing=1e-3, quantiles=(0.8, 0.5))


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The kernels as a library for the CPU, with the functions' types."""
    try:
        compiler = cxx()
    except extension.Unavailable as error:
        pytest.skip(str(error))
    path = tmp_path_factory.mktemp("emulated") / "kernels.so"
    parts = [f'#include "{SOURCES / name}"\n' for name in ("raster.cu", "trace.cu", "overlaps.cu")]
    objects = []
    for index, part in enumerate(parts):
        source = path.with_name(f"part{index}.cpp")
        source.write_text(part)
        objects.append(str(source))
    include = [f"-I{folder}" for folder in (HERE / "emulated_cuda", SOURCES, extension.library.INCLUDE)]
    command = [*compiler.command, "-O1", "-std=c++17", "-shared", "-fPIC", "-DFOAM_EMULATE_CUDA", "-w"]
    done = subprocess.run([*command, *include, *objects, "-o", str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    library = ctypes.CDLL(str(path))
    for name, types in native.CUDA.functions.items():
        getattr(library, name).argtypes = types
    return library


def call(function: Any, *arguments: Any) -> None:
    assert function(*(ctypes.byref(a) if isinstance(a, ctypes.Structure) else a for a in arguments)) == 0


def emulate(
    library: Any, cells: Cells, rays: Cameras | Rays, settings: Settings, upstream: dict[str, Tensor]
) -> tuple[SimpleNamespace, list[Tensor]]:
    """Run forward and backward kernels on the CPU's memory."""
    tensors = [tensor.detach().float().contiguous() for tensor in cells.tensors()]
    numbers = [settings.stop, settings.near, settings.near_radii, settings.near_plane, settings.grazing]
    constants = native.settings_args(numbers, settings.quantiles)
    gradients = [torch.zeros_like(tensor) for tensor in tensors]
    incoming = [upstream.get(name) for name in (*native.IMAGE_FIELDS, "contribution")]
    tail: tuple[Any, ...]
    if isinstance(rays, Cameras):
        adjacency = overlap_neighbors(cells.centers, cells.radii)
        lens = rays.lenses[0]
        view = kernels._cameras(
            rays.camera_to_world[:, :3],
            torch.tensor([[lens.fx, lens.fy, lens.cx, lens.cy]], dtype=torch.float32),
            None if lens.is_pinhole else kernels_table(rays),
            cones(rays),
            [rays.width, rays.height],
        )
        batch, name = (1, rays.height, rays.width), "rasterize"
        pairs = torch.zeros(1, dtype=torch.int64)
        tail = (len(adjacency.neighbors), 1 << 16, pairs.data_ptr(), None)
    else:
        adjacency = power_diagram(cells.centers, cells.radii)
        far = None if rays.far is None else rays.far[None]
        view = native.ray_args(None, rays.origins[None], rays.directions[None], far, 0)
        batch, name = (1, len(rays.origins)), "raytrace"
        tail = (len(adjacency.neighbors), None)
    scene = native.scene_args(tensors, adjacency.offsets, adjacency.neighbors)
    images = kernels._images(tensors, batch, 1, len(settings.quantiles))
    call(
        getattr(library, f"foam_cuda_{name}"),
        *(scene, view, constants, native.image_args({**images, "target": None}), *tail),
    )
    call(
        getattr(library, f"foam_cuda_{name}_backward"),
        *(scene, view, constants, native.image_gradients(incoming), native.scene_gradients(gradients), *tail),
    )
    return SimpleNamespace(**images), gradients


def kernels_table(cameras: Cameras) -> Tensor:
    from graftwork_power_foam.ops.lenses import pixel_directions

    return pixel_directions(cameras.lenses[0], torch.device("cpu"), torch.float32)[None].contiguous()


def cones(cameras: Cameras) -> Tensor:
    from graftwork_power_foam.ops.lenses import tile_cones

    return tile_cones(cameras.lenses[0], torch.device("cpu"))[None].contiguous()


def check(
    library: Any, cells: Cells, rays: Cameras | Rays, settings: Settings, names: tuple[str, ...]
) -> None:
    """Compare images, statistics and gradients with the C++ backend."""
    render = rasterize if isinstance(rays, Cameras) else raytrace
    cells = leaves(cells)
    expected = render(cells, rays, settings=settings, backend="cpu")
    draw = torch.Generator().manual_seed(0)
    upstream = {name: torch.randn(getattr(expected, name).shape, generator=draw) for name in names}
    loss = sum((getattr(expected, name) * weight).sum() for name, weight in upstream.items())
    expected_gradients = torch.autograd.grad(loss, cells.tensors())
    images, gradients = emulate(
        library, cells, rays, settings, {name: weight.contiguous() for name, weight in upstream.items()}
    )
    for name in ("rgb", "alpha", "depth", "normal", "facing", "contribution"):
        value = getattr(expected, name).detach()
        torch.testing.assert_close(
            getattr(images, name).reshape(value.shape),
            value,
            atol=2e-4,
            rtol=1e-3,
            msg=lambda m, n=name: f"{n}: {m}",
        )
    for (name, _), one, other in zip(cells.named(), gradients, expected_gradients):
        assert relative(one, other) < 0.01, name


ALL = ("rgb", "alpha", "depth", "normal", "facing", "contribution")


@pytest.mark.parametrize(
    "names", [("rgb",), ("depth", "contribution"), ALL], ids=["rgb", "statistics", "all"]
)
def test_emulated_rasterizer_equals_the_cpu_backend(emulated: Any, names: tuple[str, ...]) -> None:
    check(emulated, random_cells(40, dtype=torch.float32), camera(19, dtype=torch.float32), SETTINGS, names)


def test_emulated_rasterizer_with_other_numbers_of_sites(emulated: Any) -> None:
    cells = random_cells(30, sites=3, axes=5, heights=0.0, dtype=torch.float32)
    check(emulated, cells, camera(12, dtype=torch.float32), SETTINGS, ALL)


def test_emulated_ray_tracer_equals_the_cpu_backend(emulated: Any) -> None:
    cells, rays = random_cells(40, dtype=torch.float32), random_rays(70, dtype=torch.float32)
    check(emulated, cells, rays, SETTINGS, ALL)
    far = torch.linspace(0.5, 3.0, 70)
    check(emulated, cells, replace(rays, far=far), replace(SETTINGS, near=0.2), ("rgb",))


def test_emulated_overlaps_equal_brute_force(emulated: Any) -> None:
    cells = random_cells(300, dtype=torch.float32)
    expected_offsets, expected = neighbors.brute_force(cells.centers, cells.radii, 0.05)
    offsets = torch.empty(301, dtype=torch.int32)
    found = torch.empty(len(expected), dtype=torch.int32)
    call(
        emulated.foam_cuda_overlaps,
        *(cells.centers.data_ptr(), cells.radii.data_ptr(), 300, 0.05),
        *(offsets.data_ptr(), found.data_ptr(), len(found), None),
    )
    assert torch.equal(offsets, expected_offsets)
    for row in range(300):
        part = slice(int(offsets[row]), int(offsets[row + 1]))
        assert sorted(found[part].tolist()) == sorted(expected[part].tolist())


@pytest.mark.slow
def test_sources_compile_with_nvcc() -> None:
    try:
        nvcc()
    except extension.Unavailable as error:
        pytest.skip(str(error))
    assert extension.build(native.CUDA).is_file()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_device_equals_the_cpu_backend() -> None:
    cells = leaves(random_cells(300, dtype=torch.float32))
    view = camera(64, dtype=torch.float32)
    there = leaves(cells.to("cuda"))
    for render in (rasterize, raytrace):
        ours = render(there, view.to("cuda"), settings=SETTINGS, backend="cuda")
        expected = render(cells, view, settings=SETTINGS, backend="cpu")
        torch.testing.assert_close(ours.rgb.cpu(), expected.rgb, atol=1e-3, rtol=1e-2)
        found = torch.autograd.grad(ours.rgb.square().sum(), there.tensors())
        wanted = torch.autograd.grad(expected.rgb.square().sum(), cells.tensors())
        for (name, _), one, other in zip(cells.named(), found, wanted):
            assert relative(one.cpu(), other) < 0.01, name
