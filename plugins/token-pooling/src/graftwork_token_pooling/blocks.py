"""Transformer blocks that pool their tokens: timm's own, with the same sub-modules.

Shapes: B images, P prefix tokens, N patch tokens before, K after, M channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from timm.models.vision_transformer import Block, ResPostBlock
from torch import Tensor, nn
from torch.nn import functional

from graftwork_token_pooling.clustering import INITS
from graftwork_token_pooling.pooling import METHODS, pool_patches
from graftwork_token_pooling.scores import attend_with_scores

POSITIONS = ("post_block", "pre_mlp")
"""After the whole block, as in the paper, or between its attention and its MLP, as in PoWER-BERT and ToMe."""

# FX takes a wrapped function as one node; it looks for it in the module that calls it
torch.fx.wrap("attend_with_scores")
torch.fx.wrap("pool_block")


@dataclass(frozen=True)
class PoolingOptions:
    """How a model pools; where and how much is its schedule.

    Args:
        method: One of :data:`~graftwork_token_pooling.pooling.METHODS`.
        output: ``"mean"`` or ``"medoid"``, see :func:`~graftwork_token_pooling.pooling.token_pool`.
        iterations: Rounds of the clustering.
        init: Seeds of the clustering.
        position: One of :data:`POSITIONS`; ``"auto"`` is ``"pre_mlp"`` for ToMe, else ``"post_block"``.
        exclude_self: Leave the attention that a token gives to itself out of its score.
        prop_attn: Add the logarithm of their sizes to the attention logits of pooled tokens; None is True for
            ToMe, whose part it is, and False otherwise.
    """

    method: str = "wk_medoids"
    output: str = "mean"
    iterations: int = 5
    init: str = "auto"
    position: str = "auto"
    exclude_self: bool = False
    prop_attn: bool | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"unknown method {self.method!r}; choose one of {', '.join(METHODS)}.")
        if self.position == "auto":
            object.__setattr__(self, "position", "pre_mlp" if self.method == "tome" else "post_block")
        if self.prop_attn is None:
            object.__setattr__(self, "prop_attn", self.method == "tome")
        if self.position not in POSITIONS:
            raise ValueError(f"position must be auto, {' or '.join(POSITIONS)}, got {self.position!r}.")
        if self.output != "mean" and (
            self.output != "medoid" or self.method not in ("wk_medoids", "k_medoids")
        ):
            raise ValueError(
                "output must be mean, or medoid with method wk_medoids or k_medoids, "
                f"got {self.output!r} with {self.method!r}."
            )
        if self.iterations < 0:
            raise ValueError(f"iterations must not be negative, got {self.iterations}.")
        if self.init not in INITS:
            raise ValueError(f"init must be one of {', '.join(INITS)}, got {self.init!r}.")


class PoolingBlockMixin(nn.Module):
    """What pooling adds to a block; :func:`pooling_block` sets its attributes."""

    if TYPE_CHECKING:  # TorchScript reads the annotations of a class and cannot evaluate postponed ones
        attn: Any
        mlp: nn.Module
        norm1: nn.Module
        norm2: nn.Module
        ls1: nn.Module
        ls2: nn.Module
        drop_path1: nn.Module
        drop_path2: nn.Module
        plain_type: type[nn.Module]
        added: tuple[str, ...]
        num_prefix_tokens: int
        before_numerator: int
        before_denominator: int
        numerator: int
        denominator: int
        method: str
        output: str
        iterations: int
        init: str
        pre_mlp: bool
        exclude_self: bool
        needs_scores: bool
        needs_metric: bool

        def _attention_branch(
            self, x: Tensor, attn_mask: Tensor | None, is_causal: bool
        ) -> tuple[Tensor, Tensor | None, Tensor | None]: ...

        def _mlp_branch(self, x: Tensor) -> Tensor: ...

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Run the block alone, as if its input were all there had been before the previous pooling.

        Args:
            x: (B, P + N, M).
            attn_mask: As in timm's blocks; applied to the attention of this block.
            is_causal: Likewise.

        Returns:
            (B, P + K, M).
        """
        tokens = x.shape[1] - self.num_prefix_tokens
        side = int(tokens**0.5)
        total = tokens * self.before_denominator // self.before_numerator
        return self.forward_pooled(x, total, (side, side), None, False, attn_mask, is_causal)[0]

    def forward_pooled(
        self,
        x: Tensor,
        total: int,
        grid: tuple[int, int],
        sizes: Tensor | None = None,
        with_assignment: bool = True,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor, tuple[int, int]]:
        """Run the block and pool its tokens.

        Args:
            x: (B, P + N, M).
            total: Patch tokens of the image before any pooling, which the schedule's fraction refers to.
            grid: Rows and columns of the N tokens, for grid pooling.
            sizes: (B, N), patches behind each token, for ToMe.
            with_assignment: Whether the caller wants to know where the tokens went.
            attn_mask: Additive or boolean mask of the attention.
            is_causal: Mask the keys after each query.

        Returns:
            Tokens (B, P + K, M), assignment (B, N) of the patch tokens, or (B, 0), and the new grid.
        """
        branch, scores, metric = self._attention_branch(x, attn_mask, is_causal)
        x = x + branch
        if not self.pre_mlp:
            x = x + self._mlp_branch(x)
        x, assignment, grid = pool_block(
            x,
            self.num_prefix_tokens,
            total,
            self.numerator,
            self.denominator,
            scores,
            sizes,
            metric,
            grid,
            self.method,
            self.output,
            self.iterations,
            self.init,
            with_assignment,
        )
        if self.pre_mlp:
            x = x + self._mlp_branch(x)
        return x, assignment, grid

    def _attend(
        self, x: Tensor, attn_mask: Tensor | None, is_causal: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return the attention layer's output, and, where the method wants them, scores or ToMe's metric."""
        if not self.needs_scores and not self.needs_metric:
            return self.attn(x, attn_mask, is_causal), None, None
        # the forward pass of timm's Attention, up to what happens between the projections
        batch, tokens, _ = x.shape
        qkv = self.attn.qkv(x).reshape(batch, tokens, 3, self.attn.num_heads, self.attn.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        q, k = self.attn.q_norm(q), self.attn.k_norm(k)
        dropout = self.attn.attn_drop.p if self.training else 0.0
        scores: Tensor | None = None
        metric: Tensor | None = None
        if self.needs_scores:
            out, received = attend_with_scores(
                q,
                k,
                v,
                self.attn.scale,
                self.attn.fused_attn,
                dropout,
                self.exclude_self,
                attn_mask,
                is_causal,
            )
            scores = received[:, self.num_prefix_tokens :]
        else:
            out = functional.scaled_dot_product_attention(
                q, k, v, attn_mask=attn_mask, dropout_p=dropout, is_causal=is_causal
            )
            metric = k.mean(1)[:, self.num_prefix_tokens :]
        out = self.attn.norm(out.transpose(1, 2).reshape(batch, tokens, self.attn.attn_dim))
        if self.attn.gate is not None:
            out = out * self.attn.gate(x).sigmoid()
        return self.attn.proj_drop(self.attn.proj(out)), scores, metric


class PoolingBlock(PoolingBlockMixin, Block):
    """timm's pre-norm block, followed by pooling."""

    def _attention_branch(
        self, x: Tensor, attn_mask: Tensor | None, is_causal: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        branch, scores, metric = self._attend(self.norm1(x), attn_mask, is_causal)
        return self.drop_path1(self.ls1(branch)), scores, metric

    def _mlp_branch(self, x: Tensor) -> Tensor:
        return self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


class PoolingResPostBlock(PoolingBlockMixin, ResPostBlock):
    """timm's block with norms behind its branches, followed by pooling."""

    def _attention_branch(
        self, x: Tensor, attn_mask: Tensor | None, is_causal: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        branch, scores, metric = self._attend(x, attn_mask, is_causal)
        return self.drop_path1(self.norm1(branch)), scores, metric

    def _mlp_branch(self, x: Tensor) -> Tensor:
        return self.drop_path2(self.norm2(self.mlp(x)))


def pool_block(
    x: Tensor,
    num_prefix_tokens: int,
    total: int,
    numerator: int,
    denominator: int,
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
    """Pool the patch tokens of a block's output to a fraction of those the image started with.

    Args:
        x: (B, P + N, M).
        num_prefix_tokens: P.
        total: Patch tokens of the image before any pooling.
        numerator: Of the fraction of `total` to leave.
        denominator: Of the fraction.
        scores: As in :func:`~graftwork_token_pooling.pooling.pool_patches`, like the arguments that follow.
        sizes: See there.
        metric: See there.
        grid: See there.
        method: See there.
        output: See there.
        iterations: See there.
        init: See there.
        with_assignment: See there.

    Returns:
        Tokens (B, P + K, M), assignment and grid.
    """
    prefix, patches = x[:, :num_prefix_tokens], x[:, num_prefix_tokens:]
    k = max(1, total * numerator // denominator)
    pooled, assignment, grid = pool_patches(
        patches, k, scores, sizes, metric, grid, method, output, iterations, init, with_assignment
    )
    return torch.cat([prefix, pooled], dim=1), assignment, grid
