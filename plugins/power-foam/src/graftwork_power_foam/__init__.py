"""Power Foam (arXiv 2604.24994): scenes of power-diagram cells, rasterized or ray traced, differentiably.

Example:
    >>> from graftwork_power_foam import Cameras, Cells, Lens, rasterize  # doctest: +SKIP
    >>> image = rasterize(cells, cameras)  # doctest: +SKIP
    >>> image.rgb.sum().backward()  # doctest: +SKIP

Names are imported when they are first used, so that describing the plugin imports no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from graftwork_power_foam.ops.adjacency import Adjacency, overlap_neighbors
    from graftwork_power_foam.ops.cameras import Cameras, Rays
    from graftwork_power_foam.ops.cells import Cells, frames, power
    from graftwork_power_foam.ops.functional import rasterize, raytrace
    from graftwork_power_foam.ops.lenses import Lens
    from graftwork_power_foam.ops.power_diagram import power_diagram
    from graftwork_power_foam.ops.rendering import Rendering, Settings
    from graftwork_power_foam.ops.secondary import Sphere, raytrace_with_sphere, reflect, refract
    from graftwork_power_foam.ops.steiner import add_steiner_cells

_HOMES = {
    "Adjacency": "adjacency",
    "Cameras": "cameras",
    "Cells": "cells",
    "Lens": "lenses",
    "Rays": "cameras",
    "Rendering": "rendering",
    "Settings": "rendering",
    "Sphere": "secondary",
    "add_steiner_cells": "steiner",
    "frames": "cells",
    "overlap_neighbors": "adjacency",
    "power": "cells",
    "power_diagram": "power_diagram",
    "rasterize": "functional",
    "raytrace": "functional",
    "raytrace_with_sphere": "secondary",
    "reflect": "secondary",
    "refract": "secondary",
}

__all__ = [
    "Adjacency",
    "Cameras",
    "Cells",
    "Lens",
    "Rays",
    "Rendering",
    "Settings",
    "Sphere",
    "add_steiner_cells",
    "frames",
    "overlap_neighbors",
    "power",
    "power_diagram",
    "rasterize",
    "raytrace",
    "raytrace_with_sphere",
    "reflect",
    "refract",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.ops.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
