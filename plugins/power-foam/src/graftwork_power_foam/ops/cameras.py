"""Cameras as lens and pose, and rays with origins of their own.

Frames: camera axes are x right, y down, z forward (OpenCV); a pose maps camera to world coordinates. Pixel
``(column, row)`` has its centre at ``(column + 0.5, row + 0.5)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from graftwork_power_foam.ops.lenses import Lens, pixel_directions


@dataclass(frozen=True)
class Rays:
    """Rays with their own origins.

    Example:
        >>> Rays(torch.zeros(2, 3), torch.tensor([[0.0, 0, 1], [0, 1, 0]])).shape
        torch.Size([2])

    Args:
        origins: ``(..., 3)``, world.
        directions: ``(..., 3)``, unit length, world; a zero direction makes an empty ray.
        far: ``(...)``, length at which each ray ends, world units; None for no end.

    Raises:
        ValueError: Shapes, dtypes or devices do not fit each other.
    """

    origins: Tensor
    directions: Tensor
    far: Tensor | None = None

    def __post_init__(self) -> None:
        if self.origins.shape != self.directions.shape or self.origins.shape[-1:] != (3,):
            raise ValueError(
                "origins and directions must have the same shape (..., 3), got "
                f"{tuple(self.origins.shape)} and {tuple(self.directions.shape)}."
            )
        if self.far is not None and self.far.shape != self.shape:
            raise ValueError(f"far must have shape {tuple(self.shape)}, got {tuple(self.far.shape)}.")
        for name, tensor in (("directions", self.directions), ("far", self.far)):
            if tensor is not None and (tensor.dtype, tensor.device) != (
                self.origins.dtype,
                self.origins.device,
            ):
                raise ValueError(
                    f"{name} is {tensor.dtype} on {tensor.device}, origins are {self.origins.dtype} on "
                    f"{self.origins.device}; they must agree."
                )

    @property
    def shape(self) -> torch.Size:
        """Batch shape."""
        return self.origins.shape[:-1]

    def to(self, *args: torch.device | torch.dtype | str) -> Rays:
        """Return the rays on another device or in another dtype, as ``Tensor.to``."""
        far = None if self.far is None else self.far.to(*args)
        return Rays(self.origins.to(*args), self.directions.to(*args), far)

    def at(self, distance: Tensor) -> Tensor:
        """Return the points at a distance along each ray, ``(..., 3)``, world."""
        return self.origins + distance[..., None] * self.directions


@dataclass(frozen=True)
class Cameras:
    """A batch of cameras with images of one size.

    Example:
        >>> pose = torch.eye(4)[None, :3]
        >>> cameras = Cameras(pose, Lens(width=64, height=48, fx=60.0, fy=60.0, cx=32.0, cy=24.0))
        >>> len(cameras), cameras.rays().shape
        (1, torch.Size([1, 48, 64]))

    Args:
        camera_to_world: ``(C, 3, 4)`` or ``(C, 4, 4)``, rotation and position, OpenCV axes, no scale.
        lens: One lens for all, or one for each camera, of equal image size.

    Raises:
        ValueError: Wrong shapes, or lenses of different image sizes.
    """

    camera_to_world: Tensor
    lens: Lens | Sequence[Lens]

    def __post_init__(self) -> None:
        pose = self.camera_to_world
        if pose.dim() != 3 or tuple(pose.shape[1:]) not in ((3, 4), (4, 4)):
            raise ValueError(
                f"camera_to_world must have shape (C, 3, 4) or (C, 4, 4), got {tuple(pose.shape)}."
            )
        if not pose.is_floating_point():
            raise ValueError(f"camera_to_world must be floating point, got {pose.dtype}.")
        lenses = self.lenses
        if len(lenses) not in (1, len(self)):
            raise ValueError(f"{len(self)} cameras need one lens or {len(self)}, got {len(lenses)}.")
        sizes = {(lens.width, lens.height) for lens in lenses}
        if len(sizes) != 1:
            raise ValueError(
                f"the images of a batch must have one size, got {sorted(sizes)}; render in turn."
            )

    def __len__(self) -> int:
        return int(self.camera_to_world.shape[0])

    @property
    def lenses(self) -> tuple[Lens, ...]:
        """The lenses, one or as many as there are cameras."""
        return (self.lens,) if isinstance(self.lens, Lens) else tuple(self.lens)

    @property
    def width(self) -> int:
        """Pixels per row."""
        return self.lenses[0].width

    @property
    def height(self) -> int:
        """Pixels per column."""
        return self.lenses[0].height

    @property
    def positions(self) -> Tensor:
        """``(C, 3)``, eyes, world."""
        return self.camera_to_world[:, :3, 3]

    @property
    def rotations(self) -> Tensor:
        """``(C, 3, 3)``, camera to world."""
        return self.camera_to_world[:, :3, :3]

    def to(self, *args: torch.device | torch.dtype | str) -> Cameras:
        """Return the cameras on another device or in another dtype, as ``Tensor.to``."""
        return Cameras(self.camera_to_world.to(*args), self.lens)

    @classmethod
    def from_opengl(cls, camera_to_world: Tensor, lens: Lens | Sequence[Lens]) -> Cameras:
        """Make cameras from poses with OpenGL axes (x right, y up, looking along -z), as nerfstudio's.

        Args:
            camera_to_world: ``(C, 3, 4)`` or ``(C, 4, 4)``.
            lens: As for the class.
        """
        flip = torch.tensor([1, -1, -1, 1], dtype=camera_to_world.dtype, device=camera_to_world.device)
        return cls(camera_to_world[:, :3] * flip, lens)

    def rays(self) -> Rays:
        """Return the rays of all pixels, ``(C, H, W)``, in the cameras' dtype and on their device."""
        like = self.camera_to_world
        local = torch.stack([pixel_directions(lens, like.device, like.dtype) for lens in self.lenses])
        directions = torch.einsum("cij,chwj->chwi", self.rotations, local.expand(len(self), -1, -1, -1))
        origins = self.positions[:, None, None].expand_as(directions)
        return Rays(origins, directions)
