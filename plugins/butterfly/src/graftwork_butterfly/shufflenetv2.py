"""ShuffleNetV2, plain and with butterflies for its pointwise convolutions, as timm models (timm has none).

Layers are named as torchvision names them, so its weights load unchanged.

References:
    Ma et al., "ShuffleNet V2", ECCV 2018, arXiv 1807.11164.
"""

# no `from __future__ import annotations`: an FX graph of the model keeps the annotations of forward(), and
# TorchScript cannot resolve them as text

from typing import Any

import torch
from timm.layers import create_classifier, get_device_dtype
from timm.models import build_model_with_cfg, checkpoint_seq
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from graftwork_butterfly.models import input_record
from graftwork_butterfly.replace import no_weight_decay, replace_pointwise
from graftwork_butterfly.structure import Residual


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """Interleave `groups` contiguous groups of channels.

    Args:
        x: (B, C, H, W).
        groups: Divides C.
    """
    batch, channels, height, width = x.shape
    x = x.reshape(batch, groups, channels // groups, height, width).transpose(1, 2)
    return x.reshape(batch, channels, height, width)


def _depthwise(channels: int, stride: int, **dd: Any) -> tuple[nn.Module, nn.Module]:
    conv = nn.Conv2d(channels, channels, 3, stride, padding=1, groups=channels, bias=False, **dd)
    return conv, nn.BatchNorm2d(channels, **dd)


def _pointwise(inputs: int, outputs: int, **dd: Any) -> tuple[nn.Module, nn.Module, nn.Module]:
    conv = nn.Conv2d(inputs, outputs, 1, bias=False, **dd)
    return conv, nn.BatchNorm2d(outputs, **dd), nn.ReLU(inplace=True)


class ShuffleBlock(nn.Module):
    """One unit: half of the channels pass (stride 1) or both branches halve the map (stride 2), then shuffle.

    Args:
        inputs: Channels read.
        outputs: Channels written; equal to `inputs` at stride 1.
        stride: 1 or 2.
        device: Where to create the weights.
        dtype: Of the weights.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        half = outputs // 2
        self.stride = stride
        down = stride > 1
        self.branch1 = nn.Sequential(
            *((*_depthwise(inputs, stride, **dd), *_pointwise(inputs, half, **dd)) if down else ())
        )
        self.branch2 = nn.Sequential(
            *_pointwise(inputs if down else half, half, **dd),
            *_depthwise(half, stride, **dd),
            *_pointwise(half, half, **dd),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inputs, H, W) to (B, outputs, H / stride, W / stride)."""
        if self.stride == 1:
            kept, changed = x.chunk(2, dim=1)
            x = torch.cat((kept, self.branch2(changed)), dim=1)
        else:
            x = torch.cat((self.branch1(x), self.branch2(x)), dim=1)
        return channel_shuffle(x, 2)


class ShuffleNetV2(nn.Module):
    """ShuffleNetV2 with timm's interface.

    Example:
        >>> ShuffleNetV2(widths=(48, 96, 192))(torch.randn(1, 3, 64, 64)).shape
        torch.Size([1, 1000])

    Args:
        widths: Channels of the three stages.
        depths: Blocks of the three stages.
        stem_width: Channels of the first convolution.
        num_features: Channels of the last convolution.
        num_classes: Outputs of the classifier; 0 leaves it out.
        in_chans: Channels of the image.
        global_pool: Kind of pooling, or an empty string for none.
        drop_rate: Dropout before the classifier.
        butterfly: Replace the pointwise convolutions, except those that read the stem, as the paper does.
        bft_base: Radix k of the butterflies.
        bft_residual: Where they add their input.
        bft_backend: Which implementation they use.
        device: Where to create the weights.
        dtype: Of the weights.
    """

    def __init__(
        self,
        widths: tuple[int, int, int] = (48, 96, 192),
        depths: tuple[int, int, int] = (4, 8, 4),
        stem_width: int = 24,
        num_features: int = 1024,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        butterfly: bool = False,
        bft_base: int = 4,
        bft_residual: Residual = "first_last",
        bft_backend: str = "auto",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.grad_checkpointing = False
        self.conv1 = nn.Sequential(
            nn.Conv2d(in_chans, stem_width, 3, 2, padding=1, bias=False, **dd),
            nn.BatchNorm2d(stem_width, **dd),
            nn.ReLU(inplace=True),
        )
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        self.feature_info = [{"num_chs": stem_width, "reduction": 2, "module": "conv1"}]
        channels = stem_width
        for index, (width, depth) in enumerate(zip(widths, depths), start=2):
            blocks = [
                ShuffleBlock(width if i else channels, width, 1 if i else 2, **dd) for i in range(depth)
            ]
            setattr(self, f"stage{index}", nn.Sequential(*blocks))
            self.feature_info.append({"num_chs": width, "reduction": 2**index * 2, "module": f"stage{index}"})
            channels = width
        self.conv5: nn.Module = nn.Sequential(*_pointwise(channels, num_features, **dd))
        self.num_features = num_features
        self.global_pool, self.fc = create_classifier(num_features, num_classes, pool_type=global_pool, **dd)
        self.head_hidden_size = num_features * self.global_pool.feat_mult()
        if butterfly:
            replace_pointwise(
                self,
                base=bft_base,
                residual=bft_residual,
                backend=bft_backend,
                where=lambda name, conv: conv.in_channels != stem_width,
            )

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Return the names of the butterfly weights."""
        return no_weight_decay(self)

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return patterns that sort the parameters by depth."""
        blocks = r"^stage(\d+)" if coarse else r"^stage(\d+)\.(\d+)"
        return {"stem": r"^conv1", "blocks": [(blocks, None), (r"^conv5", (99999,))]}

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the blocks' activations in the backward pass instead of keeping them."""
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """Return the classifier."""
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a fresh classifier in place.

        Args:
            num_classes: Its outputs; 0 leaves it out.
            global_pool: Kind of pooling; None keeps it.
        """
        self.num_classes = num_classes
        pool = self.global_pool.pool_type if global_pool is None else global_pool
        self.global_pool, self.fc = create_classifier(
            self.num_features, num_classes, pool_type=pool, **get_device_dtype(self)
        )
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()
        self.global_pool.train(self.training)
        self.fc.train(self.training)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Return features of the stem and the three stages.

        Args:
            x: (B, in_chans, H, W).
            indices: Which to return: the last n, a list, or all; 0 is the stem.
            norm: Unused, there is no final norm.
            stop_early: Do not compute beyond the last one wanted.
            output_fmt: Only ``"NCHW"``.
            intermediates_only: Leave out the final features.

        Returns:
            Final features and intermediates, or the latter only.
        """
        assert output_fmt == "NCHW", "Output shape must be NCHW."
        take, last = feature_take_indices(len(self.feature_info), indices)
        intermediates = []
        x = self.conv1(x)
        if 0 in take:
            intermediates.append(x)
        x = self.maxpool(x)
        for index, stage in enumerate((self.stage2, self.stage3, self.stage4), start=1):
            if stop_early and index > last:
                break
            x = checkpoint_seq(stage, x) if self.grad_checkpointing else stage(x)
            if index in take:
                intermediates.append(x)
        if intermediates_only:
            return intermediates
        return self.conv5(x), intermediates

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what the wanted intermediates do not need.

        Args:
            indices: As in :meth:`forward_intermediates`.
            prune_norm: Drop the last convolution, which is not part of any intermediate.
            prune_head: Drop the classifier, and the last convolution with it.

        Returns:
            Indices that were kept.
        """
        take, last = feature_take_indices(len(self.feature_info), indices)
        for index in range(last + 1, len(self.feature_info)):
            setattr(self, self.feature_info[index]["module"], nn.Sequential())
        if prune_norm or prune_head or last + 1 < len(self.feature_info):
            self.conv5 = nn.Identity()
            self.num_features = self.feature_info[last]["num_chs"]
            self.reset_classifier(0, "")
        return take

    def forward_features(self, x: Tensor) -> Tensor:
        """Map images (B, in_chans, H, W) to features (B, num_features, H / 32, W / 32)."""
        x = self.maxpool(self.conv1(x))
        if self.grad_checkpointing and not torch.jit.is_scripting():
            for stage in (self.stage2, self.stage3, self.stage4):
                x = checkpoint_seq(stage, x)
        else:
            x = self.stage4(self.stage3(self.stage2(x)))
        return self.conv5(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool features and classify them.

        Args:
            x: Output of :meth:`forward_features`.
            pre_logits: Stop before the classifier.
        """
        x = self.global_pool(x)
        if self.drop_rate > 0.0:
            x = nn.functional.dropout(x, self.drop_rate, self.training)
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, in_chans, H, W) to logits (B, num_classes)."""
        return self.forward_head(self.forward_features(x))


def _create(variant: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    out_indices = kwargs.pop("out_indices", (0, 1, 2, 3))
    model: nn.Module = build_model_with_cfg(
        ShuffleNetV2,
        variant,
        pretrained,
        feature_cfg={"out_indices": out_indices, "feature_cls": "getter"},
        **{**input_record(variant), **kwargs},
    )
    return model


def shufflenetv2_x0_5(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ShuffleNetV2 0.5, dense: what the butterfly variant is compared with (table 5).

    Example:
        >>> sum(p.numel() for p in shufflenetv2_x0_5().parameters())
        1366792
    """
    return _create("shufflenetv2_x0_5", pretrained, **{"widths": (48, 96, 192), **kwargs})


def shufflenetv2_x1_25_bft(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ShuffleNetV2 1.25 with butterflies: the paper's answer to the dense 0.5 (table 5).

    Note:
        The last stage is 1024 wide as the paper prints it. Half of that would be in line with the other
        widths, but only 1024 agrees with the printed multiply-adds.
    """
    model_args: dict[str, Any] = {"widths": (128, 256, 1024), "butterfly": True}
    return _create("shufflenetv2_x1_25_bft", pretrained, **{**model_args, **kwargs})
