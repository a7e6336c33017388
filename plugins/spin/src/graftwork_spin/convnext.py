"""Isotropic ConvNeXt, plain and with shared tensors.

The isotropic form has one resolution and one width throughout (ConvNeXt paper, arXiv 2201.03545, sec. 3.3),
which timm's ConvNeXt with its four stages does not offer; the blocks are timm's.
"""

# No `from __future__ import annotations`: FX copies forward's annotations into the code it generates, and a
# string there cannot be scripted.

from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

import torch
from timm.layers import LayerNorm, LayerNorm2d, SelectAdaptivePool2d, trunc_normal_
from timm.models._features import feature_take_indices
from timm.models.convnext import ConvNeXtBlock
from torch import Tensor, nn
from torch.nn import functional

from graftwork_spin.convnet import SharedConvNet
from graftwork_spin.mlp import SpinMlp


class SpinConvNeXtBlock(nn.Module):
    """timm's ConvNeXt block with private norm and layer scale; a shared layer is None and handed in.

    Args:
        block: Whose layers are taken over, under their names.
    """

    def __init__(self, block: ConvNeXtBlock) -> None:
        super().__init__()
        self.conv_dw, self.norm, self.mlp = block.conv_dw, block.norm, SpinMlp(block.mlp)
        self.gamma, self.drop_path = block.gamma, block.drop_path
        self.channels = block.conv_dw.in_channels
        self.conv_dw_at = -1

    def forward(self, x: Tensor, weights: list[Tensor], biases: list[Tensor | None]) -> Tensor:
        """Map (B, C, H, W) to the same shape, with this layer's shared tensors in the order of ``shared``."""
        if self.conv_dw is not None:
            y = self.conv_dw(x)
        else:
            y = functional.conv2d(
                x, weights[self.conv_dw_at], biases[self.conv_dw_at], padding="same", groups=self.channels
            )
        y = self.mlp(self.norm(y.permute(0, 2, 3, 1)), weights, biases).permute(0, 3, 1, 2)
        if self.gamma is not None:
            y = y.mul(self.gamma.reshape(1, -1, 1, 1))
        return x + self.drop_path(y)


class SpinConvNeXt(SharedConvNet):
    """Isotropic ConvNeXt whose blocks share tensors; with ``rate=1`` the plain network.

    Example:
        >>> model = SpinConvNeXt(dim=32, depth=4, patch_size=8, rate=2)
        >>> model(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 1000])

    Args:
        dim: Channels C.
        depth: Layers L.
        patch_size: Of the stem.
        kernel_size: Of the depthwise convolution, odd.
        mlp_ratio: Hidden width over C.
        in_chans: Channels of the images.
        num_classes: Size of the classifier's output; 0 for none.
        global_pool: Pooling before the classifier, or ``""`` for none.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of the last block; earlier blocks have less, in proportion.
        ls_init_value: Start of the layer scale, or None for no layer scale.
        act_layer: Activation.
        rate: Share rate r.
        mapping: See :func:`graftwork_spin.mapping.sharing_mapping`.
        distribution: As `mapping`.
        components: Among ``"dw"`` (depthwise) and ``"pw"`` (both linear layers); both if None, as the paper.
        transform: Private transform of every layer's weights.
        fusion: Online fusion of training; see :func:`graftwork_spin.fusion.fuse`.
        mapping_seed: Of the random mapping.
        device: Where to build.
        dtype: Of the parameters.
    """

    COMPONENTS = MappingProxyType({"dw": ("conv_dw",), "pw": ("mlp.fc1", "mlp.fc2")})
    DEFAULT = ("dw", "pw")

    def __init__(
        self,
        dim: int = 384,
        depth: int = 18,
        patch_size: int = 16,
        kernel_size: int = 7,
        mlp_ratio: float = 4.0,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        ls_init_value: float | None = 1e-6,
        act_layer: str = "gelu",
        rate: int = 2,
        mapping: str | Sequence[int] = "sequential",
        distribution: str = "uniform",
        components: str | Sequence[str] | None = None,
        transform: str = "none",
        fusion: str | None = None,
        mapping_seed: int = 0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {kernel_size}.")
        dd = {"device": device, "dtype": dtype}
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
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.num_features = dim
        self.grad_checkpointing = False
        self.stem = nn.Sequential(nn.Conv2d(in_chans, dim, patch_size, stride=patch_size, **dd))
        self.blocks = nn.Sequential(
            *[
                ConvNeXtBlock(
                    dim,
                    kernel_size=kernel_size,
                    mlp_ratio=mlp_ratio,
                    ls_init_value=ls_init_value,
                    act_layer=act_layer,
                    norm_layer=LayerNorm,
                    drop_path=drop_path_rate * layer / max(depth - 1, 1),
                    **dd,
                )
                for layer in range(depth)
            ]
        )
        self.feature_info = [
            {"num_chs": dim, "reduction": patch_size, "module": f"blocks.{i}"} for i in range(depth)
        ]
        self.global_pool = SelectAdaptivePool2d(pool_type=global_pool, flatten=False)
        self.norm = LayerNorm2d(dim, **dd)
        self.flatten = nn.Flatten(1) if global_pool else nn.Identity()
        self.head_hidden_size = dim * self.global_pool.feat_mult()
        self.head_drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(self.head_hidden_size, num_classes, **dd) if num_classes > 0 else nn.Identity()
        self.ls_init_value = ls_init_value
        self.adopt_blocks()
        self.share_blocks(sharing)
        self.init_weights()

    @staticmethod
    def adapt_block(block: ConvNeXtBlock) -> SpinConvNeXtBlock:
        """Take over the layers of one of timm's blocks."""
        return SpinConvNeXtBlock(block)

    @torch.jit.ignore
    def init_weights(self) -> None:
        """Initialise as ConvNeXt: weights from a normal of deviation 0.02 cut at two units, biases 0."""
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()
            elif isinstance(module, SpinConvNeXtBlock) and module.gamma is not None:
                nn.init.constant_(module.gamma, self.ls_init_value)
        for layer in self.shared.values():
            for weight in layer.weight:
                trunc_normal_(weight, std=0.02)
            for bias in layer.bias:
                nn.init.zeros_(bias)
        self.reset_adapters()

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Group parameters by depth; a stored tensor belongs to the first block that uses it."""
        return {"stem": r"^stem", "blocks": [(r"^blocks\.(\d+)", None), *self.shared_groups()]}

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the blocks after the last one wanted, and the stored tensors that only they used.

        Args:
            indices: Blocks to keep: the last n, or a list.
            prune_norm: Whether to drop the norm between pooling and classifier.
            prune_head: Whether to drop norm and classifier.

        Returns:
            The indices, counted from the first block.
        """
        kept, last = feature_take_indices(len(self.blocks), indices)
        self.truncate_blocks(last + 1)
        if prune_norm or prune_head:
            self.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0, "")
        return kept

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade time for memory: recompute every block in the backward pass."""
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """Return the classifier."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier.

        Args:
            num_classes: Size of its output; 0 for none.
            global_pool: New pooling, or None to keep it.
        """
        self.num_classes = num_classes
        if global_pool is not None:
            self.global_pool = SelectAdaptivePool2d(pool_type=global_pool, flatten=False)
            self.flatten = nn.Flatten(1) if global_pool else nn.Identity()
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()
        like = self.stem[0].weight
        self.head = nn.Identity()
        if num_classes > 0:
            self.head = nn.Linear(self.head_hidden_size, num_classes, device=like.device, dtype=like.dtype)
        self.head.train(self.training)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Map features (B, C, H, W) to logits, or to what the classifier would get."""
        x = self.head_drop(self.flatten(self.norm(self.global_pool(x))))
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        """Map images to logits (B, num_classes)."""
        return self.forward_head(self.forward_features(x))
