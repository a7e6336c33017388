"""The contracts of the plugin and of its render backends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from foam_scenes import camera, leaves, random_cells, random_rays

from graftwork.spec import RenderKind
from graftwork.testing import BackendContract, PluginContract
from graftwork_power_foam import Settings, overlap_neighbors, power_diagram


class TestPlugin(PluginContract):
    plugin = "power-foam"


class FoamBackend(BackendContract):
    """Random scenes; the reference gets the same numbers in float64."""

    __test__ = False
    backend = "power-foam:reference"

    def samples(self, *, kind: RenderKind, device: torch.device) -> Mapping[str, tuple[Any, ...]]:
        cells = leaves(random_cells(100, dtype=torch.float32).to(device))
        settings = Settings(stop=0.0, grazing=1e-3)
        view = camera(32, dtype=torch.float32).to(device)
        if kind == "rasterize":
            return {"camera": (cells, view, overlap_neighbors(cells.centers, cells.radii), settings)}
        diagram = power_diagram(cells.centers, cells.radii)
        rays = random_rays(200, dtype=torch.float32).to(device)
        return {"camera": (cells, view, diagram, settings), "rays": (cells, rays, diagram, settings)}

    def parameters(self, arguments: tuple[Any, ...]) -> Mapping[str, torch.Tensor]:
        return dict(arguments[0].named())

    def images(self, output: Any) -> Mapping[str, torch.Tensor]:
        names = ("rgb", "alpha", "depth", "normal", "facing", "contribution")
        return {name: getattr(output, name) for name in names}

    def for_reference(self, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        cells, rays, adjacency, settings = arguments
        return leaves(cells.to(torch.float64)), rays.to(torch.float64), adjacency, replace(settings)


class TestReference(FoamBackend):
    __test__ = True


class TestCpu(FoamBackend):
    __test__ = True
    backend = "power-foam:cpu"


class TestCuda(FoamBackend):
    __test__ = True
    backend = "power-foam:cuda"
