"""Vision transformers that pool tokens between their blocks.

A pooled model has the parameters and state-dict keys of its base. It keeps nothing between two forward
passes: where every patch went travels from block to block as a tensor.

Shapes: B images, P prefix tokens, N patch tokens before, K after, M channels.
"""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Any

import torch
from timm.models import VisionTransformer, checkpoint
from timm.models._features import feature_take_indices
from timm.models.deit import VisionTransformerDistilled
from torch import Tensor, nn

from graftwork_token_pooling.blocks import PoolingOptions
from graftwork_token_pooling.cost import resolve
from graftwork_token_pooling.grafting import pooling_block
from graftwork_token_pooling.pooling import start_tracking, track, unpool
from graftwork_token_pooling.schedule import ScheduleLike

# FX takes a wrapped function as one node; it looks for it in the module that calls it
for _name in ("log_size_bias", "start_tracking", "track", "unpool", "without_mask"):
    torch.fx.wrap(_name)


class TokenPoolingMixin(nn.Module):
    """What pooling changes in a vision transformer: the way through the blocks, and what follows from it."""

    if TYPE_CHECKING:  # TorchScript reads the annotations of a class and cannot evaluate postponed ones
        blocks: nn.Sequential
        patch_embed: Any
        patch_drop: nn.Module
        norm_pre: nn.Module
        norm: nn.Module
        global_pool: str
        num_prefix_tokens: int
        dynamic_img_size: bool
        grad_checkpointing: bool
        pooling_options: PoolingOptions
        prop_attn: bool
        needs_sizes: bool

        def _pos_embed(self, x: Tensor) -> Tensor: ...

    def install(self, schedule: ScheduleLike, options: PoolingOptions) -> None:
        """Replace the blocks after which the schedule pools; called once, by whoever builds the model."""
        found = resolve(schedule, self, options.method, options.iterations, options.position)
        if options.position == "post_block":
            found = found.without(len(self.blocks))  # nothing follows that could gain from it
        before = Fraction(1)
        for block, fraction in found.sites:
            self.blocks[block - 1] = pooling_block(
                self.blocks[block - 1], before, fraction, self.num_prefix_tokens, options
            )
            before = fraction
        self.pooling_options = options
        self.prop_attn = bool(options.prop_attn)
        self.needs_sizes = self.prop_attn or options.method == "tome"

    def forward_features(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Run everything but the head.

        Args:
            x: (B, C, H, W).
            attn_mask: Not supported: a mask refers to tokens that pooling does away with.
            is_causal: Likewise.

        Returns:
            The pooled tokens, normalised, (B, P + K, M), where the head reads the class token or nothing
            at all. Where it averages, or otherwise reads, the patch tokens they are laid back on the full
            grid, (B, P + N, M): the plain mean over the patches then is the mean over the clusters
            weighted by size.

        Raises:
            ValueError: A mask was given.
        """
        x = without_mask(x, attn_mask, is_causal)
        dense = self.global_pool != "token" and self.global_pool != ""
        x, owner, _, _, _ = self.encode(x, dense or self.needs_sizes, [], len(self.blocks) - 1)
        x = self.norm(x)
        return unpool(x, owner, self.num_prefix_tokens) if dense else x

    def forward_pooled(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Run everything but the head, and say where every patch went.

        Example:
            >>> tokens, owner, sizes = model.forward_pooled(images)  # doctest: +SKIP

        Args:
            x: (B, C, H, W).

        Returns:
            Pooled tokens, normalised, (B, P + K, M); the token that each patch went into, (B, N), int64;
            and how many patches each token stands for, (B, K), float32.
        """
        x, owner, sizes, _, _ = self.encode(x, True, [], len(self.blocks) - 1)
        return self.norm(x), owner, sizes

    def encode(
        self, x: Tensor, tracked: bool, taken: list[int], last: int
    ) -> tuple[Tensor, Tensor, Tensor, list[Tensor], list[Tensor]]:
        """Embed the image and run the blocks.

        Args:
            x: (B, C, H, W).
            tracked: Whether to follow the patches through the poolings.
            taken: Blocks, counted from 0, whose output is wanted.
            last: Block, counted from 0, after which to stop.

        Returns:
            Tokens (B, P + K, M); owner (B, N) and sizes (B, K) if tracked; tokens and owner after each of
            the blocks in `taken`.
        """
        x = self.patch_embed(x)
        # timm defers flattening where the image size is free
        grid = (x.shape[1], x.shape[2]) if self.dynamic_img_size else self.patch_embed.grid_size
        x = self.norm_pre(self.patch_drop(self._pos_embed(x)))
        total = x.shape[1] - self.num_prefix_tokens
        owner, sizes = start_tracking(x, self.num_prefix_tokens)
        bias: Tensor | None = None
        tokens_at: list[Tensor] = []
        owner_at: list[Tensor] = []
        for i, block in enumerate(self.blocks):
            if i <= last:
                if hasattr(block, "forward_pooled"):
                    if self.grad_checkpointing and not torch.jit.is_scripting():
                        x, assignment, grid = checkpoint(
                            block.forward_pooled, x, total, grid, sizes, tracked, bias
                        )
                    else:
                        x, assignment, grid = block.forward_pooled(  # type: ignore[operator]
                            x, total, grid, sizes, tracked, bias
                        )
                    if tracked:
                        left = x.shape[1] - self.num_prefix_tokens
                        owner, sizes = track(owner, sizes, assignment, left)
                    if self.prop_attn:
                        bias = log_size_bias(sizes, self.num_prefix_tokens, x)
                elif self.grad_checkpointing and not torch.jit.is_scripting():
                    x = checkpoint(block, x, bias)
                else:
                    x = block(x, bias)
                if i in taken:
                    tokens_at.append(x)
                    owner_at.append(owner)
        return x, owner, sizes, tokens_at, owner_at

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        output_dict: bool = False,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Any:
        """Return the output of chosen blocks, laid back on the full token grid.

        Args:
            x: (B, C, H, W).
            indices: The last n blocks if an int, all if None, else the blocks named.
            return_prefix_tokens: Return prefix tokens beside each intermediate.
            norm: Apply the final norm to the intermediates.
            stop_early: Skip the blocks after the last one wanted.
            output_fmt: ``"NCHW"`` or ``"NLC"``; both have the full grid, whatever was pooled.
            intermediates_only: Return no final features.
            output_dict: Return a dictionary with timm's keys.
            attn_mask: Not supported, as in :meth:`forward_features`.
            is_causal: Likewise.

        Returns:
            As timm's ``VisionTransformer.forward_intermediates``. The final features are those of
            :meth:`forward_features`.

        Raises:
            ValueError: Another output format, or a mask.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt must be NCHW or NLC, got {output_fmt!r}.")
        height, width = x.shape[-2:]
        x = without_mask(x, attn_mask, is_causal)
        taken, highest = feature_take_indices(len(self.blocks), indices)
        last = highest if stop_early else len(self.blocks) - 1
        x, owner, _, found, owners = self.encode(x, True, taken, last)
        prefix = self.num_prefix_tokens
        dense = [unpool(self.norm(y) if norm else y, where, prefix) for y, where in zip(found, owners)]
        intermediates = [y[:, prefix:] for y in dense]
        if output_fmt == "NCHW":
            grid = self.patch_embed.dynamic_feat_size((height, width))
            intermediates = [y.transpose(1, 2).unflatten(2, grid).contiguous() for y in intermediates]
        prefixes = [y[:, :prefix] for y in dense] if prefix and return_prefix_tokens else None
        x = self.norm(x)
        if self.global_pool not in ("token", ""):
            x = unpool(x, owner, prefix)
        if output_dict:
            result: dict[str, Any] = {"image_intermediates": intermediates}
            if prefixes is not None:
                result["image_intermediates_prefix"] = prefixes
            return result if intermediates_only else {**result, "image_features": x}
        paired = list(zip(intermediates, prefixes)) if prefixes is not None else intermediates
        return paired if intermediates_only else (x, paired)


class TokenPoolingVisionTransformer(TokenPoolingMixin, VisionTransformer):
    """timm's vision transformer with Token Pooling.

    Example:
        >>> model = TokenPoolingVisionTransformer(embed_dim=384, num_heads=6, schedule="r70")
        >>> model(torch.randn(1, 3, 224, 224)).shape
        torch.Size([1, 1000])

    Args:
        schedule: As in :func:`apply`.
        method: As in :class:`~graftwork_token_pooling.blocks.PoolingOptions`, like the arguments that follow.
        output: See there.
        iterations: See there.
        init: See there.
        position: See there.
        exclude_self: See there.
        prop_attn: See there.
        kwargs: Arguments of timm's ``VisionTransformer``.
    """

    def __init__(
        self,
        *args: Any,
        schedule: ScheduleLike = "r70",
        method: str = "wk_medoids",
        output: str = "mean",
        iterations: int = 5,
        init: str = "auto",
        position: str = "auto",
        exclude_self: bool = False,
        prop_attn: bool | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        options = PoolingOptions(method, output, iterations, init, position, exclude_self, prop_attn)
        self.install(schedule, options)


class TokenPoolingVisionTransformerDistilled(TokenPoolingMixin, VisionTransformerDistilled):
    """timm's distilled DeiT, with class and distillation token, with Token Pooling; made by :func:`apply`."""


def without_mask(x: Tensor, attn_mask: Tensor | None, is_causal: bool) -> Tensor:
    """Return the input, or refuse a mask of the attention."""
    if attn_mask is not None or is_causal:
        raise ValueError(
            "a model with Token Pooling takes no attention mask: a mask refers to patches in their places, "
            "and pooled tokens have none. Call remove(model) for masked attention."
        )
    return x


def log_size_bias(sizes: Tensor, num_prefix_tokens: int, like: Tensor) -> Tensor:
    """Return ToMe's proportional attention, the log sizes of the keys, as a bias (B, 1, 1, P + K)."""
    prefix = torch.zeros(sizes.shape[0], num_prefix_tokens, dtype=sizes.dtype, device=sizes.device)
    return torch.cat([prefix, sizes.log()], dim=1).to(like.dtype)[:, None, None, :]
