"""The pooling operator: N patch tokens of an image become K.

Shapes: B images, P prefix tokens, N patch tokens before, K after, M channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from graftwork_token_pooling import baselines
from graftwork_token_pooling.clustering import inner_products, k_means, k_medoids, weighted_means

METHODS = (
    "wk_medoids",
    "k_medoids",
    "wk_means",
    "k_means",
    "power_bert",
    "importance",
    "random",
    "grid",
    "tome",
)
"""Token Pooling with K-Medoids or K-Means, weighted (w) or not, and what it is compared with."""

SCORED = ("wk_medoids", "wk_means", "power_bert", "importance")
"""Methods that need the significance scores of the tokens."""

SELECTING = ("power_bert", "importance", "random")
"""Methods that keep some tokens and drop the others."""


def token_pool(
    x: Tensor,
    scores: Tensor | None,
    k: int,
    num_prefix_tokens: int = 1,
    method: str = "wk_medoids",
    output: str = "mean",
    iterations: int = 5,
    init: str = "auto",
) -> Tensor:
    """Pool the patch tokens of every image to K; prefix tokens pass unchanged.

    Example:
        >>> x, scores = torch.randn(8, 197, 384), torch.rand(8, 196)
        >>> token_pool(x, scores, k=98).shape
        torch.Size([8, 99, 384])

    Args:
        x: (B, P + N, M), output of a transformer block.
        scores: (B, N), attention received by each patch token; None for methods that need none.
        k: Patch tokens to leave; N or more leave the input as it is.
        num_prefix_tokens: P, such as 1 for a class token.
        method: One of :data:`METHODS`.
        output: ``"mean"``, the weighted mean of each cluster, or ``"medoid"``, the token in its middle.
        iterations: Rounds of the clustering.
        init: Seeds of the clustering, see :func:`~graftwork_token_pooling.clustering.k_medoids`.

    Returns:
        (B, P + K, M). Gradients flow into the members of each cluster by their share w_i / sum w; neither the
        assignment nor the scores receive any.

    Raises:
        ValueError: An argument that cannot be; the message says which and why.

    Note:
        The paper defines pooled tokens as cluster centers and leaves open whether those of K-Medoids are
        means or medoids; the mean is never worse in weighted reconstruction error.
    """
    return token_pool_with_assignment(x, scores, k, num_prefix_tokens, method, output, iterations, init)[0]


def token_pool_with_assignment(
    x: Tensor,
    scores: Tensor | None,
    k: int,
    num_prefix_tokens: int = 1,
    method: str = "wk_medoids",
    output: str = "mean",
    iterations: int = 5,
    init: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """Pool tokens like :func:`token_pool` and say where each of them went.

    Example:
        >>> x, scores = torch.randn(8, 197, 384), torch.rand(8, 196)
        >>> pooled, assignment, sizes = token_pool_with_assignment(x, scores, k=98)
        >>> assignment.shape, sizes.sum(1)[0]
        (torch.Size([8, 196]), tensor(196.))

    Args:
        x: As in :func:`token_pool`, like all further arguments.
        scores: See there.
        k: See there.
        num_prefix_tokens: See there.
        method: See there. Methods that drop tokens assign them to the nearest one kept.
        output: See there.
        iterations: See there.
        init: See there.

    Returns:
        Pooled tokens (B, P + K, M), assignment (B, N), int64, and sizes (B, K), float32, the number of tokens
        behind each pooled one.

    Raises:
        ValueError: An argument that cannot be.
    """
    if x.dim() != 3 or num_prefix_tokens < 0 or num_prefix_tokens >= x.shape[1]:
        raise ValueError(
            f"x must have shape (B, P + N, M) with P = num_prefix_tokens = {num_prefix_tokens} and N > 0, "
            f"got {list(x.shape)}."
        )
    prefix, patches = x[:, :num_prefix_tokens], x[:, num_prefix_tokens:]
    sizes = torch.ones(x.shape[0], patches.shape[1], dtype=torch.float32, device=x.device)
    side = int(patches.shape[1] ** 0.5)
    if method == "grid" and side * side != patches.shape[1]:
        raise ValueError(
            f"method grid takes a square token grid here, got {patches.shape[1]} tokens; "
            "call pool_patches with the rows and columns of the grid."
        )
    pooled, assignment, _ = pool_patches(
        patches, k, scores, sizes, None, (side, side), method, output, iterations, init, True
    )
    return torch.cat([prefix, pooled], dim=1), assignment, pooled_sizes(sizes, assignment, pooled.shape[1])


def pool_patches(
    features: Tensor,
    k: int,
    scores: Tensor | None,
    sizes: Tensor | None,
    metric: Tensor | None,
    grid: tuple[int, int],
    method: str,
    output: str,
    iterations: int,
    init: str,
    with_assignment: bool,
) -> tuple[Tensor, Tensor, tuple[int, int]]:
    """Pool patch tokens, with everything a block knows about them.

    Args:
        features: (B, N, M), without prefix.
        k: Tokens to leave; N or more leave the input as it is.
        scores: (B, N) or None.
        sizes: (B, N), patches behind each token, the weights of ToMe; None for ones.
        metric: (B, N, D), what ToMe compares; None for the features.
        grid: Rows and columns, for grid pooling.
        method: One of :data:`METHODS`.
        output: ``"mean"`` or ``"medoid"``.
        iterations: Rounds of the clustering.
        init: Seeds of the clustering.
        with_assignment: False saves methods that drop tokens the search for the nearest one kept.

    Returns:
        Pooled tokens (B, K, M), assignment (B, N) or, where not wanted and not known anyway, (B, 0), and
        the new rows and columns. Grid pooling leaves the largest grid of at most K cells.

    Raises:
        ValueError: An argument that cannot be.
    """
    batch, tokens = features.shape[0], features.shape[1]
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}; a pooled image keeps one patch token or more.")
    if output != "mean" and (output != "medoid" or (method != "wk_medoids" and method != "k_medoids")):
        raise ValueError(
            f"output must be mean, or medoid with method wk_medoids or k_medoids, got {output} with {method}."
        )
    if scores is None and (
        method == "wk_medoids" or method == "wk_means" or method == "power_bert" or method == "importance"
    ):
        raise ValueError(f"method {method} needs scores; pass the attention received by each patch token.")
    if scores is not None and scores.shape != features.shape[:2]:
        raise ValueError(
            f"scores must have shape (B, N) = {list(features.shape[:2])}, got {list(scores.shape)}; "
            "leave the prefix tokens out."
        )
    if k >= tokens:
        identity = torch.arange(tokens, device=features.device).expand(batch, tokens)
        return features, identity, grid

    if method == "wk_medoids" or method == "k_medoids":
        weights = scores if method == "wk_medoids" else None
        assignment, medoids = k_medoids(features, k, weights, iterations, init)
        if output == "medoid":
            return _take(features, medoids), assignment, grid
        return weighted_means(features, assignment, k, weights), assignment, grid
    if method == "wk_means" or method == "k_means":
        weights = scores if method == "wk_means" else None
        assignment, _ = k_means(features, k, weights, iterations, init)
        return weighted_means(features, assignment, k, weights), assignment, grid
    if method == "grid":
        if grid[0] * grid[1] != tokens:
            raise ValueError(
                f"grid pooling needs every token in its place: {tokens} tokens are no grid of "
                f"{grid[0]} x {grid[1]}; set patch_drop_rate=0."
            )
        target = baselines.pooled_grid(grid, k)
        assignment = baselines.grid_assignment(grid, target, features)
        return weighted_means(features, assignment, target[0] * target[1]), assignment, target
    if method == "tome":
        mass = sizes if sizes is not None else torch.ones_like(features[:, :, 0], dtype=torch.float32)
        assignment = baselines.merge_bipartite(metric if metric is not None else features, k, mass)
        return weighted_means(features, assignment, k, mass), assignment, grid

    basis = scores if scores is not None else features[:, :, 0]
    if method == "power_bert":
        kept = baselines.top_k(basis.detach(), k)
    elif method == "importance":
        kept = baselines.importance_choice(basis.detach(), k)
    elif method == "random":
        kept = baselines.random_choice(basis.detach(), k)
    else:
        raise ValueError(
            f"unknown method {method}; choose wk_medoids, k_medoids, wk_means, k_means, power_bert, "
            "importance, random, grid or tome."
        )
    pooled = _take(features, kept)
    if not with_assignment:
        return pooled, kept[:, :0], grid
    return pooled, _nearest_kept(features, kept), grid


def _take(features: Tensor, index: Tensor) -> Tensor:
    return features.gather(1, index.unsqueeze(2).expand(-1, -1, features.shape[2]))


def _nearest_kept(features: Tensor, kept: Tensor) -> Tensor:
    """Assign tokens to the nearest one kept, and a kept one to itself even if another is equal: (B, N)."""
    tokens = features.detach().float()
    centers = _take(tokens, kept)
    gap = centers.square().sum(2).unsqueeze(1) - 2 * inner_products(tokens, centers)
    own = torch.full_like(kept, float("-inf"), dtype=torch.float32)
    return gap.scatter(1, kept.unsqueeze(1), own.unsqueeze(1)).argmin(2)


def start_tracking(x: Tensor, num_prefix_tokens: int) -> tuple[Tensor, Tensor]:
    """Return for fresh patch tokens which token each patch is in, (B, N), and how many each holds, (B, N)."""
    batch, tokens = x.shape[0], x.shape[1] - num_prefix_tokens
    owner = torch.arange(tokens, device=x.device).expand(batch, tokens)
    return owner, torch.ones(batch, tokens, dtype=torch.float32, device=x.device)


def track(owner: Tensor, sizes: Tensor, assignment: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
    """Follow the patches through one more pooling.

    Args:
        owner: (B, N), the token of each patch so far.
        sizes: (B, n), patches behind each token so far.
        assignment: (B, n), what became of those tokens.
        tokens: How many there are now.

    Returns:
        Owner (B, N) and sizes (B, tokens) now.
    """
    return assignment.gather(1, owner), pooled_sizes(sizes, assignment, tokens)


def pooled_sizes(sizes: Tensor, assignment: Tensor, tokens: int) -> Tensor:
    """Add up the sizes (B, n) of the tokens that an assignment (B, n) puts together: (B, tokens)."""
    return torch.zeros_like(sizes[:, :1]).expand(-1, tokens).scatter_add(1, assignment, sizes)


def unpool(x: Tensor, owner: Tensor, num_prefix_tokens: int = 1) -> Tensor:
    """Lay pooled tokens back on the full grid: every patch gets the token it went into.

    Example:
        >>> x = torch.randn(8, 197, 384)
        >>> pooled, assignment, _ = token_pool_with_assignment(x, torch.rand(8, 196), k=49)
        >>> unpool(pooled, assignment).shape
        torch.Size([8, 197, 384])

    Args:
        x: (B, P + K, M).
        owner: (B, N), int64, in 0..K-1.
        num_prefix_tokens: P.

    Returns:
        (B, P + N, M).
    """
    patches = _take(x[:, num_prefix_tokens:], owner)
    return torch.cat([x[:, :num_prefix_tokens], patches], dim=1)
