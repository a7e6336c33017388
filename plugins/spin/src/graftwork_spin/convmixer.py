"""ConvMixer with shared tensors: the network the paper studies.

Shapes: B images, C = dim channels, H x W patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

import torch
from timm.layers import get_act_layer
from timm.models._features import feature_take_indices
from timm.models.convmixer import ConvMixer
from torch import Tensor, nn
from torch.nn import functional

from graftwork_spin.convnet import SharedConvNet


class SpinConvMixerBlock(nn.Module):
    """x + BN(act(depthwise(x))), then [x +] BN(act(pointwise(x))); a shared layer is None and handed in.

    Args:
        block: A block of timm's ConvMixer, whose layers are taken over.
        pw_residual: Whether the pointwise half has a residual connection too.
    """

    __constants__ = ("pw_residual",)

    def __init__(self, block: nn.Sequential, pw_residual: bool = False) -> None:
        super().__init__()
        depthwise = block[0].fn
        self.dw, self.act1, self.norm1 = depthwise[0], depthwise[1], depthwise[2]
        self.pw, self.act2, self.norm2 = block[1], block[2], block[3]
        self.pw_residual = pw_residual
        self.channels = self.dw.in_channels
        self.dw_at = self.pw_at = self.norm1_at = self.norm2_at = -1

    def forward(self, x: Tensor, weights: list[Tensor], biases: list[Tensor | None]) -> Tensor:
        """Map (B, C, H, W) to the same shape, with this layer's shared tensors in the order of ``shared``."""
        if self.dw is not None:
            y = self.dw(x)
        else:
            y = functional.conv2d(
                x, weights[self.dw_at], biases[self.dw_at], padding="same", groups=self.channels
            )
        y = self.norm1(self.act1(y))
        if self.norm1_at >= 0:
            y = _affine(y, weights[self.norm1_at], biases[self.norm1_at])
        x = x + y
        if self.pw is not None:
            y = self.pw(x)
        else:
            y = functional.conv2d(x, weights[self.pw_at], biases[self.pw_at])
        y = self.norm2(self.act2(y))
        if self.norm2_at >= 0:
            y = _affine(y, weights[self.norm2_at], biases[self.norm2_at])
        return x + y if self.pw_residual else y


class SpinConvMixer(SharedConvNet, ConvMixer):
    """ConvMixer whose layers share tensors; with ``rate=1`` the plain network.

    Example:
        >>> model = SpinConvMixer(dim=64, depth=8, kernel_size=3, patch_size=4, rate=2)
        >>> len(model.shared["pw"].weight), model(torch.zeros(1, 3, 32, 32)).shape
        (4, torch.Size([1, 1000]))

    Args:
        dim: Channels C.
        depth: Layers L.
        kernel_size: Of the depthwise convolution.
        patch_size: Of the stem.
        in_chans: Channels of the images.
        num_classes: Size of the classifier's output; 0 for none.
        global_pool: Pooling before the classifier, or ``""`` for none.
        drop_rate: Dropout before the classifier. The paper trains with 0.5.
        act_layer: Activation, as a class or a timm name.
        rate: Share rate r.
        mapping: See :func:`graftwork_spin.mapping.sharing_mapping`.
        distribution: As `mapping`.
        components: Among ``"pw"`` (pointwise, the paper's choice), ``"dw"`` (depthwise) and ``"norm"``
            (affine part of both BatchNorms; running statistics stay private).
        transform: Private transform of every layer's weights.
        fusion: Online fusion of training; see :func:`graftwork_spin.fusion.fuse`.
        pw_residual: Whether the pointwise half has a residual connection too.
        mapping_seed: Of the random mapping.
        device: Where to build.
        dtype: Of the parameters.

    Note:
        The released code adds a residual around the pointwise half, which the original ConvMixer and timm's
        do not have; it is the default here, since networks trained by that code need it. Weights trained
        without it, such as timm's, need ``pw_residual=False``.
    """

    COMPONENTS = MappingProxyType({"pw": ("pw",), "dw": ("dw",), "norm": ("norm1", "norm2")})
    DEFAULT = ("pw",)

    def __init__(
        self,
        dim: int,
        depth: int,
        kernel_size: int = 3,
        patch_size: int = 14,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        act_layer: type[nn.Module] | str = nn.ReLU,
        rate: int = 2,
        mapping: str | Sequence[int] = "sequential",
        distribution: str = "uniform",
        components: str | Sequence[str] | None = None,
        transform: str = "none",
        fusion: str | None = None,
        pw_residual: bool = True,
        mapping_seed: int = 0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        sharing = self.plan(
            depth,
            rate=rate,
            mapping=mapping,
            distribution=distribution,
            components=components,
            transform=transform,
            fusion=fusion,
            mapping_seed=mapping_seed,
        )
        super().__init__(
            dim,
            depth,
            kernel_size=kernel_size,
            patch_size=patch_size,
            in_chans=in_chans,
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
            act_layer=get_act_layer(act_layer),
            device=device,
            dtype=dtype,
        )
        self.feature_info = [
            {"num_chs": dim, "reduction": patch_size, "module": f"blocks.{i}"} for i in range(depth)
        ]
        self.adopt_blocks(pw_residual=pw_residual)
        self.share_blocks(sharing)
        self.init_weights()

    @staticmethod
    def adapt_block(block: nn.Sequential, pw_residual: bool = False) -> SpinConvMixerBlock:
        """Take over the layers of one of timm's blocks."""
        return SpinConvMixerBlock(block, pw_residual)

    @torch.jit.ignore
    def init_weights(self) -> None:
        """Initialise as the paper's training does: He (fan out) convolutions, N(0, 0.01) classifier."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)
        for layer in self.shared.values():
            for weight in layer.weight:
                if weight.dim() > 1:
                    nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu")
                else:
                    nn.init.ones_(weight)
            for bias in layer.bias:
                nn.init.zeros_(bias)
        self.reset_adapters()

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the blocks after the last one wanted, and the stored tensors that only they used.

        Args:
            indices: Blocks to keep: the last n, or a list.
            prune_norm: Without effect; there is no final norm.
            prune_head: Whether to drop the classifier.

        Returns:
            The indices, counted from the first block.
        """
        kept, last = feature_take_indices(len(self.blocks), indices)
        self.truncate_blocks(last + 1)
        if prune_head:
            self.reset_classifier(0, "")
        return kept


def _affine(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    assert bias is not None
    return x * weight.view(1, -1, 1, 1) + bias.view(1, -1, 1, 1)
