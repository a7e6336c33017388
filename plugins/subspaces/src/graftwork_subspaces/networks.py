"""The networks of the paper's experiments, as ordinary timm-style models with batch norm.

All three end in global average pooling and a classifier without bias, as published; :mod:`models` puts them
on a subspace. Weights of convolutions and classifier: 216,752 (cPreResNet-20), 11,678,912 (ResNet-18),
20,530,880 (VGG-19).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import SelectAdaptivePool2d
from timm.models import checkpoint_seq
from timm.models._features import feature_take_indices
from torch import Tensor, nn
from torch.nn import functional


class PreActBottleneck(nn.Module):
    """Pre-activation bottleneck: norm before every convolution, none on the shortcut.

    Args:
        inputs: Channels that arrive.
        planes: Channels inside; four times as many leave.
        stride: Of the 3x3 convolution.
    """

    def __init__(self, inputs: int, planes: int, stride: int, **dd: Any) -> None:
        super().__init__()
        outputs = 4 * planes
        self.norm1 = nn.BatchNorm2d(inputs, **dd)
        self.conv1 = nn.Conv2d(inputs, planes, 1, bias=False, **dd)
        self.norm2 = nn.BatchNorm2d(planes, **dd)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, 1, bias=False, **dd)
        self.norm3 = nn.BatchNorm2d(planes, **dd)
        self.conv3 = nn.Conv2d(planes, outputs, 1, bias=False, **dd)
        same = stride == 1 and inputs == outputs
        self.shortcut = None if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, 4 planes, H / stride, W / stride)."""
        active = functional.relu(self.norm1(x))
        shortcut = x if self.shortcut is None else self.shortcut(active)
        y = self.conv2(functional.relu(self.norm2(self.conv1(active))))
        return self.conv3(functional.relu(self.norm3(y))) + shortcut  # type: ignore[no-any-return]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut.

    Args:
        inputs: Channels that arrive.
        outputs: Channels that leave.
        stride: Of the first convolution.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, **dd: Any) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False, **dd)
        self.norm1 = nn.BatchNorm2d(outputs, **dd)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False, **dd)
        self.norm2 = nn.BatchNorm2d(outputs, **dd)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False, **dd), nn.BatchNorm2d(outputs, **dd)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', H / stride, W / stride)."""
        y = self.norm2(self.conv2(functional.relu(self.norm1(self.conv1(x)))))
        return functional.relu(y + self.shortcut(x))


def _conv_norm_relu(inputs: int, outputs: int, size: int, stride: int = 1, **dd: Any) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False, **dd)
    return [conv, nn.BatchNorm2d(outputs, **dd), nn.ReLU()]


class PaperNet(nn.Module):
    """Stem, stages, pooling, classifier, with the methods that timm expects of a model.

    Args:
        stem: First convolution and what belongs to it.
        stages: One module list per resolution.
        norm: After the last stage.
        channels: That leave each stage.
        reductions: Image pixels per feature pixel, by stage.
        num_classes: 0 leaves the classifier out.
        in_chans: Channels of the images.
        global_pool: ``"avg"``, ``"max"``, ``""`` and so on, as everywhere in timm.
        drop_rate: Dropout before the classifier.
    """

    def __init__(
        self,
        stem: nn.Module,
        stages: Sequence[Sequence[nn.Module]],
        norm: nn.Module,
        channels: Sequence[int],
        reductions: Sequence[int],
        *,
        num_classes: int,
        in_chans: int,
        global_pool: str,
        drop_rate: float,
        **dd: Any,
    ) -> None:
        super().__init__()
        self.num_classes, self.in_chans, self.drop_rate = num_classes, in_chans, drop_rate
        self.num_features = self.head_hidden_size = channels[-1]
        self.grad_checkpointing = False
        self.stem = stem
        self.stages = nn.Sequential(*(nn.Sequential(*stage) for stage in stages))
        self.norm = norm
        self.feature_info = [
            {"num_chs": count, "reduction": reduction, "module": f"stages.{i}"}
            for i, (count, reduction) in enumerate(zip(channels, reductions))
        ]
        self.global_pool = SelectAdaptivePool2d(pool_type=global_pool, flatten=bool(global_pool))
        self.head_drop = nn.Dropout(drop_rate)
        self.head = self._classifier(num_classes, **dd)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def _classifier(self, num_classes: int, **dd: Any) -> nn.Module:
        if num_classes == 0:
            return nn.Identity()
        head = nn.Linear(self.num_features, num_classes, bias=False, **dd)
        nn.init.kaiming_normal_(head.weight)
        return head

    def _stage(self, stage: nn.Module, x: Tensor) -> Tensor:
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint_seq(stage, x)  # type: ignore[no-any-return]
        return stage(x)  # type: ignore[no-any-return]

    def forward_features(self, x: Tensor) -> Tensor:
        """Map images (B, C, H, W) to features (B, num_features, h, w)."""
        x = self.stem(x)
        for stage in self.stages:
            x = self._stage(stage, x)
        return self.norm(x)  # type: ignore[no-any-return]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Map features to logits, or to pooled features."""
        x = self.head_drop(self.global_pool(x))
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        """Map images to logits (B, classes)."""
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Return what leaves chosen stages.

        Args:
            x: Images.
            indices: Stages: the last n, a list, or all.
            norm: Apply the last norm to the last intermediate.
            stop_early: Leave out stages behind the last one wanted.
            output_fmt: Only ``"NCHW"``.
            intermediates_only: Leave out the final features.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt must be 'NCHW' for a convolutional network, got {output_fmt!r}.")
        wanted, last = feature_take_indices(len(self.stages), indices)
        intermediates = []
        x = self.stem(x)
        for i, stage in enumerate(self.stages[: last + 1] if stop_early else self.stages):
            x = self._stage(stage, x)
            if i in wanted:
                intermediates.append(self.norm(x) if norm and i == len(self.stages) - 1 else x)
        return intermediates if intermediates_only else (self.norm(x), intermediates)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what no wanted intermediate needs and return the indices that are left."""
        wanted, last = feature_take_indices(len(self.stages), indices)
        self.stages = self.stages[: last + 1]
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0, "")
        return wanted  # type: ignore[no-any-return]

    def get_classifier(self) -> nn.Module:
        """Return the classifier."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier, and the pooling if named."""
        self.num_classes = num_classes
        if global_pool is not None:
            self.global_pool = SelectAdaptivePool2d(pool_type=global_pool, flatten=bool(global_pool))
        like = next(self.parameters())
        self.head = self._classifier(num_classes, device=like.device, dtype=like.dtype)
        self.head.train(self.training)

    @torch.jit.ignore  # type: ignore[untyped-decorator]
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the stages' activations in the backward pass, or keep them."""
        self.grad_checkpointing = enable

    @torch.jit.ignore  # type: ignore[untyped-decorator]
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return parameter groups for layer-wise decay."""
        blocks = r"^stages\.(\d+)" if coarse else r"^stages\.(\d+)\.(\d+)"
        return {"stem": r"^stem", "blocks": [(blocks, None), (r"^norm", (99999,))]}


def cpreresnet20(channels: Sequence[int] = (16, 32, 64), blocks: int = 2, **options: Any) -> PaperNet:
    """Build the pre-activation bottleneck network for 32x32 images.

    Args:
        channels: Planes of the stages.
        blocks: Per stage.
        options: Of :class:`PaperNet`.
    """
    dd = _placement(options)
    width = channels[0]
    stem = nn.Conv2d(options["in_chans"], width, 3, 1, 1, bias=False, **dd)
    stages = []
    for i, planes in enumerate(channels):
        stage = []
        for b in range(blocks):
            stage.append(PreActBottleneck(width, planes, 2 if i and b == 0 else 1, **dd))
            width = 4 * planes
        stages.append(stage)
    norm = nn.Sequential(nn.BatchNorm2d(width, **dd), nn.ReLU())
    outputs = [4 * planes for planes in channels]
    return PaperNet(
        nn.Sequential(stem), stages, norm, outputs, [2**i for i in range(len(channels))], **options
    )


def resnet18(channels: Sequence[int] = (64, 128, 256, 512), blocks: int = 2, **options: Any) -> PaperNet:
    """Build ResNet-18 with a classifier without bias.

    Args:
        channels: Of the stages.
        blocks: Per stage.
        options: Of :class:`PaperNet`.
    """
    dd = _placement(options)
    width = channels[0]
    stem = nn.Sequential(*_conv_norm_relu(options["in_chans"], width, 7, 2, **dd), nn.MaxPool2d(3, 2, 1))
    stages = []
    for i, count in enumerate(channels):
        stage = []
        for b in range(blocks):
            stage.append(BasicBlock(width, count, 2 if i and b == 0 else 1, **dd))
            width = count
        stages.append(stage)
    reductions = [4 * 2**i for i in range(len(channels))]
    return PaperNet(stem, stages, nn.Identity(), channels, reductions, **options)


def vgg19(
    channels: Sequence[int] = (64, 128, 256, 512, 512),
    blocks: Sequence[int] = (2, 2, 4, 4, 4),
    **options: Any,
) -> PaperNet:
    """Build VGG-19 with norms, four max-poolings and global average pooling.

    Args:
        channels: Between the poolings.
        blocks: Convolutions between the poolings, the stem included.
        options: Of :class:`PaperNet`.

    Note:
        The published code pools 14x14 features to 7x7 and flattens them, which gives 49,000 logits for 1,000
        classes at 224 pixels. Here they are pooled to one position.
    """
    dd = _placement(options)
    width = channels[0]
    stem = nn.Sequential(*_conv_norm_relu(options["in_chans"], width, 3, **dd))
    stages: list[list[nn.Module]] = []
    for i, (count, convolutions) in enumerate(zip(channels, blocks)):
        stage: list[nn.Module] = [nn.MaxPool2d(2)] if i else []
        for _ in range(convolutions if i else convolutions - 1):
            stage += [nn.Sequential(*_conv_norm_relu(width, count, 3, **dd))]
            width = count
        stages.append(stage)
    return PaperNet(stem, stages, nn.Identity(), channels, [2**i for i in range(len(channels))], **options)


def _placement(options: dict[str, Any]) -> dict[str, Any]:
    return {key: options.get(key) for key in ("device", "dtype")}
