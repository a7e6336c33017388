"""The parameters of a scene: balls, each with a dipole frame, detail sites and directional colours.

Legend of shapes: N cells, K detail sites per cell, L spherical axes per site.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

MAX_SITES = 32
MAX_AXES = 32


@dataclass(frozen=True)
class Cells:
    """A scene of bounded power cells, all quantities activated: what a renderer takes.

    Every tensor is differentiable in both renderers. All share one device and one floating dtype. The native
    backends compute in float32; float16 and bfloat16 are converted on entry, float64 needs the reference.

    Example:
        >>> cells = Cells(
        ...     centers=torch.zeros(1, 3), radii=torch.ones(1), density=torch.full((1,), 50.0),
        ...     quaternions=torch.tensor([[1.0, 0, 0, 0]]), sites=torch.zeros(1, 8, 2),
        ...     heights=torch.zeros(1, 8), axes=torch.randn(1, 8, 8, 3), colors=torch.zeros(1, 8, 8, 3),
        ... )
        >>> len(cells), cells.num_sites, cells.num_axes
        (1, 8, 8)

    Args:
        centers: ``(N, 3)``, ball centres, world units.
        radii: ``(N,)``, ball radii, world units, not negative.
        density: ``(N,)``, extinction per world unit on the filled side, not negative. A cell of density 0
            is invisible and is skipped.
        quaternions: ``(N, 4)``, wxyz, any length but zero; the rotation's first row is the normal (the
            filled side lies opposite), the other two span the detail plane. See :func:`frames`.
        sites: ``(N, K, 2)``, positions of the detail sites in the plane, in radii.
        heights: ``(N, K)``, displacement of the surface along the normal at each site, in radii.
        axes: ``(N, K, L, 3)``, axes of each site's spherical Voronoi; the length is the sharpness.
        colors: ``(N, K, L, 3)``, RGB of each axis as offset from 0.5.

    Raises:
        ValueError: Shapes, dtypes or devices do not fit each other; the offending one is named.
    """

    centers: Tensor
    radii: Tensor
    density: Tensor
    quaternions: Tensor
    sites: Tensor
    heights: Tensor
    axes: Tensor
    colors: Tensor

    def __post_init__(self) -> None:
        if self.sites.dim() != 3 or self.axes.dim() != 4:
            raise ValueError(
                f"sites must have shape (N, K, 2) and axes (N, K, L, 3), got {tuple(self.sites.shape)} and "
                f"{tuple(self.axes.shape)}; a flat (N, K, 3L) tensor becomes axes.view(N, K, L, 3)."
            )
        count, sites, axes = self.centers.shape[0], self.sites.shape[1], self.axes.shape[2]
        expected = {
            "centers": (count, 3),
            "radii": (count,),
            "density": (count,),
            "quaternions": (count, 4),
            "sites": (count, sites, 2),
            "heights": (count, sites),
            "axes": (count, sites, axes, 3),
            "colors": (count, sites, axes, 3),
        }
        for name, tensor in self.named():
            if tuple(tensor.shape) != expected[name]:
                raise ValueError(f"{name} must have shape {expected[name]}, got {tuple(tensor.shape)}.")
            if tensor.device != self.centers.device or tensor.dtype != self.centers.dtype:
                raise ValueError(
                    f"{name} is {tensor.dtype} on {tensor.device}, centers are {self.centers.dtype} on "
                    f"{self.centers.device}; all tensors of Cells share dtype and device."
                )
        if not self.centers.is_floating_point():
            raise ValueError(f"Cells hold floating-point tensors, got {self.centers.dtype}.")
        if not (1 <= sites <= MAX_SITES and 1 <= axes <= MAX_AXES):
            raise ValueError(
                f"a cell has 1 to {MAX_SITES} sites and a site 1 to {MAX_AXES} axes, got {sites} and {axes}."
            )

    def __len__(self) -> int:
        return int(self.centers.shape[0])

    @property
    def num_sites(self) -> int:
        """K, detail sites per cell."""
        return int(self.sites.shape[1])

    @property
    def num_axes(self) -> int:
        """L, spherical axes per site."""
        return int(self.axes.shape[2])

    @property
    def device(self) -> torch.device:
        """Device of all tensors."""
        return self.centers.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of all tensors."""
        return self.centers.dtype

    def named(self) -> Iterator[tuple[str, Tensor]]:
        """Iterate over names and tensors, in the order of the fields."""
        for item in fields(self):
            yield item.name, getattr(self, item.name)

    def tensors(self) -> tuple[Tensor, ...]:
        """Return the eight tensors in the order of the fields."""
        return tuple(tensor for _, tensor in self.named())

    def map(self, function: Callable[[Tensor], Tensor]) -> Cells:
        """Return cells with a function applied to every tensor, such as ``cells.map(Tensor.detach)``."""
        return Cells(**{name: function(tensor) for name, tensor in self.named()})

    def to(self, *args: torch.device | torch.dtype | str) -> Cells:
        """Return the cells on another device or in another dtype, as ``Tensor.to``."""
        return self.map(lambda tensor: tensor.to(*args))

    def select(self, index: Tensor) -> Cells:
        """Return some of the cells.

        Args:
            index: ``(M,)`` integers or ``(N,)`` booleans.
        """
        return self.map(lambda tensor: tensor[index])

    def with_(self, **tensors: Tensor) -> Cells:
        """Return the cells with some tensors exchanged."""
        return replace(self, **tensors)


def frames(quaternions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return normal and the two in-plane directions of each dipole frame.

    Args:
        quaternions: ``(..., 4)``, wxyz, not necessarily normalised.

    Returns:
        Normals, tangents and bitangents, each ``(..., 3)`` and of unit length, world.
    """
    w, x, y, z = torch.nn.functional.normalize(quaternions, dim=-1).unbind(-1)
    normal = torch.stack([1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)], -1)
    tangent = torch.stack([2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)], -1)
    bitangent = torch.stack([2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)], -1)
    return normal, tangent, bitangent


def power(points: Tensor, centers: Tensor, radii: Tensor) -> Tensor:
    """Return the power ``|x - c|^2 - r^2`` of points with respect to balls, broadcasting.

    Args:
        points: ``(..., 3)``, world.
        centers: ``(..., 3)``, world.
        radii: ``(...)``.

    Returns:
        ``(...)``; negative inside a ball. A point belongs to the cell of the smallest power.
    """
    distance = (points - centers).norm(dim=-1)
    return (distance - radii) * (distance + radii)
