"""Vision transformers with shared tensors (the paper's appendix): timm's ViT and DeiT.

Shapes: B images, N tokens, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

import torch
from timm.layers import maybe_add_mask, resolve_self_attn_mask
from timm.models._features import feature_take_indices
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Attention, Block, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from graftwork_spin.mlp import SpinMlp
from graftwork_spin.network import SharedNetwork


class SpinAttention(nn.Module):
    """timm's self-attention; a shared projection is None and its tensors are handed in.

    Args:
        attn: Whose layers are taken over.

    Raises:
        TypeError: It is another kind of attention.
    """

    __constants__ = ("fused_attn",)

    def __init__(self, attn: nn.Module) -> None:
        super().__init__()
        if type(attn) is not Attention:
            raise TypeError(
                f"sharing inside transformer blocks supports timm's Attention, got {type(attn).__name__}."
            )
        self.num_heads, self.head_dim, self.scale = attn.num_heads, attn.head_dim, attn.scale
        self.fused_attn = attn.fused_attn
        self.qkv, self.q_norm, self.k_norm = attn.qkv, attn.q_norm, attn.k_norm
        self.attn_drop, self.norm, self.gate = attn.attn_drop, attn.norm, getattr(attn, "gate", None)
        self.proj, self.proj_drop = attn.proj, attn.proj_drop
        self.qkv_at = self.proj_at = -1

    def forward(
        self,
        x: Tensor,
        weights: list[Tensor],
        biases: list[Tensor | None],
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """Map (B, N, C) to the same shape, with this layer's shared tensors in the order of ``shared``."""
        batch, tokens, _ = x.shape
        gate = self.gate(x).sigmoid() if self.gate is not None else None
        if self.qkv is not None:
            qkv = self.qkv(x)
        else:
            qkv = functional.linear(x, weights[self.qkv_at], biases[self.qkv_at])
        qkv = qkv.reshape(batch, tokens, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)
        if self.fused_attn:
            x = functional.scaled_dot_product_attention(
                q,
                k,
                v,
                attn_mask=attn_mask,
                dropout_p=self.attn_drop.p if self.training else 0.0,
                is_causal=is_causal,
            )
        else:
            attn = (q * self.scale) @ k.transpose(-2, -1)
            attn = maybe_add_mask(attn, resolve_self_attn_mask(tokens, attn, attn_mask, is_causal))
            x = self.attn_drop(attn.softmax(dim=-1)) @ v
        x = self.norm(x.transpose(1, 2).reshape(batch, tokens, self.num_heads * self.head_dim))
        if gate is not None:
            x = x * gate
        if self.proj is not None:
            x = self.proj(x)
        else:
            x = functional.linear(x, weights[self.proj_at], biases[self.proj_at])
        return self.proj_drop(x)


class SpinBlock(nn.Module):
    """timm's pre-norm block with private norms, layer scale and stochastic depth.

    Args:
        block: Whose layers are taken over, under their names.

    Raises:
        TypeError: It is another kind of block.
    """

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        if type(block) is not Block:
            raise TypeError(
                f"sharing supports vision transformers made of timm's Block, got {type(block).__name__}."
            )
        self.norm1, self.attn = block.norm1, SpinAttention(block.attn)
        self.ls1, self.drop_path1 = block.ls1, block.drop_path1
        self.norm2, self.mlp = block.norm2, SpinMlp(block.mlp)
        self.ls2, self.drop_path2 = block.ls2, block.drop_path2

    def forward(
        self,
        x: Tensor,
        weights: list[Tensor],
        biases: list[Tensor | None],
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """Map (B, N, C) to the same shape, with this layer's shared tensors in the order of ``shared``."""
        attended = self.attn(self.norm1(x), weights, biases, attn_mask=attn_mask, is_causal=is_causal)
        x = x + self.drop_path1(self.ls1(attended))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x), weights, biases)))


class SpinVisionTransformer(SharedNetwork, VisionTransformer):
    """timm's VisionTransformer whose blocks share tensors; with ``rate=1`` the plain network.

    Example:
        >>> model = SpinVisionTransformer(img_size=32, patch_size=8, embed_dim=64, depth=4, num_heads=2)
        >>> len(model.shared["qkv"].weight)
        2

    Args:
        args: As timm's VisionTransformer.
        rate: Share rate r.
        mapping: See :func:`graftwork_spin.mapping.sharing_mapping`.
        distribution: As `mapping`.
        components: Among ``"qkv"``, ``"proj"``, ``"fc1"``, ``"fc2"``; all four if None, as in the paper.
            Norms, layer scale, tokens, position embedding and stochastic depth stay private.
        transform: Private transform of every layer's weights.
        fusion: Online fusion of training; see :func:`graftwork_spin.fusion.fuse`.
        mapping_seed: Of the random mapping.
        kwargs: As timm's VisionTransformer.
    """

    COMPONENTS = MappingProxyType(
        {"qkv": ("attn.qkv",), "proj": ("attn.proj",), "fc1": ("mlp.fc1",), "fc2": ("mlp.fc2",)}
    )
    DEFAULT = ("qkv", "proj", "fc1", "fc2")

    def __init__(
        self,
        *args: Any,
        rate: int = 2,
        mapping: str | Sequence[int] = "sequential",
        distribution: str = "uniform",
        components: str | Sequence[str] | None = None,
        transform: str = "none",
        fusion: str | None = None,
        mapping_seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        sharing = self.plan(
            len(self.blocks),
            rate=rate,
            mapping=mapping,
            distribution=distribution,
            components=components,
            transform=transform,
            fusion=fusion,
            mapping_seed=mapping_seed,
        )
        self.adopt_blocks()
        self.share_blocks(sharing)

    @staticmethod
    def adapt_block(block: nn.Module) -> SpinBlock:
        """Take over the layers of one of timm's blocks."""
        return SpinBlock(block)

    def init_weights(self, mode: str = "", needs_reset: bool = True) -> None:
        """Initialise anew; timm calls this once before the blocks share, users may call it later.

        Args:
            mode: timm's initialisation scheme. Once tensors are shared only the default one is offered.
            needs_reset: As timm.

        Raises:
            NotImplementedError: Another scheme is asked for after sharing.
        """
        shared = getattr(self, "shared", None)
        if not shared:
            super().init_weights(mode=mode, needs_reset=needs_reset)
            return
        if (mode or self.weight_init_mode) not in ("", "reset") or self.fix_init:
            raise NotImplementedError(
                "shared tensors can be re-initialised in timm's default way only: build the network anew for "
                f"weight_init={mode or self.weight_init_mode!r}, fix_init={self.fix_init}."
            )
        super().init_weights(mode=mode, needs_reset=needs_reset)
        for layer in shared.values():
            for weight in layer.weight:
                nn.init.trunc_normal_(weight, std=0.02)
            for bias in layer.bias:
                nn.init.zeros_(bias)
        self.reset_adapters()

    def forward_features(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Map images (B, in_chans, height, width) to normalised tokens (B, N, C)."""
        x = self.norm_pre(self.patch_drop(self._pos_embed(self.patch_embed(x))))
        weights, biases = self.layer_tensors()
        for i, block in enumerate(self.blocks):
            if attn_mask is not None or is_causal:
                x = block(x, weights[i], biases[i], attn_mask=attn_mask, is_causal=is_causal)
            elif self.grad_checkpointing and not torch.jit.is_scripting():
                # Not reentrant, whatever timm's default: shared tensors come in lists, used repeatedly.
                x = checkpoint(block, x, weights[i], biases[i], use_reentrant=False)
            else:
                x = block(x, weights[i], biases[i])
        return self.norm(x)

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
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]] | dict[str, Any]:
        """Return the outputs of chosen blocks, with the final features unless told otherwise.

        Args:
            x: Images.
            indices: The last n blocks if a number, all if None, else these.
            return_prefix_tokens: Give class and register tokens beside each intermediate.
            norm: Apply the final norm to the intermediates.
            stop_early: Stop after the last block wanted.
            output_fmt: ``"NCHW"`` or ``"NLC"``.
            intermediates_only: Leave out the final features.
            output_dict: Return a dictionary with timm's keys.
            attn_mask: Of the attention.
            is_causal: Whether attention is causal.

        Returns:
            Features and intermediates, or the intermediates, or a dictionary.
        """
        assert output_fmt in ("NCHW", "NLC"), "Output format must be one of NCHW or NLC."
        outputs = []
        take_indices, max_index = feature_take_indices(len(self.blocks), indices)
        batch, _, height, width = x.shape
        x = self.norm_pre(self.patch_drop(self._pos_embed(self.patch_embed(x))))
        weights, biases = self.layer_tensors()
        for i, block in enumerate(self.blocks):
            if stop_early and i > max_index:
                continue  # TorchScript neither slices blocks nor breaks out of their loop
            if attn_mask is not None or is_causal:
                x = block(x, weights[i], biases[i], attn_mask=attn_mask, is_causal=is_causal)
            elif self.grad_checkpointing and not torch.jit.is_scripting():
                x = checkpoint(block, x, weights[i], biases[i], use_reentrant=False)
            else:
                x = block(x, weights[i], biases[i])
            if i in take_indices:
                outputs.append(self.norm(x) if norm else x)

        prefix = [y[:, : self.num_prefix_tokens] for y in outputs]
        spatial = [y[:, self.num_prefix_tokens :] for y in outputs]
        if output_fmt == "NCHW":
            rows, columns = self.patch_embed.dynamic_feat_size((height, width))
            spatial = [y.reshape(batch, rows, columns, -1).permute(0, 3, 1, 2).contiguous() for y in spatial]
        with_prefix = return_prefix_tokens and self.num_prefix_tokens > 0
        if output_dict:
            result = {"image_intermediates": spatial}
            if with_prefix:
                result["image_intermediates_prefix"] = prefix
            if not intermediates_only:
                result["image_features"] = self.norm(x)
            return result
        intermediates = list(zip(spatial, prefix)) if with_prefix else spatial
        if intermediates_only:
            return intermediates
        return self.norm(x), intermediates

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the blocks after the last one wanted, and the stored tensors that only they used.

        Args:
            indices: Blocks to keep: the last n, or a list.
            prune_norm: Whether to drop the final norm, where there is one.
            prune_head: Whether to drop the classifier.

        Returns:
            The indices, counted from the first block.
        """
        _, last = feature_take_indices(len(self.blocks), indices)
        kept = super().prune_intermediate_layers(indices, prune_norm=prune_norm, prune_head=prune_head)
        self.truncate_blocks(last + 1)
        return kept


class SpinVisionTransformerDistilled(SpinVisionTransformer, VisionTransformerDistilled):
    """The distilled DeiT, with a distillation token and head, whose blocks share tensors."""
