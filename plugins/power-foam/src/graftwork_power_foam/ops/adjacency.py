"""Which cells share a wall: overlapping balls for clipping, the power diagram's edges for walking.

A wall between two cells can cut a ball only where both balls overlap, so clipping against all overlapping
balls (the edges of the Cech complex) gives exactly the bounded power cell; any shorter list is wrong, any
longer one only slower. Lists made with a margin therefore stay exact while the balls move a little.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["overlap", "diagram"]


@dataclass(frozen=True)
class Adjacency:
    """Neighbours of every cell in compressed rows, both directions stored.

    Args:
        offsets: ``(N + 1,)`` int32; the neighbours of cell i are ``neighbors[offsets[i]:offsets[i + 1]]``.
        neighbors: ``(E,)`` int32.
        kind: ``"overlap"``: every ball that overlaps, enough for the rasterizer. ``"diagram"``: every edge of
            the complete power diagram, which the ray tracer walks along.
        margin: Balls whose gap is below this are listed too, world units.
        centers: ``(N, 3)``, ball centres for which the list was made.
        radii: ``(N,)``, radii for which the list was made.
    """

    offsets: Tensor
    neighbors: Tensor
    kind: Kind
    margin: float
    centers: Tensor
    radii: Tensor
    _padded: list[Tensor] = field(default_factory=list, repr=False, compare=False)

    def __len__(self) -> int:
        return int(self.offsets.shape[0]) - 1

    @property
    def degrees(self) -> Tensor:
        """``(N,)``, number of neighbours of each cell."""
        return self.offsets[1:] - self.offsets[:-1]

    def shown(self) -> Tensor:
        """Return which cells of a complete diagram are not empty, ``(N,)`` bool: others have no walls."""
        some = self.degrees > 0
        if len(self) > 0 and not bool(some.any()):
            some[self.radii.argmax()] = True  # a single cell owns all space
        return some

    def padded(self) -> Tensor:
        """Return the neighbours as a matrix ``(N, D)`` of int64, -1 where a row is shorter."""
        if not self._padded:
            degrees = self.degrees.long()
            width = int(degrees.max()) if len(degrees) else 0
            matrix = torch.full((len(self), width), -1, dtype=torch.long, device=self.offsets.device)
            row = torch.repeat_interleave(torch.arange(len(self), device=matrix.device), degrees)
            column = torch.arange(len(row), device=matrix.device) - self.offsets[:-1].long()[row]
            matrix[row, column] = self.neighbors.long()
            self._padded.append(matrix)
        return self._padded[0]

    def holds(self, centers: Tensor, radii: Tensor) -> bool:
        """Say whether the list is still exact for balls that have moved.

        Two balls that were further apart than the margin cannot overlap before one of them has moved and
        grown by more than half of it.

        Args:
            centers: ``(N, 3)``, present centres.
            radii: ``(N,)``, present radii.
        """
        if len(self) != len(centers):
            return False
        with torch.no_grad():
            moved = (centers - self.centers).norm(dim=-1)
            if self.kind == "diagram":
                return not bool((moved > 0).any() or (radii != self.radii).any())
            grown = moved + (radii - self.radii)
            return not bool((grown > 0.5 * self.margin).any())


def overlap_neighbors(centers: Tensor, radii: Tensor, margin: float = 0.0) -> Adjacency:
    """List every overlapping ball of every ball, exactly.

    Example:
        >>> centers = torch.tensor([[0.0, 0, 0], [1.5, 0, 0], [9, 0, 0]])
        >>> overlap_neighbors(centers, torch.ones(3)).neighbors
        tensor([1, 0], dtype=torch.int32)

    Each row is sorted by how much its wall cuts off, the most useful first.

    Args:
        centers: ``(N, 3)``, ball centres, world units.
        radii: ``(N,)``, ball radii.
        margin: List balls with a gap below this too; see :meth:`Adjacency.holds`.

    Returns:
        The neighbours, of kind ``"overlap"``.

    Raises:
        ValueError: Wrong shapes, values that are not finite, or a negative radius or margin.
    """
    check_balls(centers, radii)
    if not margin >= 0:
        raise ValueError(f"margin must not be negative, got {margin}.")
    from graftwork_power_foam.ops import neighbors

    centers, radii = centers.detach(), radii.detach()
    offsets, found = neighbors.overlaps(centers, radii, margin)
    return Adjacency(offsets, found, "overlap", float(margin), centers.clone(), radii.clone())


def check_balls(centers: Tensor, radii: Tensor) -> None:
    """Raise ValueError unless these are finite balls."""
    if centers.dim() != 2 or centers.shape[1] != 3 or radii.shape != centers.shape[:1]:
        raise ValueError(
            "centers must have shape (N, 3) and radii (N,), got "
            f"{tuple(centers.shape)} and {tuple(radii.shape)}."
        )
    finite = centers.isfinite().all(-1) & radii.isfinite() & (radii >= 0)
    if not bool(finite.all()):
        index = int((~finite).nonzero()[0])
        raise ValueError(
            f"cell {index} of {len(finite)} is no ball: centre {centers[index].tolist()}, radius "
            f"{float(radii[index])}; {int((~finite).sum())} such cells. Look for a diverged training run."
        )
