"""One level as an ordinary model: ordinary modules with finished weights, nothing of the subspace left."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import torch
from timm.layers import Attention, Conv2dSame, LayerNorm2d
from torch import Tensor, nn

from graftwork_subspaces.blocks import TWINS, SubspaceAttention
from graftwork_subspaces.layers import OnSubspace, SubspaceConv2d, SubspaceNorm, adopt
from graftwork_subspaces.levels import Level
from graftwork_subspaces.quant import QuantLevel, affine_code, fake_quantise
from graftwork_subspaces.switching import Prepared
from graftwork_subspaces.two_four import two_of_four
from graftwork_subspaces.width import WidthLevel, take

if TYPE_CHECKING:
    from graftwork_subspaces.net import CompressibleNet

FORMATS = {"sparse": ("dense", "csr"), "width": ("sliced",), "quant": ("dense", "int8")}


class RoundedInput(nn.Module):
    """Rounds what enters the next layer to the codes of a fixed range.

    Args:
        lowest: Lower end of the range.
        highest: Upper end.
        half: 2 ** (bits - 1).
    """

    def __init__(self, lowest: Tensor, highest: Tensor, half: Tensor) -> None:
        super().__init__()
        self.register_buffer("lowest", lowest.clone())
        self.register_buffer("highest", highest.clone())
        self.register_buffer("half", half.clone())

    def forward(self, x: Tensor) -> Tensor:
        """Round; the shape stays."""
        return fake_quantise(x, self.lowest, self.highest, self.half)


@torch.no_grad()
def materialize(net: CompressibleNet, level: Level, format: str | None, pattern: str | None) -> nn.Module:
    """Return one level of a network as an ordinary model; see :meth:`CompressibleNet.materialize`."""
    regime = net.settings.regime
    format = FORMATS[regime][0] if format is None else format
    if format not in FORMATS[regime]:
        raise ValueError(
            f"a {regime} network has the forms {', '.join(FORMATS[regime])}, got format={format!r}. Widths "
            "are "
            "always sliced, sparse weights are dense or csr, rounded weights are dense or int8."
        )
    if pattern not in (None, "2:4"):
        raise ValueError(f"pattern must be None or '2:4', got {pattern!r}.")
    if pattern is not None and format != "dense":
        raise ValueError("pattern='2:4' is a dense form; leave format out or say 'dense'.")
    model = copy.deepcopy(net).eval()
    build = _Builder(level, format, pattern)
    layers = model.layers()
    with model.context.enter(level):
        finished = model.switcher.prepared(layers, level, True) if not isinstance(level, WidthLevel) else None
        for name, layer in model.named_layers().items():
            _place(model.model, name, build(layer, finished))
        for name, module in list(model.model.named_modules()):
            if name and isinstance(module, tuple(TWINS.values())):
                _place(model.model, name, build.block(module))
    return model.model


def _place(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


class _Builder:
    """Makes ordinary modules out of layers on the subspace."""

    def __init__(self, level: Level, format: str, pattern: str | None) -> None:
        self.level = level
        self.format = format
        self.pattern = pattern

    def __call__(self, layer: OnSubspace, finished: Prepared | None) -> nn.Module:
        weight, bias = layer.tensors() if finished is None else finished.tensors(layer.index)
        weight, bias = (None if t is None else t.detach().clone() for t in (weight, bias))
        if isinstance(layer, SubspaceNorm):
            return _norm(layer, self.level, weight, bias)
        assert weight is not None
        if self.pattern is not None and layer.role == "block":
            weight = two_of_four(weight)
        plain = _conv(layer, weight, bias) if isinstance(layer, SubspaceConv2d) else _linear(weight, bias)
        if layer.role != "block":
            return plain
        if self.format == "csr":
            from graftwork_subspaces.csr import to_csr

            return to_csr(plain)
        if isinstance(self.level, QuantLevel) and layer.input_range is not None:
            return self._quantised(layer, plain)
        return plain

    def _quantised(self, layer: OnSubspace, plain: nn.Module) -> nn.Module:
        assert isinstance(self.level, QuantLevel) and layer.input_range is not None
        ranges = layer.input_range
        half = self.level.halves[layer.index]
        if self.format == "int8":
            from graftwork_subspaces.int8 import to_int8

            weight = layer.on_line("weight", self.level.position)
            assert weight is not None
            return to_int8(plain, affine_code(*weight.aminmax(), half), ranges, half)
        if not bool(ranges.seen):
            return plain
        return nn.Sequential(RoundedInput(ranges.lowest, ranges.highest, half), plain)

    def block(self, module: nn.Module) -> nn.Module:
        """Return the block of timm that a twin stands for, cut to the level."""
        original = next(kind for kind, twin in TWINS.items() if type(module) is twin)
        plain = cast("Any", adopt(original, module))
        for name in ("context", "outputs"):
            plain.__dict__.pop(name, None)
        if isinstance(module, SubspaceAttention):
            _shrink_heads(plain)
        elif isinstance(self.level, WidthLevel):
            for name, vector in list(module._parameters.items()):
                if vector is not None:
                    cut = take(vector, 0, cast("Any", module).outputs, self.level.sizes).clone()
                    setattr(plain, name, nn.Parameter(cut))
        return cast("nn.Module", plain)


def _shrink_heads(attention: Attention) -> None:
    projection: Any = attention.proj  # already an ordinary linear layer, or the rounding before one
    attention.num_heads = projection.in_features // attention.head_dim
    attention.attn_dim = attention.num_heads * attention.head_dim


def _conv(conv: SubspaceConv2d, weight: Tensor, bias: Tensor | None) -> nn.Module:
    groups = conv.groups
    if groups > 1:
        groups = conv.channels_in(conv.in_channels) * groups // conv.in_channels
    kind: Callable[..., nn.Conv2d] = Conv2dSame if conv.same_padding else nn.Conv2d
    extra = {} if conv.same_padding else {"padding": conv.padding, "padding_mode": conv.padding_mode}
    plain = kind(
        weight.shape[1] * groups,
        weight.shape[0],
        conv.kernel_size,
        stride=conv.stride,
        dilation=conv.dilation,
        groups=groups,
        bias=bias is not None,
        device="meta",
        **extra,
    )
    return _fill(plain, weight, bias)


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Module:
    plain = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    return _fill(plain, weight, bias)


def _fill(plain: nn.Module, weight: Tensor | None, bias: Tensor | None) -> nn.Module:
    for name, value in (("weight", weight), ("bias", bias)):
        if value is not None:
            setattr(plain, name, nn.Parameter(value.contiguous()))
    return plain.eval()


def _norm(norm: SubspaceNorm, level: Level, weight: Tensor | None, bias: Tensor | None) -> nn.Module:
    channels = norm.channels_in(norm.num_features)
    affine = weight is not None
    plain: nn.Module
    if norm.kind in ("instance", "group"):
        groups = channels if norm.kind == "instance" else norm.num_groups
        if norm.kind == "group" and norm.num_groups > 1:
            groups = channels * norm.num_groups // norm.num_features
        plain = nn.GroupNorm(groups, channels, eps=norm.eps, affine=affine, device="meta")
    elif norm.kind == "batch":
        plain = nn.BatchNorm2d(channels, eps=norm.eps, momentum=norm.momentum, affine=affine, device="meta")
        for name in ("running_mean", "running_var"):
            running = cast("Tensor | None", getattr(norm, name))
            if running is not None and isinstance(level, WidthLevel):
                running = level.weight(norm, running)
            setattr(plain, name, None if running is None else running.clone())
        plain.num_batches_tracked = norm.num_batches_tracked
    else:
        kind: Callable[..., nn.Module] = nn.LayerNorm if norm.kind == "layer" else LayerNorm2d
        named = {"elementwise_affine" if norm.kind == "layer" else "affine": affine}
        plain = kind(channels, eps=norm.eps, device="meta", **named)
    plain = _fill(plain, weight, bias)
    after = [m for m in (norm.drop, norm.act) if not isinstance(m, nn.Identity)]
    return nn.Sequential(plain, *after) if after else plain
