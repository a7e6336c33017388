"""The complete power diagram: every wall of every unbounded cell, which the ray tracer walks along."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from graftwork_power_foam.ops.adjacency import Adjacency, check_balls

_FEW = 8  # below this many balls everybody is everybody's neighbour


def power_diagram(centers: Tensor, radii: Tensor) -> Adjacency:
    """List the neighbours of every cell in the power diagram of all space.

    Balls whose cell is empty have no neighbours; they are invisible. Computed on the CPU by a convex hull in
    four dimensions (SciPy's Qhull): under a second for some thousand balls, minutes for a million.

    Example:
        >>> centers = torch.tensor([[0.0, 0, 0], [1, 0, 0], [2, 0, 0]])
        >>> power_diagram(centers, torch.ones(3)).degrees.shape
        torch.Size([3])

    Args:
        centers: ``(N, 3)``, ball centres, world units.
        radii: ``(N,)``, ball radii.

    Returns:
        The neighbours, of kind ``"diagram"``, on the device of the centres.

    Raises:
        ValueError: Wrong shapes, or values that are not finite.
    """
    check_balls(centers, radii)
    positions = centers.detach().double().cpu().numpy()
    squares = radii.detach().double().cpu().numpy() ** 2
    pairs = _edges(positions, squares)
    pairs = np.unique(np.concatenate([pairs, pairs[:, ::-1]]), axis=0)  # sorted by row
    offsets = np.zeros(len(positions) + 1, dtype=np.int32)
    np.cumsum(np.bincount(pairs[:, 0], minlength=len(positions)), out=offsets[1:])
    return Adjacency(
        torch.from_numpy(offsets).to(centers.device),
        torch.from_numpy(pairs[:, 1].astype(np.int32)).to(centers.device),
        "diagram",
        0.0,
        centers.detach().clone(),
        radii.detach().clone(),
    )


def _edges(positions: np.ndarray, squares: np.ndarray) -> np.ndarray:
    """Return pairs of neighbours ``(M, 2)``, perhaps with repetitions, in one direction or both."""
    _, first = np.unique(np.concatenate([positions, squares[:, None]], 1), axis=0, return_index=True)
    first.sort()  # of identical balls the first owns the cell
    if len(first) < _FEW:
        return _all_pairs(first)
    points = positions[first] - positions[first].mean(0)
    scale = np.abs(points).max() or 1.0
    points, weights = points / scale, squares[first] / scale**2
    lifted = np.concatenate([points, (points**2).sum(1, keepdims=True) - weights[:, None]], 1)
    faces = _lower_hull(lifted)
    corners = [faces[:, [i, j]] for i in range(4) for j in range(i)]
    pairs = np.concatenate(corners)
    return first[pairs[(pairs < len(first)).all(1)]]  # without the helping points


def _lower_hull(lifted: np.ndarray) -> np.ndarray:
    """Return the simplices ``(M, 4)`` of the part of a hull that is seen from below."""
    from scipy.spatial import ConvexHull, QhullError

    try:
        hull = ConvexHull(lifted)
    except QhullError:
        # all in one plane or on one sphere: a hull of dimension four needs points elsewhere
        around = np.eye(3)[[0, 0, 1, 1, 2, 2]] * 1e4 * np.array([[1], [-1]] * 3)
        beside = np.concatenate([around, (around**2).sum(1, keepdims=True)], 1)
        hull = ConvexHull(np.concatenate([lifted, beside]), qhull_options="QJ")
    return hull.simplices[hull.equations[:, 3] < 0]


def _all_pairs(index: np.ndarray) -> np.ndarray:
    row, column = np.meshgrid(index, index, indexing="ij")
    other = row != column
    return np.stack([row[other], column[other]], 1)
