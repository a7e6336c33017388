"""K-Means and K-Medoids on the tokens of an image, weighted or not.

Both minimise the reconstruction error sum_i w_i min_j |f_i - c_j|^2, the asymmetric Chamfer divergence from
the tokens to their representatives. Everything is vectorised over the batch, uses a fixed number of
iterations and reads no tensor value in Python, so that TorchScript, FX, ``torch.compile`` and
``torch.export`` can capture it. Distances are computed in float32 under autocast as well.

Shapes: B images, N tokens, K clusters, M channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from graftwork_token_pooling import native

INITS = ("auto", "score", "farthest", "stride")
"""How seeds are chosen: see :func:`k_medoids`."""


def k_medoids(
    features: Tensor,
    k: int,
    weights: Tensor | None = None,
    iterations: int = 5,
    init: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Partition tokens around K of them, so that the (weighted) squared distances to the medoids are small.

    Example:
        >>> tokens = torch.randn(8, 196, 384)
        >>> assignment, medoids = k_medoids(tokens, 98)
        >>> assignment.shape, medoids.shape
        (torch.Size([8, 196]), torch.Size([8, 98]))

    Args:
        features: (B, N, M), any floating dtype.
        k: Clusters, 1 to N.
        weights: (B, N) significance of each token, positive; None for equal weights.
        iterations: Rounds of assignment and update; the paper finds about five enough.
        init: ``"score"`` seeds with the K heaviest tokens, ``"stride"`` with tokens at equal steps,
            ``"farthest"`` with the heaviest, then always the token whose weight times squared distance to the
            seeds so far is largest: K steps, each unrolled in a captured graph. ``"auto"`` is ``"score"``
            with weights and ``"stride"`` without.

    Returns:
        Assignment (B, N), int64, the cluster of each token, and medoids (B, K), int64, the token in the
        middle of each cluster. The lowest index wins every tie.

    Raises:
        ValueError: A shape, `k`, `iterations` or `init` that cannot be.

    Note:
        An empty cluster, possible with duplicate tokens only, keeps its medoid. Distances are squared: the
        paper gives the objective so, and leaves the medoid update open.
    """
    _check(features, k, weights, iterations)
    tokens = features.detach().float()
    gram = inner_products(tokens, tokens)
    mass = _mass(tokens, weights)
    seeds = _seeds(gram, mass, k, init, weights is not None)
    if not torch.jit.is_scripting():  # noqa: SIM102  TorchScript skips a branch on this condition alone
        if native.serves(gram):
            return native.k_medoids(gram, mass, seeds, iterations)
    return medoid_rounds(gram, mass, seeds, iterations)


def k_means(
    features: Tensor,
    k: int,
    weights: Tensor | None = None,
    iterations: int = 5,
    init: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Partition tokens around K (weighted) means.

    Costs K N M multiply-accumulates in every round, where K-Medoids looks distances up.

    Example:
        >>> assignment, centers = k_means(torch.randn(8, 196, 384), 98)
        >>> centers.shape
        torch.Size([8, 98, 384])

    Args:
        features: (B, N, M), any floating dtype.
        k: Clusters, 1 to N.
        weights: (B, N) significance of each token, positive; None for equal weights.
        iterations: Rounds of assignment and update.
        init: As in :func:`k_medoids`.

    Returns:
        Assignment (B, N), int64, and centers (B, K, M), float32, without gradient. A cluster that loses all
        its tokens keeps its center.

    Raises:
        ValueError: A shape, `k`, `iterations` or `init` that cannot be.
    """
    _check(features, k, weights, iterations)
    tokens = features.detach().float()
    mass = _mass(tokens, weights)
    gram = inner_products(tokens, tokens) if init == "farthest" else tokens
    seeds = _seeds(gram, mass, k, init, weights is not None)
    centers = tokens.gather(1, seeds.unsqueeze(2).expand(-1, -1, tokens.shape[2]))
    for _ in range(iterations):
        owner = nearest(tokens, centers)
        filled = torch.zeros_like(mass[:, :k]).scatter_add(1, owner, mass) > 0
        centers = torch.where(filled.unsqueeze(2), weighted_means(tokens, owner, k, mass), centers)
    return nearest(tokens, centers), centers


def weighted_means(features: Tensor, assignment: Tensor, k: int, weights: Tensor | None = None) -> Tensor:
    """Average the tokens of every cluster; the gradient of a mean by its member i is w_i / sum w.

    Args:
        features: (B, N, M).
        assignment: (B, N), int64, in 0..K-1.
        k: Clusters.
        weights: (B, N), positive, without gradient; None for equal weights.

    Returns:
        (B, K, M) in the dtype of the features; zeros for an empty cluster.
    """
    batch, tokens, width = features.shape
    mass = _mass(features, weights)
    total = torch.zeros_like(mass[:, :1]).expand(-1, k).scatter_add(1, assignment, mass)
    share = mass / total.gather(1, assignment)
    rows = assignment + k * torch.arange(batch, device=features.device).unsqueeze(1)
    weighted = (features.float() * share.unsqueeze(2)).reshape(batch * tokens, width)
    sums = torch.zeros(batch * k, width, dtype=torch.float32, device=features.device)
    return sums.index_add(0, rows.reshape(-1), weighted).view(batch, k, width).to(features.dtype)


def reconstruction_error(features: Tensor, centers: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the paper's objective, sum_i w_i min_j |f_i - c_j|^2, of each image.

    Args:
        features: (B, N, M).
        centers: (B, K, M).
        weights: (B, N); None for equal weights.

    Returns:
        (B,), float32.
    """
    tokens, targets = features.float(), centers.float()
    owner = nearest(tokens, targets)
    chosen = targets.gather(1, owner.unsqueeze(2).expand(-1, -1, targets.shape[2]))
    error = (tokens - chosen).square().sum(2)
    return error.sum(1) if weights is None else (error * weights.float()).sum(1)


def nearest(features: Tensor, centers: Tensor) -> Tensor:
    """Return the index of the center nearest to each token, the lowest among equals: (B, N), int64.

    Args:
        features: (B, N, M), float32.
        centers: (B, K, M), float32.
    """
    # |f|^2 does not change which center is nearest
    return (centers.square().sum(2).unsqueeze(1) - 2 * inner_products(features, centers)).argmin(2)


def inner_products(a: Tensor, b: Tensor) -> Tensor:
    """Multiply (B, N, M) by (B, K, M) transposed, in float32 whatever autocast says: (B, N, K)."""
    if torch.jit.is_scripting():
        # TorchScript can neither see nor leave autocast; autocast leaves float64 alone
        return torch.bmm(a.double(), b.double().transpose(1, 2)).float()
    if torch.is_autocast_enabled(a.device.type):
        with torch.autocast(a.device.type, enabled=False):
            return torch.bmm(a, b.transpose(1, 2))
    return torch.bmm(a, b.transpose(1, 2))


def medoid_rounds(gram: Tensor, weights: Tensor, seeds: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """Alternate assignment and update of K-Medoids, given all inner products.

    Args:
        gram: (B, N, N), float32.
        weights: (B, N), float32, positive.
        seeds: (B, K), int64.
        iterations: Rounds.

    Returns:
        Assignment (B, N) and medoids (B, K).
    """
    tokens = weights.shape[1]
    distance = squared_distances(gram)
    index = torch.arange(tokens, device=gram.device).expand_as(weights)
    medoids = seeds
    for _ in range(iterations):
        owner = _owner(distance, medoids)
        same = owner.unsqueeze(2) == owner.unsqueeze(1)
        cost = (distance * same * weights.unsqueeze(1)).sum(2)
        unset = torch.full_like(seeds, tokens)
        lowest = unset.to(cost.dtype).fill_(float("inf")).scatter_reduce(1, owner, cost, "amin")
        candidate = torch.where(cost <= lowest.gather(1, owner), index, tokens)
        found = unset.scatter_reduce(1, owner, candidate, "amin")
        medoids = torch.where(found < tokens, found, medoids)
    return _owner(distance, medoids), medoids


def squared_distances(gram: Tensor) -> Tensor:
    """Turn inner products (B, N, N) into squared distances, exactly zero from each token to itself."""
    norm = gram.diagonal(dim1=1, dim2=2)
    return ((norm.unsqueeze(2) + norm.unsqueeze(1)) - 2 * gram).clamp_min(0)


def _owner(distance: Tensor, medoids: Tensor) -> Tensor:
    tokens = distance.shape[1]
    return distance.gather(2, medoids.unsqueeze(1).expand(-1, tokens, -1)).argmin(2)


def _mass(tokens: Tensor, weights: Tensor | None) -> Tensor:
    if weights is None:
        return torch.ones(tokens.shape[0], tokens.shape[1], dtype=torch.float32, device=tokens.device)
    # keeps a cluster of tokens that nobody attends to from dividing zero by zero
    return weights.detach().float().clamp_min(1e-12)


def _seeds(gram: Tensor, weights: Tensor, k: int, init: str, weighted: bool) -> Tensor:
    if init == "auto":
        init = "score" if weighted else "stride"
    if init == "score":
        return torch.argsort(weights, dim=1, descending=True, stable=True)[:, :k]
    if init == "stride":
        batch, tokens = weights.shape
        return (torch.arange(k, device=weights.device) * tokens // k).expand(batch, k)
    if init == "farthest":
        if not torch.jit.is_scripting():  # noqa: SIM102  TorchScript skips a branch on this condition alone
            if native.serves(gram):
                return native.farthest_seeds(gram, weights, k)
        return farthest_seeds(squared_distances(gram), weights, k)
    raise ValueError(f"init must be auto, score, farthest or stride, got {init}.")


def farthest_seeds(distance: Tensor, weights: Tensor, k: int) -> Tensor:
    """Start with the heaviest token; add the one that would add most to the error until there are K.

    Args:
        distance: (B, N, N), squared, float32.
        weights: (B, N), float32, positive.
        k: Seeds.

    Returns:
        (B, K), int64; the lowest index wins every tie.
    """
    chosen = [weights.argmax(1)]
    gap = distance.gather(1, chosen[0].view(-1, 1, 1).expand(-1, 1, distance.shape[2])).squeeze(1)
    for _ in range(k - 1):
        chosen.append((gap * weights).argmax(1))
        step = distance.gather(1, chosen[-1].view(-1, 1, 1).expand(-1, 1, distance.shape[2])).squeeze(1)
        gap = torch.minimum(gap, step)
    return torch.stack(chosen, 1)


def _check(features: Tensor, k: int, weights: Tensor | None, iterations: int) -> None:
    if features.dim() != 3:
        raise ValueError(f"features must have shape (B, N, M), got {list(features.shape)}.")
    if k < 1 or k > features.shape[1]:
        raise ValueError(f"k must be between 1 and the number of tokens {features.shape[1]}, got {k}.")
    if weights is not None and weights.shape != features.shape[:2]:
        raise ValueError(
            f"weights must have shape (B, N) = {list(features.shape[:2])}, got {list(weights.shape)}; "
            "leave the prefix tokens out."
        )
    if iterations < 0:
        raise ValueError(f"iterations must not be negative, got {iterations}.")
