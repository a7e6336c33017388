"""Random scenes and cameras for the tests."""

from __future__ import annotations

import torch
from torch import Tensor

from graftwork_power_foam.ops.cameras import Cameras
from graftwork_power_foam.ops.cells import Cells
from graftwork_power_foam.ops.lenses import Lens


def random_cells(
    count: int = 60,
    *,
    seed: int = 0,
    sites: int = 8,
    axes: int = 8,
    heights: float = 0.1,
    dtype: torch.dtype = torch.float64,
    radius: float = 0.45,
    density: float = 8.0,
) -> Cells:
    """Balls in the cube [-1, 1]^3 that overlap, with random textures."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=draw, dtype=torch.float64)

    return Cells(
        centers=2 * uniform(count, 3) - 1,
        radii=radius * (0.6 + 0.8 * uniform(count)),
        density=density * (0.3 + uniform(count)),
        quaternions=normal(count, 4),
        sites=0.4 * normal(count, sites, 2),
        heights=heights * normal(count, sites),
        axes=2 * normal(count, sites, axes, 3),
        colors=0.5 * normal(count, sites, axes, 3),
    ).to(dtype)


def look_at(eye: tuple[float, float, float], dtype: torch.dtype = torch.float64) -> Tensor:
    """Pose ``(1, 3, 4)`` of a camera that looks at the origin, OpenCV axes."""
    position = torch.tensor(eye, dtype=dtype)
    forward = -position / position.norm()
    right = torch.linalg.cross(forward, torch.tensor([0.0, 0.0, 1.0], dtype=dtype))
    right = right / right.norm()
    down = torch.linalg.cross(forward, right)
    return torch.stack([right, down, forward, position], -1)[None]


def camera(
    size: int = 24, *, eye: tuple[float, float, float] = (2.5, 1.0, 0.8), dtype: torch.dtype = torch.float64
) -> Cameras:
    """One pinhole camera whose principal point is off the centre."""
    lens = Lens(width=size, height=size - 3, fx=1.1 * size, fy=1.2 * size, cx=0.45 * size, cy=0.52 * size)
    return Cameras(look_at(eye, dtype), lens)
