"""Search for overlapping balls: natively through a bounding volume hierarchy, or by brute force in torch."""

from __future__ import annotations

import torch
from torch import Tensor

_PAIRS_AT_ONCE = 1 << 24
_FEW = 64  # so few that a tree does not pay


def overlaps(centers: Tensor, radii: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    """Return offsets and neighbours, each row sorted by the usefulness of its walls.

    Args:
        centers: ``(N, 3)``.
        radii: ``(N,)``.
        margin: Largest gap.

    Returns:
        Offsets ``(N + 1,)`` and neighbours ``(E,)``, int32.
    """
    if len(centers) <= _FEW or centers.device.type not in ("cpu", "cuda"):
        return brute_force(centers, radii, margin)
    from graftwork.extension import Unavailable
    from graftwork_power_foam.ops import native

    # float32 may round a touching pair apart: a longer list is still exact
    reach = float(centers.abs().max()) + float(radii.max())
    slack = margin + 4 * torch.finfo(torch.float32).eps * reach
    try:
        return native.overlaps(
            centers.to(torch.float32).contiguous(), radii.to(torch.float32).contiguous(), slack
        )
    except Unavailable:
        return brute_force(centers, radii, margin)


def brute_force(centers: Tensor, radii: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    """Compare every ball with every other.

    Args:
        centers: ``(N, 3)``.
        radii: ``(N,)``.
        margin: Largest gap.

    Returns:
        Offsets ``(N + 1,)`` and neighbours ``(E,)``, int32.
    """
    count = len(centers)
    rows, columns = [], []
    chunk = max(1, _PAIRS_AT_ONCE // max(1, 3 * count))
    for start in range(0, count, chunk):
        distance = (centers[start : start + chunk, None] - centers).norm(dim=-1)
        touching = distance < radii[start : start + chunk, None] + radii + margin
        row, column = touching.nonzero(as_tuple=True)
        other = row + start != column
        rows.append(row[other] + start)
        columns.append(column[other])
    row = torch.cat(rows) if rows else torch.zeros(0, dtype=torch.long, device=centers.device)
    column = torch.cat(columns) if columns else row
    row, column = row[order := _usefulness_order(centers, radii, row, column)], column[order]
    counts = torch.bincount(row, minlength=count)
    offsets = torch.zeros(count + 1, dtype=torch.int32, device=centers.device)
    offsets[1:] = counts.cumsum(0)
    return offsets, column.to(torch.int32)


def _usefulness_order(centers: Tensor, radii: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Sort pairs by row, then by the signed distance of the wall from the row's centre."""
    toward = centers[column] - centers[row]
    square = toward.square().sum(-1)
    offset = 0.5 * (square + radii[row].square() - radii[column].square())
    order = torch.argsort(offset / square.sqrt().clamp(min=1e-30), stable=True)
    return order[torch.argsort(row[order], stable=True)]
