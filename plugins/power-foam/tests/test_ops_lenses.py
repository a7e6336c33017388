"""Lenses: directions against the projections they invert, and cones that hold what they claim."""

from __future__ import annotations

import math

import pytest
import torch
from foam_scenes import look_at
from torch import Tensor

from graftwork_power_foam import Cameras, Lens
from graftwork_power_foam.ops.lenses import TILE, pixel_directions, tile_cones

CPU = torch.device("cpu")
DISTORTION = (0.1, -0.05, 0.01, 0.002, 0.01, -0.02)


def centers(lens: Lens) -> tuple[Tensor, Tensor]:
    rows, columns = torch.meshgrid(
        torch.arange(lens.height) + 0.5, torch.arange(lens.width) + 0.5, indexing="ij"
    )
    return columns.double(), rows.double()


def test_pinhole_directions_project_back_to_the_pixel_centres() -> None:
    lens = Lens(width=20, height=10, fx=15.0, fy=12.0, cx=3.0, cy=30.0, distortion=DISTORTION)
    x, y, z = pixel_directions(lens, CPU, torch.float64).unbind(-1)
    columns, rows = centers(lens)
    keep = z > 0
    assert bool(keep.any())
    u, v = (x / z)[keep], (y / z)[keep]
    k1, k2, k3, k4, p1, p2 = DISTORTION
    square = u * u + v * v
    radial = 1 + k1 * square + k2 * square**2 + k3 * square**3 + k4 * square**4
    distorted_u = u * radial + 2 * p1 * u * v + p2 * (square + 2 * u * u)
    distorted_v = v * radial + 2 * p2 * u * v + p1 * (square + 2 * v * v)
    torch.testing.assert_close(distorted_u * lens.fx + lens.cx, columns[keep], atol=1e-4, rtol=0)
    torch.testing.assert_close(distorted_v * lens.fy + lens.cy, rows[keep], atol=1e-4, rtol=0)


def test_fisheye_directions_project_back_to_the_pixel_centres() -> None:
    lens = Lens(
        width=30, height=30, fx=8.0, fy=9.0, cx=14.0, cy=15.0, model="fisheye",
        distortion=(0.02, -0.004, 0.0, 0.0, 0.0, 0.0),
    )  # fmt: skip
    x, y, z = pixel_directions(lens, CPU, torch.float64).unbind(-1)
    columns, rows = centers(lens)
    exists = (x * x + y * y + z * z) > 0.5
    assert 0.5 < float(exists.double().mean()) <= 1
    assert bool((z[exists] < 0).any()), "a fisheye sees more than half a turn"
    theta = torch.atan2((x * x + y * y).sqrt(), z)
    radius = theta * (1 + 0.02 * theta**2 - 0.004 * theta**4)
    scale = radius / (x * x + y * y).sqrt()
    torch.testing.assert_close((x * scale * lens.fx + lens.cx)[exists], columns[exists], atol=1e-4, rtol=0)
    torch.testing.assert_close((y * scale * lens.fy + lens.cy)[exists], rows[exists], atol=1e-4, rtol=0)


def test_equirectangular_pixels_cover_the_sphere() -> None:
    lens = Lens(width=64, height=32, model="equirectangular")
    directions = pixel_directions(lens, CPU, torch.float64)
    latitude = (torch.arange(32, dtype=torch.float64) + 0.5) / 32 * math.pi - math.pi / 2
    area = latitude.cos()[:, None].expand(32, 64)
    torch.testing.assert_close(
        (directions * area[..., None]).sum((0, 1)), torch.zeros(3).double(), atol=1e-9, rtol=0
    )
    middle = directions[15:17, 31:33].mean((0, 1))
    assert float(middle[2]) > 0.99
    assert float(directions[16, 48, 0]) > 0.9  # a quarter of the width further right looks to the right
    assert float(directions[31, 0, 1]) > 0.99  # the last row looks down


@pytest.mark.parametrize(
    "lens",
    [
        Lens(width=37, height=21, fx=30.0, fy=30.0, cx=18.0, cy=10.0),
        Lens(width=37, height=21, fx=5.0, fy=5.0, cx=18.0, cy=10.0, model="fisheye"),
        Lens(width=64, height=32, model="equirectangular"),
        Lens.custom(torch.zeros(9, 9, 3).index_fill_(2, torch.tensor([2]), 1.0).tril()),
    ],
    ids=["pinhole", "fisheye", "equirectangular", "partly empty"],
)
def test_cones_hold_the_directions_of_their_pixels(lens: Lens) -> None:
    directions = pixel_directions(lens, CPU, torch.float64)
    table = tile_cones(lens, CPU).double()
    rows, columns, start, size = -(-lens.height // TILE), -(-lens.width // TILE), 0, TILE
    while True:
        level = table[start : start + rows * columns].view(rows, columns, 5)
        for row in range(rows):
            for column in range(columns):
                inside = directions[row * size : (row + 1) * size, column * size : (column + 1) * size]
                exists = inside.square().sum(-1) > 0.5
                axis, cosine = level[row, column, :3], level[row, column, 3]
                assert bool((inside[exists] @ axis >= cosine - 1e-6).all())
                if not bool(exists.any()):
                    assert float(cosine) > 1
        start += rows * columns
        if rows == columns == 1:
            break
        rows, columns, size = -(-rows // 2), -(-columns // 2), 2 * size
    assert start == len(table)


def test_opengl_poses_look_along_minus_z() -> None:
    lens = Lens(width=3, height=3, fx=3.0, fy=3.0, cx=1.5, cy=1.5)
    rays = Cameras.from_opengl(torch.eye(4, dtype=torch.float64)[None], lens).rays()
    torch.testing.assert_close(rays.directions[0, 1, 1], torch.tensor([0.0, 0, -1]).double())
    assert float(rays.directions[0, 0, 1, 1]) > 0  # the first row looks up
    assert float(rays.directions[0, 1, 0, 0]) < 0  # the first column looks left


def test_scaled_lens_sees_the_same() -> None:
    lens = Lens(width=64, height=48, fx=60.0, fy=50.0, cx=30.0, cy=20.0, distortion=DISTORTION)
    half = lens.scaled(0.5)
    assert (half.width, half.height) == (32, 24)
    fine = pixel_directions(lens, CPU, torch.float64)
    coarse = pixel_directions(half, CPU, torch.float64)
    mean = fine.view(24, 2, 32, 2, 3).mean((1, 3))
    torch.testing.assert_close(coarse, mean, atol=1e-3, rtol=0)


def test_impossible_lenses_and_cameras_are_explained() -> None:
    with pytest.raises(ValueError, match="focal lengths"):
        Lens(width=4, height=4, fx=-1.0)
    with pytest.raises(ValueError, match="tangential"):
        Lens(width=4, height=4, model="fisheye", distortion=(0, 0, 0, 0, 0.1, 0))
    with pytest.raises(ValueError, match="one size"):
        Cameras(look_at((1, 0, 0)).expand(2, 3, 4), [Lens(width=4, height=4), Lens(width=5, height=4)])
    with pytest.raises(ValueError, match=r"\(C, 3, 4\)"):
        Cameras(torch.eye(4), Lens(width=4, height=4))
