"""Random scenes and cameras for the tests."""

from __future__ import annotations

import torch
from torch import Tensor

from graftwork_power_foam.ops.cameras import Cameras, Rays
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


def leaves(cells: Cells) -> Cells:
    """The same cells as leaves that require gradients."""
    return cells.map(lambda tensor: tensor.detach().clone().requires_grad_())


def random_rays(count: int = 300, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> Rays:
    """Rays with their own origins, some of them inside the scene."""
    draw = torch.Generator().manual_seed(seed)
    origins = 1.5 * torch.randn(count, 3, generator=draw, dtype=torch.float64)
    aim = 0.5 * torch.randn(count, 3, generator=draw, dtype=torch.float64)
    directions = torch.nn.functional.normalize(aim - origins, dim=-1)
    return Rays(origins.to(dtype), directions.to(dtype))


def relative(actual: Tensor | None, expected: Tensor | None) -> float:
    """Relative L2 error of a gradient; None counts as zero."""
    if expected is None or float(expected.norm()) == 0:
        return 0.0 if actual is None else float(actual.double().norm())
    if actual is None:
        return 1.0
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


def psnr(one: Tensor, other: Tensor) -> float:
    """Peak signal-to-noise ratio of images in [0, 1]."""
    return float(-10 * torch.log10((one.double() - other.double()).square().mean().clamp(min=1e-20)))
