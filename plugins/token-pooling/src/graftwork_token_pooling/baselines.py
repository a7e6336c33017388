"""What Token Pooling is compared with: selection by score, sampling, grid pooling, and bipartite merging.

Each takes the tokens that a K-Medoids site would take and leaves the same number, so that a comparison
differs in nothing but the method.

Shapes: B images, N tokens, K kept tokens, M channels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from graftwork_token_pooling.clustering import inner_products


def top_k(scores: Tensor, k: int) -> Tensor:
    """Choose the K tokens of the highest significance, as PoWER-BERT does (arXiv 2001.08950).

    Args:
        scores: (B, N), total attention received.
        k: Tokens to keep.

    Returns:
        (B, K), int64, ascending; the lowest index wins a tie.
    """
    return torch.argsort(scores, dim=1, descending=True, stable=True)[:, :k].sort(1)[0]


def random_choice(scores: Tensor, k: int) -> Tensor:
    """Choose K tokens of each image uniformly, without replacement: (B, K), int64, ascending."""
    return top_k(torch.rand_like(scores, dtype=torch.float32), k)


def importance_choice(scores: Tensor, k: int) -> Tensor:
    """Draw K tokens of each image without replacement, with probability proportional to their score.

    Adding Gumbel noise to the log scores and taking the largest K is exactly that draw.

    Args:
        scores: (B, N), positive.
        k: Tokens to keep.

    Returns:
        (B, K), int64, ascending.
    """
    tiny = 1e-20
    uniform = torch.rand_like(scores, dtype=torch.float32).clamp_min(tiny)
    noise = -torch.log((-torch.log(uniform)).clamp_min(tiny))
    return top_k(torch.log(scores.float().clamp_min(tiny)) + noise, k)


def pooled_grid(grid: tuple[int, int], k: int) -> tuple[int, int]:
    """Return the largest grid of at most `k` cells with about the sides' ratio of the token grid.

    Example:
        >>> pooled_grid((14, 14), 137)
        (11, 12)

    Args:
        grid: Rows and columns of the tokens.
        k: Cells wanted.

    Returns:
        Rows and columns.
    """
    height, width = grid
    rows = min(height, k, max(1, int(math.sqrt(k * height / width))))
    columns = min(width, k // rows)
    return rows, columns


def grid_assignment(grid: tuple[int, int], target: tuple[int, int], like: Tensor) -> Tensor:
    """Assign the tokens of a grid to the cells of a coarser one, as average pooling with a stride does.

    Args:
        grid: Rows and columns of the tokens.
        target: Rows and columns of the cells.
        like: (B, N, M), gives batch size and device.

    Returns:
        (B, N), int64.
    """
    rows = torch.arange(grid[0], device=like.device) * target[0] // grid[0]
    columns = torch.arange(grid[1], device=like.device) * target[1] // grid[1]
    cells = rows.unsqueeze(1) * target[1] + columns.unsqueeze(0)
    return cells.reshape(1, -1).expand(like.shape[0], -1)


def merge_bipartite(metric: Tensor, k: int, sizes: Tensor) -> Tensor:
    """Merge the most similar tokens pairwise until K are left, after Token Merging (arXiv 2210.09461).

    Tokens at even positions look for the most similar one at odd positions (cosine of the metric); of these
    edges the best ones are merged. One round removes half of the tokens at most, which is ToMe's limit;
    more is done in several rounds, on the size-weighted mean of the metric.

    Args:
        metric: (B, N, D), what similarity is measured on: keys averaged over the heads.
        k: Tokens to leave.
        sizes: (B, N), how many patches each token stands for.

    Returns:
        (B, N), int64, the merged token of each token, in the order of their first members that stay.

    Note:
        Written from the paper's description. The class token takes no part, so even and odd count from the
        first patch.
    """
    current = metric.detach().float()
    mass = sizes.float()
    batch, tokens = current.shape[0], current.shape[1]
    owner = torch.arange(tokens, device=metric.device).expand(batch, tokens)
    while tokens > k:
        step = _merge_once(current, min(tokens - k, tokens // 2))
        tokens = max(k, tokens - tokens // 2)
        owner = step.gather(1, owner)
        if tokens > k:
            merged = torch.zeros_like(mass[:, :1]).expand(-1, tokens).scatter_add(1, step, mass)
            index = step.unsqueeze(2).expand(-1, -1, current.shape[2])
            sums = torch.zeros_like(current[:, :tokens]).scatter_add(1, index, current * mass.unsqueeze(2))
            current, mass = sums / merged.unsqueeze(2), merged
    return owner


def _merge_once(metric: Tensor, count: int) -> Tensor:
    """Merge `count` even tokens into odd ones; return the new position of every token: (B, N)."""
    unit = torch.nn.functional.normalize(metric, dim=2)
    similarity, partner = inner_products(unit[:, 0::2], unit[:, 1::2]).max(2)
    merged = torch.argsort(similarity, dim=1, descending=True, stable=True)[:, :count]
    batch, tokens = metric.shape[0], metric.shape[1]
    target = torch.arange(tokens, device=metric.device).repeat(batch, 1)
    target = target.scatter(1, 2 * merged, 2 * partner.gather(1, merged) + 1)
    stays = torch.ones_like(target).scatter(1, 2 * merged, torch.zeros_like(merged))
    return (stays.cumsum(1) - 1).gather(1, target)
