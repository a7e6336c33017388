"""Steiner cells: invisible cells in the voids of a scene, which shorten the walks of the ray tracer."""

from __future__ import annotations

import torch
from torch import Tensor

from graftwork_power_foam.ops.adjacency import check_balls
from graftwork_power_foam.ops.cells import Cells

_NEIGHBORS = 32


def add_steiner_cells(
    cells: Cells, *, rounds: int = 10, share: float = 0.25, generator: torch.Generator | None = None
) -> Cells:
    """Append invisible cells where the scene is empty; the image stays the same.

    A new ball keeps clear of every ball of the scene, so that it takes nothing of a visible cell away:
    outside its own ball a cell's power is positive.

    Example:
        >>> cells = add_steiner_cells(cells)  # doctest: +SKIP
        >>> diagram = power_diagram(cells.centers, cells.radii)  # doctest: +SKIP

    Args:
        cells: N cells, which stay first.
        rounds: How often samples are drawn.
        share: Samples per round, as a share of N.
        generator: Where the samples come from; None for torch's default.

    Returns:
        The cells followed by the new ones, which have density 0.

    Note:
        The official code looks for clearance among the 32 nearest centres only, so a large ball further away
        can be overlapped. Here the clearance is to all balls.
    """
    check_balls(cells.centers, cells.radii)
    centers = cells.centers.detach().double().cpu()
    radii = cells.radii.detach().double().cpu()
    if len(cells) < 2:
        return cells
    mean, spread = centers.mean(0), 0.5 * centers.std(0)
    new_centers, new_radii = centers[:0], radii[:0]
    for _ in range(rounds):
        count = max(1, int(share * len(cells)))
        samples = torch.randn(count, 3, generator=generator, dtype=torch.float64) * spread + mean
        room, nearest = _clearance(samples, torch.cat([centers, new_centers]), torch.cat([radii, new_radii]))
        wanted = (room > 2 * nearest) & (room < 6 * nearest)
        picked = _spread(samples[wanted], 0.8 * room[wanted])
        new_centers = torch.cat([new_centers, samples[wanted][picked]])
        new_radii = torch.cat([new_radii, 0.8 * room[wanted][picked]])
    added = len(new_radii)

    def padding(tensor: Tensor) -> Tensor:
        return tensor.new_zeros(added, *tensor.shape[1:])

    extra = cells.map(padding).with_(
        centers=new_centers.to(cells.centers),
        radii=new_radii.to(cells.radii),
        quaternions=_identity(cells, added),
    )
    pairs = zip(cells.named(), extra.tensors())
    return Cells(**{name: torch.cat([tensor, more]) for (name, tensor), more in pairs})


def _identity(cells: Cells, count: int) -> Tensor:
    quaternions = cells.quaternions.new_zeros(count, 4)
    quaternions[:, 0] = 1
    return quaternions


def _clearance(samples: Tensor, centers: Tensor, radii: Tensor) -> tuple[Tensor, Tensor]:
    """Return for each sample the distance to the nearest ball's surface, and that ball's radius."""
    from scipy.spatial import cKDTree

    number = min(_NEIGHBORS, len(centers))
    found = cKDTree(centers.numpy()).query(samples.numpy(), k=number)
    distance, index = (torch.from_numpy(part).view(-1, number) for part in found)
    room, closest = (distance - radii[index]).min(-1)
    nearest = index.gather(1, closest[:, None])[:, 0]
    # a ball whose centre is further away counts only if it is large enough to reach as far
    doubtful = (distance[:, -1] - radii.max() < room).nonzero().squeeze(1)
    for part in doubtful.split(max(1, (1 << 24) // max(1, 3 * len(centers)))):
        room[part], nearest[part] = (torch.cdist(samples[part], centers) - radii).min(-1)
    return room, radii[nearest]


def _spread(centers: Tensor, radii: Tensor) -> Tensor:
    """Choose balls, large ones first, that overlap an earlier choice by at most a tenth; their indices."""
    from scipy.spatial import cKDTree

    if len(centers) == 0:
        return torch.zeros(0, dtype=torch.long)
    order = torch.argsort(radii, descending=True)
    tree = cKDTree(centers.numpy())
    largest = float(radii.max())
    free = torch.ones(len(centers), dtype=torch.bool)
    chosen = []
    for index in order.tolist():
        if not free[index]:
            continue
        chosen.append(index)
        close = torch.tensor(tree.query_ball_point(centers[index].numpy(), float(radii[index]) + largest))
        together = radii[index] + radii[close]
        overlap = (together - (centers[close] - centers[index]).norm(dim=-1)) / together
        free[close[overlap > 0.1]] = False
    return torch.tensor(chosen)
