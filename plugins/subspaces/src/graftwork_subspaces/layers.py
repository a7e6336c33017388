"""Layers on the subspace: convolution, linear and norm, drop-in replacements of the ordinary ones.

A layer asks its network's :class:`LevelContext` for the level, puts its parameters on the line, compresses
them, and computes. It keeps no trace of the level.
"""

from __future__ import annotations

from typing import Any, Literal, TypeVar, cast

import torch
from timm.layers import Conv2dSame
from timm.layers.conv2d_same import conv2d_same
from torch import Tensor, nn
from torch.nn import functional

from graftwork_subspaces.levels import LevelContext
from graftwork_subspaces.quant import InputRange
from graftwork_subspaces.subspace import DELTA, SUFFIX, interpolate
from graftwork_subspaces.width import Layout, WidthLevel, layout_size

Role = Literal["block", "dense"]
M = TypeVar("M", bound=nn.Module)


def adopt(cls: type[M], module: nn.Module) -> M:
    """Make a new module of another class around the state of an existing one: parameters, buffers, hooks."""
    new = cls.__new__(cls)
    new.__dict__ = {
        key: value.copy() if key.startswith("_") and isinstance(value, dict) else value
        for key, value in module.__dict__.items()
    }
    return new


class OnSubspace(nn.Module):
    """What layers on the subspace have in common.

    Args:
        context: Shared by the layers of a network.
        index: Number of the layer in its network.
        role: ``"block"`` is compressed, ``"dense"`` only moves along the line.
        inputs: Layout of the channels that arrive; empty if they are never cut.
        outputs: Layout of the channels that leave.
    """

    context: LevelContext
    index: int
    role: Role
    inputs: Layout
    outputs: Layout
    groups: int = 1
    input_range: InputRange | None

    def join(self, context: LevelContext, index: int, role: Role, *, quantised: bool = False) -> None:
        """Become layer number `index` of a network."""
        self.context, self.index, self.role = context, index, role
        self.inputs = self.outputs = ()
        self.input_range = InputRange(next(self.parameters()).device) if quantised else None

    def on_line(self, name: str, position: Tensor) -> Tensor | None:
        """Return a parameter at a position: interpolated if it has two ends, itself otherwise."""
        accurate: Tensor | None = getattr(self, name)
        if accurate is None:
            return None
        compressed: Tensor | None = getattr(self, name + SUFFIX, None)
        if compressed is not None:
            return interpolate(compressed, accurate, position)
        delta: Tensor | None = getattr(self, name + DELTA, None)
        if delta is not None:  # ends stored in half precision
            return accurate.float() + (position.to(delta.device) - 1) * delta.float()
        return accurate

    def tensors(self) -> tuple[Tensor | None, Tensor | None]:
        """Return weight and bias at the current level."""
        level = self.context.level()
        if level.prepared is not None and not torch.is_grad_enabled():
            return level.prepared.tensors(self.index)
        weight, bias = self.on_line("weight", level.position), self.on_line("bias", level.position)
        weight = None if weight is None else level.weight(self, weight)
        if isinstance(level, WidthLevel) and bias is not None:
            bias = level.weight(self, bias)
        return weight, bias

    def channels_in(self, full: int) -> int:
        """Return how many channels arrive at the current level, of `full` at full width."""
        level = self.context.level()
        cut = isinstance(level, WidthLevel) and self.inputs
        return layout_size(self.inputs, cast("WidthLevel", level).sizes) if cut else full


class SubspaceConv2d(OnSubspace, nn.Conv2d):
    """Convolution on the subspace; grouped and depthwise ones keep whole groups."""

    same_padding: bool = False

    def forward(self, x: Tensor) -> Tensor:
        """Convolve at the current level: (B, C, H, W) to (B, C', H', W')."""
        weight, bias = self.tensors()
        assert weight is not None
        x = self.context.level().inputs(self, x)
        groups = self.groups
        if groups > 1:
            groups = self.channels_in(self.in_channels) * groups // self.in_channels
        if self.same_padding:
            return conv2d_same(x, weight, bias, self.stride, self.padding, self.dilation, groups)
        if self.padding_mode != "zeros":
            x = functional.pad(x, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            return functional.conv2d(x, weight, bias, self.stride, 0, self.dilation, groups)
        return functional.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, groups)


class SubspaceLinear(OnSubspace, nn.Linear):
    """Linear layer on the subspace."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., C) to (..., C') at the current level."""
        weight, bias = self.tensors()
        assert weight is not None
        return functional.linear(self.context.level().inputs(self, x), weight, bias)


NormKind = Literal["group", "instance", "layer", "layer2d", "batch"]


class SubspaceNorm(OnSubspace):
    """Norm on the subspace, followed by what the replaced layer did next (dropout, activation).

    Args:
        kind: ``"group"``, ``"instance"``, ``"layer"`` over the last axis, ``"layer2d"`` over the channels of
            (B, C, H, W), or ``"batch"`` with statistics shared by all levels.
        num_features: Channels at full width.
        groups: Groups at full width, for ``"group"``.
    """

    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(
        self, kind: NormKind, norm: nn.Module, num_features: int, num_groups: int = 1, *, affine: bool = True
    ) -> None:
        super().__init__()
        self.kind = kind
        self.num_features = num_features
        self.num_groups = num_groups
        self.eps = float(cast("Any", norm).eps) if kind in ("batch", "layer", "layer2d") else 1e-5
        if isinstance(norm, nn.GroupNorm):
            self.eps = norm.eps
        self.momentum: float | None = getattr(norm, "momentum", None)
        self.weight: Tensor | None = cast("Any", norm).weight if affine else None
        self.bias: Tensor | None = cast("Any", norm).bias if affine else None
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            self.register_buffer(name, getattr(norm, name, None) if kind == "batch" else None)
        self.drop: nn.Module = getattr(norm, "drop", None) or nn.Identity()
        self.act: nn.Module = getattr(norm, "act", None) or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Normalise at the current level; the shape stays."""
        weight, bias = self.tensors()
        return cast("Tensor", self.act(self.drop(self._normalise(x, weight, bias))))

    def _normalise(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        channels = self.channels_in(self.num_features)
        if self.kind == "instance":  # the fused kernel of group norm, with one group per channel
            return functional.group_norm(x, channels, weight, bias, self.eps)
        if self.kind == "group":
            groups = (
                self.num_groups if self.num_groups == 1 else channels * self.num_groups // self.num_features
            )
            return functional.group_norm(x, groups, weight, bias, self.eps)
        if self.kind == "layer":
            return functional.layer_norm(x, (channels,), weight, bias, self.eps)
        if self.kind == "layer2d":
            x = functional.layer_norm(x.permute(0, 2, 3, 1), (channels,), weight, bias, self.eps)
            return x.permute(0, 3, 1, 2)
        return self._batch_norm(x, weight, bias, channels)

    def _batch_norm(self, x: Tensor, weight: Tensor | None, bias: Tensor | None, channels: int) -> Tensor:
        mean, var = self.running_mean, self.running_var
        if mean is not None and var is not None and channels != self.num_features:
            level = self.context.level()
            mean, var = level.weight(self, mean), level.weight(self, var)
        training = self.training or mean is None
        copied = mean is not None and self.running_mean is not None and not _views(mean, self.running_mean)
        if training and self.training and copied:
            raise NotImplementedError(
                "batch norm after a concatenation cannot follow its statistics at several widths; "
                "use norm='auto' for this network."
            )
        momentum = 0.0 if self.momentum is None else self.momentum
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:  # cumulative average, as nn.BatchNorm2d
                momentum = 1.0 / float(self.num_batches_tracked)
        return functional.batch_norm(x, mean, var, weight, bias, training, momentum, self.eps)

    def extra_repr(self) -> str:
        """Name kind, channels and role."""
        return f"{self.kind}, {self.num_features}, eps={self.eps}"


def _views(tensor: Tensor, base: Tensor) -> bool:
    return tensor is base or tensor._base is base


def make_conv(conv: nn.Conv2d) -> SubspaceConv2d | None:
    """Make the subspace twin of a convolution; None for a kind that is not known."""
    if type(conv) is nn.Conv2d:
        return adopt(SubspaceConv2d, conv)
    if type(conv) is Conv2dSame:
        twin = adopt(SubspaceConv2d, conv)
        twin.same_padding = True
        return twin
    return None
