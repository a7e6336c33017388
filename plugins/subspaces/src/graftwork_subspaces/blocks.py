"""Blocks of timm whose own code depends on channel counts, taught to run at any width."""

from __future__ import annotations

from typing import cast

import torch
from timm.layers import Attention, LayerScale, LayerScale2d
from timm.layers.grn import GlobalResponseNorm
from timm.models.convnext import ConvNeXtBlock
from torch import Tensor, nn
from torch.nn import functional

from graftwork_subspaces.layers import SubspaceLinear, adopt
from graftwork_subspaces.levels import LevelContext
from graftwork_subspaces.width import Layout, WidthLevel, take


class _Cut(nn.Module):
    """A module with a vector of its own, one entry per channel.

    Args:
        context: Level of the network.
        outputs: Layout of the channels.
    """

    context: LevelContext
    outputs: Layout

    def cut(self, vector: Tensor) -> Tensor:
        level = self.context.level()
        return take(vector, 0, self.outputs, level.sizes) if isinstance(level, WidthLevel) else vector


class SubspaceLayerScale(_Cut, LayerScale):
    """LayerScale over the last axis at any width."""

    def forward(self, x: Tensor) -> Tensor:
        """Scale (..., C)."""
        return x * self.cut(self.gamma)


class SubspaceLayerScale2d(_Cut, LayerScale2d):
    """LayerScale over the channels of (B, C, H, W) at any width."""

    def forward(self, x: Tensor) -> Tensor:
        """Scale (B, C, H, W)."""
        return x * self.cut(self.gamma).view(1, -1, 1, 1)


class SubspaceConvNeXtBlock(_Cut, ConvNeXtBlock):
    """ConvNeXt block whose layer scale follows the width."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) as :class:`timm.models.convnext.ConvNeXtBlock` does."""
        shortcut = self.shortcut(x)
        x = self.conv_dw(x)
        if self.use_conv_mlp:
            x = self.mlp(self.norm(x))
        else:
            x = self.mlp(self.norm(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        if self.gamma is not None:
            x = x * self.cut(self.gamma).view(1, -1, 1, 1)
        return cast("Tensor", self.drop_path(x) + shortcut)


class SubspaceResponseNorm(_Cut, GlobalResponseNorm):
    """Global response norm of ConvNeXt V2 over the channels that are there."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise responses; the shape stays."""
        strength = x.norm(p=2, dim=self.spatial_dim, keepdim=True)
        strength = strength / (strength.mean(dim=self.channel_dim, keepdim=True) + self.eps)
        weight, bias = (self.cut(vector).view(self.wb_shape) for vector in (self.weight, self.bias))
        return x + torch.addcmul(bias, weight, x * strength)


class SubspaceAttention(Attention):
    """Self-attention that keeps whole heads.

    Args:
        context: Level of the network.
    """

    context: LevelContext

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Attend over tokens (B, N, C), with the heads of the current level."""
        batch, tokens, _ = x.shape
        kept = cast("SubspaceLinear", self.proj).channels_in(self.num_heads * self.head_dim)
        heads = kept // self.head_dim
        gate = getattr(self, "gate", None)
        gate = None if gate is None else gate(x).sigmoid()
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        x = functional.scaled_dot_product_attention(
            self.q_norm(q),
            self.k_norm(k),
            v,
            attn_mask=attn_mask,
            dropout_p=self.attn_drop.p if self.training else 0.0,
            is_causal=is_causal,
        )
        x = x.transpose(1, 2).reshape(batch, tokens, kept)
        x = self.norm(x) if hasattr(self, "norm") else x
        x = x if gate is None else x * gate
        return cast("Tensor", self.proj_drop(self.proj(x)))


TWINS: dict[type[nn.Module], type[nn.Module]] = {
    Attention: SubspaceAttention,
    GlobalResponseNorm: SubspaceResponseNorm,
    LayerScale: SubspaceLayerScale,
    LayerScale2d: SubspaceLayerScale2d,
    ConvNeXtBlock: SubspaceConvNeXtBlock,
}


def make_block(module: nn.Module, context: LevelContext, outputs: Layout) -> nn.Module | None:
    """Make the twin of a block at any width; None where the block needs none.

    Args:
        module: Block of timm.
        context: Level of the network.
        outputs: Layout of its own vector.
    """
    twin = TWINS.get(type(module))
    if twin is None:
        return None
    block = adopt(twin, module)
    block.context = context  # type: ignore[assignment]
    block.outputs = outputs  # type: ignore[assignment]
    return block
