"""How modules pass channels on: weights open and close spaces, the rest mostly lets them through."""

from __future__ import annotations

import math
from typing import Any

from timm.layers import Attention, Conv2dSame, LayerScale, LayerScale2d
from timm.layers.grn import GlobalResponseNorm
from timm.models.vgg import ConvMlp
from torch import fx, nn

from graftwork_subspaces.propagate import Channels, UnsupportedGraph, Walk
from graftwork_subspaces.width import FULL, Layout, Segment

ELEMENTWISE = (
    nn.Identity, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish,
    nn.Sigmoid, nn.Tanh, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.Softplus, nn.LogSigmoid, nn.Softsign,
    nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout,
)  # fmt: skip
SPATIAL = (
    nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.LPPool2d,
    nn.Upsample, nn.ZeroPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d,
)  # fmt: skip


def full(size: int) -> Layout:
    """Return the layout of channels that are never cut."""
    return (Segment(FULL, size),)


def follow_module(walk: Walk, node: fx.Node, module: nn.Module) -> None:
    """Note what a module call does to the channels."""
    name = str(node.target)
    known = walk.of(node.args[0]) if node.args else None
    if type(module) in (nn.Conv2d, Conv2dSame):
        _convolution(walk, node, name, module, known)
    elif isinstance(module, nn.Linear):
        _linear(walk, node, name, module, known)
    elif isinstance(module, (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)):
        _norm(walk, node, name, module, known)
    elif isinstance(module, ConvMlp):
        _conv_mlp(walk, node, name, module, known)
    elif isinstance(module, Attention):
        _attention(walk, node, name, module, known)
    elif isinstance(module, (LayerScale, LayerScale2d, GlobalResponseNorm)):
        if known is not None:
            walk.inputs[name] = walk.outputs[name] = known.layout
            walk.channels[node] = known
    elif known is not None:
        _without_weights(walk, node, module, known)


def _without_weights(walk: Walk, node: fx.Node, module: nn.Module, known: Channels) -> None:
    prelu = isinstance(module, nn.PReLU) and module.num_parameters == 1
    # ECA: a convolution along the channels, whose single input channel is another axis
    along = (
        isinstance(module, nn.Conv1d) and module.in_channels == module.out_channels == 1 and known.axis == 2
    )
    if isinstance(module, ELEMENTWISE) or prelu or along or (isinstance(module, SPATIAL) and known.axis == 1):
        walk.channels[node] = known
    elif isinstance(module, nn.Flatten) and module.start_dim == known.axis and module.end_dim == -1:
        shape = walk.shape(node.args[0])
        assert shape is not None
        walk.channels[node] = flattened(known, math.prod(shape[known.axis + 1 :]))
    elif any(True for _ in module.parameters()) or not _keeps_shape(walk, node):
        walk.doubt(node, f"({type(module).__name__}) has no rule")
    elif isinstance(module, nn.Softmax) and module.dim not in (known.axis, None):
        walk.channels[node] = known
    elif type(module).__module__.startswith("timm.layers") or hasattr(module, "inplace"):
        walk.channels[node] = known  # activations and stochastic depth of timm: elementwise, no weights
    else:
        walk.doubt(node, f"({type(module).__name__}) has no rule")


def _keeps_shape(walk: Walk, node: fx.Node) -> bool:
    return walk.shape(node) == walk.shape(node.args[0])


def flattened(known: Channels, positions: int) -> Channels:
    """Return the channels after all later axes were folded into the channel axis."""
    return Channels(
        known.axis, tuple(Segment(s.space, s.blocks, s.channels * positions) for s in known.layout)
    )


def _open(walk: Walk, name: str, size: int) -> Layout:
    """Open a space for the output of a layer, or reuse that of its first call."""
    if name not in walk.outputs:
        walk.outputs[name] = walk.book.new(size)
        if name in walk.whole:
            walk.book.fix(walk.outputs[name], "asked to stay whole")
    return walk.outputs[name]


def _record_input(walk: Walk, name: str, size: int, known: Channels | None) -> Layout:
    layout = known.layout if known is not None else full(size)
    if name in walk.inputs and not walk.book.join(walk.inputs[name], layout):
        raise UnsupportedGraph(f"{name} is called twice with channels of different origin; keep it whole.")
    return walk.inputs.setdefault(name, layout)


def _convolution(walk: Walk, node: fx.Node, name: str, conv: Any, known: Channels | None) -> None:
    if known is not None and known.axis != 1:
        walk.doubt(node, "convolves over an axis that is not the channel axis it follows")
        return
    inputs = _record_input(walk, name, conv.in_channels, known)
    if conv.groups == 1:
        walk.channels[node] = Channels(1, _open(walk, name, conv.out_channels))
        return
    outputs = _grouped(walk, conv, inputs)
    if outputs is None:
        walk.doubt(node, f"has {conv.groups} groups that do not fit the channels that arrive")
        return
    if name in walk.whole:
        walk.book.fix(outputs, "asked to stay whole")
    walk.outputs[name] = outputs
    walk.channels[node] = Channels(1, outputs)


def _grouped(walk: Walk, conv: Any, inputs: Layout) -> Layout | None:
    """Return the output layout of a grouped convolution, whose groups are kept or dropped whole."""
    per_group = conv.in_channels // conv.groups
    out_per_group = conv.out_channels // conv.groups
    outputs = []
    for segment in inputs:
        unit = max(1, per_group // segment.channels)  # blocks in a group
        if (unit * segment.channels) % per_group or segment.blocks % unit:
            return None
        groups_per_unit = unit * segment.channels // per_group
        channels, rest = divmod(groups_per_unit * out_per_group, unit)
        if rest:
            return None
        walk.book.need_unit((segment,), unit)
        outputs.append(Segment(segment.space, segment.blocks, channels))
    return tuple(outputs)


def _linear(walk: Walk, node: fx.Node, name: str, linear: nn.Linear, known: Channels | None) -> None:
    shape = walk.shape(node.args[0])
    assert shape is not None
    if known is not None and known.axis != len(shape) - 1:
        walk.doubt(node, "multiplies along an axis that is not the channel axis it follows")
        return
    _record_input(walk, name, linear.in_features, known)
    walk.channels[node] = Channels(len(shape) - 1, _open(walk, name, linear.out_features))


def _norm(walk: Walk, node: fx.Node, name: str, norm: Any, known: Channels | None) -> None:
    if known is None:
        return
    shape = walk.shape(node.args[0])
    assert shape is not None
    over_last = isinstance(norm, nn.LayerNorm) and "2d" not in type(norm).__name__.lower()
    if known.axis != (len(shape) - 1 if over_last else 1):
        walk.doubt(node, "normalises an axis that is not the channel axis it follows")
        return
    if isinstance(norm, nn.GroupNorm) and norm.num_groups > 1:
        for segment in known.layout:
            unit, rest = divmod(norm.num_channels // norm.num_groups, segment.channels)
            if rest or segment.blocks % max(1, unit):
                walk.doubt(node, "has groups that do not fit the channels that arrive")
                return
            walk.book.need_unit((segment,), max(1, unit))
    walk.inputs[name] = walk.outputs[name] = known.layout
    walk.channels[node] = known


def _conv_mlp(walk: Walk, node: fx.Node, name: str, mlp: ConvMlp, known: Channels | None) -> None:
    """Follow the two convolutions that stand for VGG's linear layers; timm forbids tracing into them."""
    _record_input(walk, f"{name}.fc1", mlp.fc1.in_channels, known)
    walk.inputs[f"{name}.fc2"] = _open(walk, f"{name}.fc1", mlp.fc1.out_channels)
    walk.channels[node] = Channels(1, _open(walk, f"{name}.fc2", mlp.fc2.out_channels))


def _attention(walk: Walk, node: fx.Node, name: str, attention: Any, known: Channels | None) -> None:
    if type(attention) is not Attention:
        walk.doubt(node, f"({type(attention).__name__}) has no rule")
        return
    dim = attention.qkv.in_features
    heads = walk.book.new(attention.num_heads, attention.head_dim)
    if name in walk.whole or f"{name}.qkv" in walk.whole:
        walk.book.fix(heads, "asked to stay whole")
    walk.inputs[f"{name}.qkv"] = _record_input(walk, f"{name}.qkv", dim, known)
    walk.outputs[f"{name}.qkv"] = heads * 3
    if getattr(attention, "gate", None) is not None:
        walk.inputs[f"{name}.gate"], walk.outputs[f"{name}.gate"] = walk.inputs[f"{name}.qkv"], heads
    if isinstance(getattr(attention, "norm", None), nn.LayerNorm):
        walk.inputs[f"{name}.norm"] = walk.outputs[f"{name}.norm"] = heads
    walk.inputs[f"{name}.proj"] = heads
    shape = walk.shape(node)
    assert shape is not None
    walk.channels[node] = Channels(len(shape) - 1, _open(walk, f"{name}.proj", attention.proj.out_features))
