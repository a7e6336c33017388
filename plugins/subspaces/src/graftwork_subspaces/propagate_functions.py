"""How functions and tensor methods pass channels on: sums join spaces, concatenations line them up."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from timm.models.convnext import ConvNeXtBlock
from torch import Tensor, fx

from graftwork_subspaces.propagate import Channels, Walk, owner_of
from graftwork_subspaces.propagate_modules import flattened, full
from graftwork_subspaces.width import FULL, Layout

BINARY = {"add", "add_", "iadd", "sub", "sub_", "mul", "mul_", "imul", "div", "truediv", "maximum", "minimum"}
ELEMENTWISE = {
    "relu", "relu_", "relu6", "gelu", "silu", "sigmoid", "sigmoid_", "tanh", "hardtanh",
    "hardswish", "hardsigmoid", "leaky_relu", "elu", "mish", "softplus", "clamp", "clamp_", "neg",
    "abs", "exp", "sqrt", "rsqrt", "pow", "square", "contiguous", "clone", "to", "float",
    "type_as", "detach", "dropout", "feature_dropout", "drop_path",
}  # fmt: skip
SPATIAL = {
    "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "interpolate",
    "boolean_dispatch",
}  # fmt: skip
REDUCE = {"mean", "sum", "amax", "max", "std", "norm"}


def follow_function(walk: Walk, node: fx.Node) -> None:
    """Note what a function or method call does to the channels."""
    target = node.target
    name = target if isinstance(target, str) else getattr(target, "__name__", str(target))
    name = name.strip("_") if name.startswith("__") else name
    first = node.args[0] if node.args else None
    if name in ("reshape", "view", "unsqueeze") and first in walk.raw:
        walk.raw[node] = walk.raw[first]  # type: ignore[index]
    if not isinstance(walk.values[node], Tensor):
        if isinstance(walk.values[node], (tuple, list)) and any(
            isinstance(v, Tensor) for v in walk.values[node]
        ):
            walk.doubt(node, "splits a tensor")
        return
    if name in BINARY:
        _binary(walk, node)
    elif name in ("cat", "concat", "concatenate"):
        _cat(walk, node)
    elif (known := walk.of(first)) is None:
        if any(walk.of(argument) is not None for argument in node.all_input_nodes):
            walk.doubt(node, "mixes channels in a way that has no rule")
    else:
        found = _single(walk, node, name, known)
        if found is None:
            walk.doubt(node, "has no rule")
        elif found.layout:
            walk.channels[node] = found


def _single(walk: Walk, node: fx.Node, name: str, known: Channels) -> Channels | None:
    """Return where the channels are after a function of one tensor; an empty layout if they are gone."""
    shape, after = walk.shape(node.args[0]), walk.shape(node)
    assert shape is not None and after is not None
    axis, dims = known.axis, len(shape)
    if name in ELEMENTWISE or (name in SPATIAL and axis == 1):
        return known if len(after) == dims else None
    if name == "softmax":
        dim = _argument(node, 1, "dim", -1)
        return known if isinstance(dim, int) and dim % dims != axis else None
    if name in REDUCE:
        return _reduced(node, known, dims, len(after))
    if name in ("permute", "transpose", "movedim"):
        order = _order(node, name, dims)
        return None if order is None else Channels(order.index(axis), known.layout)
    if name in ("unsqueeze", "squeeze"):
        dim = _argument(node, 1, "dim", None)
        if not isinstance(dim, int):
            return None
        if name == "unsqueeze":
            return Channels(axis + (dim % (dims + 1) <= axis), known.layout)
        return None if dim % dims == axis else Channels(axis - (dim % dims < axis), known.layout)
    if name in ("reshape", "view", "flatten"):
        return _reshaped(known, shape, after)
    if name == "getitem":
        return _indexed(node.args[1], known, dims)
    if name in ("expand", "expand_as"):
        return known if len(after) == dims and after[axis] == shape[axis] else None
    if name == "pad":
        pads = node.args[1]
        return known if isinstance(pads, Sequence) and len(pads) // 2 <= dims - 1 - axis else None
    return None


def _argument(node: fx.Node, place: int, name: str, default: Any) -> Any:
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, default)


def _reduced(node: fx.Node, known: Channels, dims: int, dims_after: int) -> Channels | None:
    dim = _argument(node, 1, "dim", None)
    if dim is None or not isinstance(dim, (int, tuple, list)):
        return None
    reduced = {d % dims for d in ([dim] if isinstance(dim, int) else dim)}
    if known.axis in reduced:
        return Channels(0, ())
    gone = sum(d < known.axis for d in reduced) if dims_after < dims else 0
    return Channels(known.axis - gone, known.layout)


def _order(node: fx.Node, name: str, dims: int) -> list[int] | None:
    arguments = node.args[1:]
    if name == "permute":
        order = arguments[0] if len(arguments) == 1 else arguments
        return [d % dims for d in order] if isinstance(order, (tuple, list)) else None
    if name == "transpose" and len(arguments) == 2 and all(isinstance(a, int) for a in arguments):
        a, b = (int(d) % dims for d in arguments)  # type: ignore[arg-type]
        order = list(range(dims))
        order[a], order[b] = b, a
        return order
    return None


def _reshaped(known: Channels, shape: Sequence[int], after: Sequence[int]) -> Channels | None:
    """Follow a reshape that leaves the channel axis alone, or folds all later axes into it."""
    before, behind = math.prod(shape[: known.axis]), math.prod(shape[known.axis + 1 :])
    for axis, size in enumerate(after):
        if math.prod(after[:axis]) != before:
            continue
        if size == shape[known.axis] and math.prod(after[axis + 1 :]) == behind:
            return Channels(axis, known.layout)
        if size == shape[known.axis] * behind and axis == len(after) - 1:
            folded = flattened(known, behind)
            return Channels(axis, folded.layout)
    return None


def _indexed(index: Any, known: Channels, dims: int) -> Channels | None:
    """Follow indexing that does not touch the channel axis."""
    items = list(index) if isinstance(index, tuple) else [index]
    if Ellipsis in items:
        at = items.index(Ellipsis)
        items[at : at + 1] = [slice(None)] * (dims - len(items) + 1)
    axis = known.axis
    for place, item in enumerate(items):
        whole = isinstance(item, slice) and item == slice(None)
        if place == known.axis and not whole:
            return None
        if isinstance(item, int) and place < known.axis:
            axis -= 1
        elif not isinstance(item, (int, slice)):
            return None
    return Channels(axis, known.layout)


def _cat(walk: Walk, node: fx.Node) -> None:
    tensors = node.args[0]
    if not isinstance(tensors, (tuple, list)):
        walk.doubt(node, "concatenates what cannot be followed")
        return
    found = [walk.of(tensor) for tensor in tensors]
    axes = {known.axis for known in found if known is not None}
    if not axes:
        return
    shape = walk.shape(node)
    assert shape is not None
    dim = int(_argument(node, 1, "dim", 0)) % len(shape)
    if len(axes) > 1:
        walk.doubt(node, "concatenates tensors whose channels are on different axes")
        return
    (axis,) = axes
    layout: Layout = ()
    for tensor, known in zip(tensors, found):
        size = walk.shape(tensor)
        assert size is not None
        part = known.layout if known is not None else full(size[axis])
        if axis == dim:
            layout += part
        elif not layout:
            layout = part
        else:
            _join(walk, node, layout, part)
    walk.channels[node] = Channels(axis, layout)


def _binary(walk: Walk, node: fx.Node) -> None:
    shape = walk.shape(node)
    assert shape is not None
    sides = [a for a in (*node.args[:2], *node.kwargs.values()) if walk.shape(a) is not None]
    known = {id(side): walk.of(side) for side in sides}
    places = {
        len(shape) - len(walk.shape(s) or ()) + k.axis for s in sides if (k := known[id(s)]) is not None
    }
    if not places:
        return
    if len(places) > 1:
        walk.doubt(node, "combines tensors whose channels are on different axes")
        return
    (axis,) = places
    layout: Layout = ()
    for side in sides:
        here, size = known[id(side)], walk.shape(side)
        assert size is not None
        if here is not None:
            _join(walk, node, layout, here.layout) if layout else None
            layout = layout or here.layout
    for side in sides:
        size = walk.shape(side)
        assert size is not None
        place = axis - (len(shape) - len(size))
        if known[id(side)] is None and place >= 0 and size[place] != 1:
            _meet_full(walk, node, side, layout)
    walk.channels[node] = Channels(axis, layout)


def _meet_full(walk: Walk, node: fx.Node, side: Any, layout: Layout) -> None:
    """Channels meet a tensor that is always full: a layer scale that is cut with them, or they stay whole."""
    owner, name = walk.raw.get(side, ("", ""))
    if name == "gamma" and type(walk.model.get_submodule(owner)) is ConvNeXtBlock:  # its twin cuts it
        walk.inputs[owner] = walk.outputs[owner] = layout
        return
    what = f"the parameter {owner}.{name}".replace(" .", " ") if name else owner_of(node)
    walk.book.fix(layout, f"combined with {what}, which is always full")


def _join(walk: Walk, node: fx.Node, first: Layout, second: Layout) -> None:
    if walk.book.join(first, second):
        return
    if all(s.space == FULL for s in first) or all(s.space == FULL for s in second):
        walk.book.fix(first + second, "added to channels that are never cut")
        return
    walk.doubt(node, "adds channels of differently ordered origin")
