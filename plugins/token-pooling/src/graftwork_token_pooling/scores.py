"""Significance scores: how much attention every token receives, without the full attention matrix.

The score of token i is s_i = sum over heads h and queries q of A[h, q, i], the column sums of the
softmax. Fused attention never forms A. Three exact ways remain:

* blocks of A small enough for the second-level cache, whose column sums and products with the values are
  taken before the next block is computed: used on a CPU without gradients, little slower than fused
  attention;
* fused attention for the output and blocks of A for the column sums alone: used where gradients are wanted,
  since the scores need none, and on other devices;
* s_i = sum_q exp(q k_i - lse_q) from the log-sum-exp that fused attention returns, itself the log-sum-exp
  of a second fused call with queries and keys exchanged. Slower on the CPUs tried, so it lives in the
  benchmark: ``graftwork bench token-pooling --parts scores``.

Shapes: B images, H heads, N tokens with the prefix, D channels per head.
"""

from __future__ import annotations

import torch
from timm.layers import maybe_add_mask, resolve_self_attn_mask
from torch import Tensor
from torch.nn import functional


def attend_with_scores(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    fused: bool = True,
    dropout: float = 0.0,
    exclude_self: bool = False,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor]:
    """Attend, and return beside the output the attention that every token receives.

    Example:
        >>> q = k = v = torch.randn(2, 6, 197, 64)
        >>> out, scores = attend_with_scores(q, k, v, scale=64**-0.5)
        >>> scores.shape, float(scores.sum().round())
        (torch.Size([2, 197]), 2364.0)

    Args:
        q: (B, H, N, D), after the query norm.
        k: (B, H, N, D), after the key norm.
        v: (B, H, N, D).
        scale: Factor of the inner products.
        fused: False forms the attention matrix, as timm does where fused attention is switched off.
        dropout: Dropout of the attention, 0 outside of training. The scores are those without dropout.
        exclude_self: Leave out what a token gives to itself, as PoWER-BERT's code does.
        attn_mask: Boolean (True attends) or additive, broadcastable to (B, H, N, N).
        is_causal: Mask the keys after each query.

    Returns:
        Output (B, H, N, D), and scores (B, N), float32, without gradient.
    """
    if attn_mask is not None or is_causal or not fused:
        attn = (q * scale) @ k.transpose(-2, -1)
        attn = maybe_add_mask(attn, resolve_self_attn_mask(q.shape[2], attn, attn_mask, is_causal))
        attn = attn.softmax(dim=-1)
        scores = column_sums(attn.detach(), exclude_self)
        return functional.dropout(attn, dropout, dropout > 0.0) @ v, scores
    if torch.is_grad_enabled() or q.device.type != "cpu":
        out = functional.scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=scale)
        return out, column_scores(q.detach(), k.detach(), scale, exclude_self)
    if not torch.jit.is_scripting():  # noqa: SIM102  a branch on this alone is skipped by TorchScript
        if torch.compiler.is_compiling():
            # a captured graph has a free batch size: no Python loop over images
            attn = ((q * scale) @ k.transpose(-2, -1)).softmax(dim=-1)
            return attn @ v, column_sums(attn, exclude_self)
    batch, heads, tokens, _ = q.shape
    out = q.new_empty(batch, tokens, heads, v.shape[3])
    scores = torch.zeros(batch, tokens, dtype=torch.float32, device=q.device)
    images, group, rows = block_shape(batch, heads, tokens, 1 << 18)
    for b in range(0, batch, images):
        for h in range(0, heads, group):
            values = v[b : b + images, h : h + group]
            for r in range(0, tokens, rows):
                attn = _block(q, k, scale, b, images, h, group, r, rows)
                out[b : b + images, r : r + rows, h : h + group] = (attn @ values).transpose(1, 2)
                scores[b : b + images] += column_sums(attn, exclude_self, r)
    return out.transpose(1, 2), scores


def column_scores(q: Tensor, k: Tensor, scale: float, exclude_self: bool = False) -> Tensor:
    """Return the attention that every token receives, summed over heads and queries: (B, N), float32.

    Args:
        q: (B, H, N, D).
        k: (B, H, N, D).
        scale: Factor of the inner products.
        exclude_self: Leave out what a token gives to itself.
    """
    batch, heads, tokens, _ = q.shape
    if not torch.jit.is_scripting():  # noqa: SIM102  a branch on this alone is skipped by TorchScript
        if torch.compiler.is_compiling():
            return column_sums(((q * scale) @ k.transpose(-2, -1)).softmax(dim=-1), exclude_self)
    # on an accelerator launches cost more than memory, up to 256 MB of it
    budget = 1 << 18 if q.device.type == "cpu" else 1 << 26
    images, group, rows = block_shape(batch, heads, tokens, budget)
    scores = torch.zeros(batch, tokens, dtype=torch.float32, device=q.device)
    for b in range(0, batch, images):
        for h in range(0, heads, group):
            for r in range(0, tokens, rows):
                attn = _block(q, k, scale, b, images, h, group, r, rows)
                scores[b : b + images] += column_sums(attn, exclude_self, r)
    return scores


def block_shape(batch: int, heads: int, tokens: int, budget: int) -> tuple[int, int, int]:
    """Return how many images, heads and queries make a block of at most about `budget` attention weights.

    Example:
        >>> block_shape(32, 6, 197, 1 << 18)  # DeiT-S: one image at a time, 0.9 MB
        (1, 6, 197)

    Args:
        batch: Images there are.
        heads: Heads there are.
        tokens: Tokens with the prefix.
        budget: Attention weights per block.

    Returns:
        Images, heads and rows of a block, each at least 1.
    """
    rows = min(tokens, max(1, budget // tokens))
    group = min(heads, max(1, budget // (rows * tokens)))
    images = min(batch, max(1, budget // (group * rows * tokens))) if group == heads else 1
    return images, group, rows


def column_sums(attn: Tensor, exclude_self: bool = False, first_row: int = 0) -> Tensor:
    """Sum attention (B, H, R, N) of the queries from `first_row` over heads and queries: (B, N), float32."""
    sums = attn.sum(dim=(1, 2), dtype=torch.float32)
    if exclude_self:
        rows = attn.shape[2]
        own = attn.diagonal(offset=first_row, dim1=2, dim2=3).sum(dim=1, dtype=torch.float32)
        sums[:, first_row : first_row + rows] -= own
    return sums


def _block(
    q: Tensor, k: Tensor, scale: float, b: int, images: int, h: int, group: int, r: int, rows: int
) -> Tensor:
    queries = q[b : b + images, h : h + group, r : r + rows] * scale
    keys = k[b : b + images, h : h + group]
    return (queries @ keys.transpose(-2, -1)).softmax(dim=-1)
