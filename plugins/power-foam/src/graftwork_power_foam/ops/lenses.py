"""Lenses: where each pixel looks, in camera coordinates (x right, y down, z forward)."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

LensModel = Literal["pinhole", "fisheye", "equirectangular", "custom"]

TILE = 8
_NEWTON_STEPS = 20


@dataclass(frozen=True)
class Lens:
    """A lens with its image size; hashable, so that what is derived from it is computed once.

    Example:
        >>> Lens(width=640, height=480, fx=500.0, fy=500.0, cx=320.0, cy=240.0).is_pinhole
        True

    Args:
        width: Pixels per row.
        height: Pixels per column.
        fx: Focal length, pixels per unit of x / z, or per radian (fisheye); unused if equirectangular.
        fy: Likewise along the columns.
        cx: Column of the principal point, pixels; any value.
        cy: Row of the principal point, pixels.
        model: ``"pinhole"`` with optional Brown distortion, ``"fisheye"`` (equidistant, OpenCV's),
            ``"equirectangular"`` (the whole sphere; the image centre looks along +z).
        distortion: k1, k2, k3, k4, p1, p2. Pinhole: radial factor ``1 + k1 r^2 + ... + k4 r^8`` and
            tangential p1, p2. Fisheye: ``theta (1 + k1 theta^2 + ... + k4 theta^8)``, p1 and p2 must be 0.
        table: For ``model="custom"``: ``(H, W, 3)`` unit directions in camera coordinates, zero where a pixel
            has no ray.

    Raises:
        ValueError: A value is impossible.
    """

    width: int
    height: int
    fx: float = 1.0
    fy: float = 1.0
    cx: float = 0.0
    cy: float = 0.0
    model: LensModel = "pinhole"
    distortion: tuple[float, float, float, float, float, float] = (0.0,) * 6
    table: Directions | None = None

    def __post_init__(self) -> None:
        if self.width < 1 or self.height < 1:
            raise ValueError(f"an image has at least one pixel, got {self.width} x {self.height}.")
        if not (self.fx > 0 and self.fy > 0):
            raise ValueError(f"focal lengths are positive pixels, got fx={self.fx}, fy={self.fy}.")
        if len(self.distortion) != 6:
            raise ValueError(f"distortion is (k1, k2, k3, k4, p1, p2), got {len(self.distortion)} numbers.")
        if self.model == "fisheye" and any(self.distortion[4:]):
            raise ValueError(f"a fisheye lens has no tangential distortion, got {self.distortion[4:]}.")
        if (self.model == "custom") != (self.table is not None):
            raise ValueError('model="custom" and a table of directions belong together; see Lens.custom.')

    @property
    def is_pinhole(self) -> bool:
        """True if pixels look along straight lines of the image plane: no table of directions is needed."""
        return self.model == "pinhole" and not any(self.distortion)

    @classmethod
    def custom(cls, directions: Tensor) -> Lens:
        """Make a lens from the direction of every pixel.

        Args:
            directions: ``(H, W, 3)`` in camera coordinates, any length; zero where a pixel has no ray.
        """
        if directions.dim() != 3 or directions.shape[-1] != 3:
            raise ValueError(f"directions must have shape (H, W, 3), got {tuple(directions.shape)}.")
        height, width = directions.shape[:2]
        unit = torch.nn.functional.normalize(directions.detach().double().cpu(), dim=-1)
        return cls(width=width, height=height, model="custom", table=Directions(unit))

    def scaled(self, factor: float) -> Lens:
        """Return the lens for images of another resolution, rounded to whole pixels.

        Args:
            factor: New width over old width.
        """
        if self.table is not None:
            raise ValueError("a lens made from a table of directions cannot be scaled; make a new table.")
        width, height = max(1, round(self.width * factor)), max(1, round(self.height * factor))
        across, down = width / self.width, height / self.height
        return replace(
            self,
            width=width,
            height=height,
            fx=self.fx * across,
            fy=self.fy * down,
            cx=self.cx * across,
            cy=self.cy * down,
        )


class Directions:
    """A table of directions that hashes by identity."""

    def __init__(self, table: Tensor) -> None:
        self.table = table


@functools.lru_cache(maxsize=64)
def pixel_directions(lens: Lens, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return the unit direction of every pixel in camera coordinates; computed once per lens.

    Args:
        lens: The lens.
        device: Where the table is to be.
        dtype: Its dtype; it is computed in float64.

    Returns:
        ``(H, W, 3)``, x right, y down, z forward; zero where the lens has no ray.
    """
    if lens.table is not None:
        return lens.table.table.to(device, dtype)
    rows, columns = torch.meshgrid(
        torch.arange(lens.height, dtype=torch.float64) + 0.5,
        torch.arange(lens.width, dtype=torch.float64) + 0.5,
        indexing="ij",
    )
    if lens.model == "equirectangular":
        longitude = (columns / lens.width - 0.5) * (2 * math.pi)
        latitude = (rows / lens.height - 0.5) * math.pi
        across = latitude.cos()
        directions = [across * longitude.sin(), latitude.sin(), across * longitude.cos()]
        return torch.stack(directions, -1).to(device, dtype)
    x, y = (columns - lens.cx) / lens.fx, (rows - lens.cy) / lens.fy
    table = _fisheye(x, y, lens.distortion) if lens.model == "fisheye" else _brown(x, y, lens.distortion)
    return table.to(device, dtype)


def _brown(x: Tensor, y: Tensor, distortion: tuple[float, ...]) -> Tensor:
    """Undo Brown's distortion by fixed-point steps followed by Newton's, then normalise."""
    k1, k2, k3, k4, p1, p2 = distortion
    u, v = x, y
    valid = torch.ones_like(x, dtype=torch.bool)
    if any(distortion):

        def residual(u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
            square = u * u + v * v
            radial = 1 + square * (k1 + square * (k2 + square * (k3 + square * k4)))
            return (
                u * radial + 2 * p1 * u * v + p2 * (square + 2 * u * u) - x,
                v * radial + 2 * p2 * u * v + p1 * (square + 2 * v * v) - y,
            )

        for _ in range(_NEWTON_STEPS):
            square = u * u + v * v
            radial = 1 + square * (k1 + square * (k2 + square * (k3 + square * k4)))
            slope = 2 * (k1 + square * (2 * k2 + square * (3 * k3 + square * 4 * k4)))
            f, g = residual(u, v)
            f_u = radial + u * u * slope + 2 * p1 * v + 6 * p2 * u
            f_v = u * v * slope + 2 * p1 * u + 2 * p2 * v
            g_u = u * v * slope + 2 * p2 * v + 2 * p1 * u
            g_v = radial + v * v * slope + 2 * p2 * u + 6 * p1 * v
            determinant = f_u * g_v - f_v * g_u
            # beyond the fold of the distortion there is no solution: stop there, and find it out below
            determinant = torch.where(determinant.abs() < 1e-9, torch.ones_like(determinant), determinant)
            u = u - (g_v * f - f_v * g) / determinant
            v = v - (f_u * g - g_u * f) / determinant
        f, g = residual(u, v)
        square = u * u + v * v
        radial = 1 + square * (k1 + square * (k2 + square * (k3 + square * k4)))
        valid = (f.abs() < 1e-6) & (g.abs() < 1e-6) & (determinant > 0) & (radial > 0)
    directions = torch.nn.functional.normalize(torch.stack([u, v, torch.ones_like(u)], -1), dim=-1)
    return torch.where(valid[..., None], directions, torch.zeros_like(directions))


def _fisheye(x: Tensor, y: Tensor, distortion: tuple[float, ...]) -> Tensor:
    """Invert OpenCV's equidistant model; beyond half a turn there is no ray."""
    k1, k2, k3, k4 = distortion[:4]

    def model(theta: Tensor) -> tuple[Tensor, Tensor]:
        square = theta * theta
        value = theta * (1 + square * (k1 + square * (k2 + square * (k3 + square * k4))))
        slope = 1 + square * (3 * k1 + square * (5 * k2 + square * (7 * k3 + square * 9 * k4)))
        return value, slope

    radius = (x * x + y * y).sqrt()
    theta = _solve(model, radius)
    valid = (theta >= 0) & (theta <= math.pi) & ((model(theta)[0] - radius).abs() < 1e-6)
    scale = torch.where(radius > 1e-12, theta.sin() / radius.clamp(min=1e-12), torch.ones_like(radius))
    directions = torch.stack([x * scale, y * scale, theta.cos()], -1)
    return torch.where(valid[..., None], directions, torch.zeros_like(directions))


def _solve(model: Callable[[Tensor], tuple[Tensor, Tensor]], target: Tensor) -> Tensor:
    """Solve ``model(x) = target`` by Newton's method from ``x = target``."""
    solution = target.clamp(max=math.pi)
    for _ in range(_NEWTON_STEPS):
        value, slope = model(solution)
        slope = torch.where(slope.abs() < 1e-6, torch.full_like(slope, 1e-6), slope)
        solution = (solution - (value - target) / slope).clamp(0.0, math.pi)
    return solution


@functools.lru_cache(maxsize=64)
def tile_cones(lens: Lens, device: torch.device) -> Tensor:
    """Return a hierarchy of cones around the directions of square tiles of pixels; computed once per lens.

    Level 0 has one cone per tile of 8 x 8 pixels in row-major order; each further level joins 2 x 2, up to
    one.

    Args:
        lens: The lens.
        device: Where the table is to be.

    Returns:
        ``(M, 5)`` float32, all levels one after the other: unit axis in camera coordinates, cosine and sine
        of the half angle.
    """
    directions = pixel_directions(lens, torch.device("cpu"), torch.float64)
    rows, columns = -(-lens.height // TILE), -(-lens.width // TILE)
    padded = directions.new_zeros(rows * TILE, columns * TILE, 3)
    padded[: lens.height, : lens.width] = directions
    tiles = padded.view(rows, TILE, columns, TILE, 3).transpose(1, 2).reshape(rows, columns, -1, 3)
    exists = tiles.square().sum(-1) > 0.5
    axis = torch.nn.functional.normalize(tiles.sum(2), dim=-1)
    half = torch.where(exists, _angle(axis[:, :, None], tiles), 0.0).max(-1).values
    # directions that cancel out have no axis: such a cone holds everything, an empty one nothing
    half = torch.where(axis.square().sum(-1) > 0.5, half, math.pi)
    half = torch.where(exists.any(-1), half, -1.0)
    levels = []
    while True:
        angle = (half + 1e-6).clamp(max=math.pi)
        cosine = torch.where(half >= 0, angle.cos(), 2.0)
        sine = torch.where(half >= 0, angle.sin(), 0.0)
        levels.append(torch.cat([axis, cosine[..., None], sine[..., None]], -1).reshape(-1, 5))
        if half.numel() == 1:
            break
        axis, half = _join_cones(axis, half)
    return torch.cat(levels).to(device, torch.float32)


def _angle(one: Tensor, other: Tensor) -> Tensor:
    """Return the angle between unit vectors, exact for small ones."""
    return 2 * torch.asin((0.5 * (one - other).norm(dim=-1)).clamp(max=1.0))


def _join_cones(axis: Tensor, half: Tensor) -> tuple[Tensor, Tensor]:
    """Return cones around squares of 2 x 2 cones."""
    rows, columns = -(-half.shape[0] // 2), -(-half.shape[1] // 2)
    axes = axis.new_zeros(2 * rows, 2 * columns, 3)
    halves = half.new_full((2 * rows, 2 * columns), -1.0)
    axes[: half.shape[0], : half.shape[1]] = axis
    halves[: half.shape[0], : half.shape[1]] = half
    axes = axes.view(rows, 2, columns, 2, 3).transpose(1, 2).reshape(rows, columns, 4, 3)
    halves = halves.view(rows, 2, columns, 2).transpose(1, 2).reshape(rows, columns, 4)
    some = halves >= 0
    joined = torch.nn.functional.normalize((axes * some[..., None]).sum(2), dim=-1)
    reach = torch.where(some, _angle(joined[:, :, None], axes) + halves, 0.0).max(-1).values
    reach = torch.where(joined.square().sum(-1) > 0.5, reach, math.pi)
    return joined, torch.where(some.any(-1), reach.clamp(max=math.pi), -1.0)
