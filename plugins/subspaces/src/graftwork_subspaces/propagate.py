"""Finding out which channels must be cut together, by tracing the network and following its channel axis.

Every tensor of the traced graph carries the position of its channel axis and the layout along it. Layers
open, pass on or close spaces (:mod:`graftwork_subspaces.propagate_modules`), functions join or move them
(:mod:`graftwork_subspaces.propagate_functions`). What is not understood is refused by name, unless the
channels involved turn out never to be cut.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from timm.models import get_notrace_functions, get_notrace_modules
from timm.models.convnext import ConvNeXtBlock
from torch import Tensor, fx, nn

from graftwork_subspaces.blocks import TWINS
from graftwork_subspaces.spaces import ChannelPlan, SpaceBook
from graftwork_subspaces.width import Layout

WEIGHTED = (nn.Conv2d, nn.Linear, nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


class UnsupportedGraph(NotImplementedError):
    """A network whose widths cannot be followed; the message names the module."""


@dataclass(frozen=True)
class Channels:
    """Where the channels of a tensor are.

    Args:
        axis: Counted from the front.
        layout: Spaces along it.
    """

    axis: int
    layout: Layout


class Walk:
    """State of one walk through a graph.

    Args:
        model: What is walked.
        book: Spaces found so far.
        whole: Names of layers whose output is never cut.
    """

    def __init__(self, model: nn.Module, book: SpaceBook, whole: Collection[str]) -> None:
        self.model = model
        self.book = book
        self.whole = whole
        self.inputs: dict[str, Layout] = {}
        self.outputs: dict[str, Layout] = {}
        self.channels: dict[fx.Node, Channels] = {}
        self.values: dict[fx.Node, Any] = {}
        self.raw: dict[fx.Node, tuple[str, str]] = {}
        self.doubts: list[tuple[Layout, str]] = []

    def of(self, argument: object) -> Channels | None:
        """Return the channels of a graph argument; None for full width or for no tensor."""
        return self.channels.get(argument) if isinstance(argument, fx.Node) else None

    def shape(self, argument: object) -> torch.Size | None:
        """Return the shape of a graph argument at full width."""
        value = self.values.get(argument) if isinstance(argument, fx.Node) else None
        return value.shape if isinstance(value, Tensor) else None

    def doubt(self, node: fx.Node, why: str) -> None:
        """Note that a node is not understood; it is refused in the end if its channels are cut."""
        where = owner_of(node)
        what = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", node.target)
        for argument in node.all_input_nodes:
            known = self.channels.get(argument)
            if known is not None:
                self.doubts.append((known.layout, f"{where}: {what} {why}"))

    def refuse_doubts(self) -> None:
        """Refuse the network if a node that was not understood meets channels that are cut."""
        for layout, text in self.doubts:
            if self.book.reason(layout):
                continue
            sources = [name for name, other in self.outputs.items() if self.book.touch(layout, other)]
            skip = ", ".join(repr(name) for name in ("stem", "head", *sources[:3]))
            more = f" and {len(sources) - 3} more" if len(sources) > 3 else ""
            raise UnsupportedGraph(
                f"the widths of this network cannot be followed through {text}. Keep the layers before it "
                f"whole with wrap(..., skip=({skip})){more}, or choose regime='sparse' or 'quant', which "
                "need "
                "no tracing."
            )


def owner_of(node: fx.Node) -> str:
    """Return the name of the module whose code a node comes from."""
    if node.op == "call_module":
        return str(node.target)
    stack = node.meta.get("nn_module_stack") or {}
    names = [entry[0] if isinstance(entry, tuple) else str(entry) for entry in stack.values()]
    return names[-1] if names and names[-1] else "the model's own forward"


class _Tracer(fx.Tracer):
    """Tracer that stops at the modules this package knows and at those timm marks as not to be traced."""

    def __init__(self) -> None:
        super().__init__(autowrap_modules=(math,), autowrap_functions=tuple(get_notrace_functions()))
        self._known = (*TWINS, *get_notrace_modules())

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if type(m) is ConvNeXtBlock:  # known, and yet traced: only its gamma is special
            return False
        if isinstance(m, self._known + WEIGHTED):
            return True
        return super().is_leaf_module(m, module_qualified_name)


class _Shapes(fx.Interpreter):
    """Runs the graph on the meta device and follows the channels node by node."""

    def __init__(
        self, module: fx.GraphModule, walk: Walk, rules: Callable[[Walk, fx.Node, Any], None]
    ) -> None:
        super().__init__(module)
        self.walk = walk
        self.rules = rules

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        self.walk.values[n] = result
        self.rules(self.walk, n, self.fetch_attr(n.target) if n.op in ("call_module", "get_attr") else None)
        return result


def find_plan(
    model: nn.Module, input_size: tuple[int, int, int], *, whole: Collection[str] = (), multiple: int = 8
) -> ChannelPlan:
    """Find which channels every layer keeps at a width.

    Args:
        model: Ordinary model, before its layers are replaced.
        input_size: Channels, height and width of its images.
        whole: Names of layers whose output channels are never cut: the classifier, skipped modules.
        multiple: Kept channels are a multiple of this where possible; 1 is the paper's rounding.

    Returns:
        The plan, by module name.

    Raises:
        UnsupportedGraph: The model cannot be traced, or does something with its channels that has no rule.
    """
    from graftwork_subspaces.propagate_functions import follow_function
    from graftwork_subspaces.propagate_modules import follow_module

    def rules(walk: Walk, node: fx.Node, target: Any) -> None:
        if node.op == "call_module":
            follow_module(walk, node, target)
        elif node.op == "get_attr":
            owner, _, name = str(node.target).rpartition(".")
            walk.raw[node] = (owner, name)
        elif node.op in ("call_function", "call_method"):
            follow_function(walk, node)

    meta = copy.deepcopy(model).to("meta").eval()
    graph = _trace(meta)
    walk = Walk(model, SpaceBook(multiple), whole)
    image = torch.zeros(2, *input_size, device="meta")
    with torch.no_grad():
        try:
            _Shapes(fx.GraphModule(meta, graph), walk, rules).run(image)
        except UnsupportedGraph:
            raise
        except Exception as error:
            raise UnsupportedGraph(
                f"the traced network does not run on an image of {input_size}: "
                f"{str(error).partition(chr(10))[0]}. Name the size it was "
                "built for with wrap(..., input_size=(channels, height, width))."
            ) from error
    walk.refuse_doubts()
    return walk.book.finish(walk.inputs, walk.outputs)


def _trace(model: nn.Module) -> fx.Graph:
    try:
        graph = _Tracer().trace(model)
    except Exception as error:
        raise UnsupportedGraph(
            f"{type(model).__name__} cannot be traced: {error}. The regime 'width' has to follow every "
            "channel; "
            "'sparse' and 'quant' need no tracing."
        ) from error
    for name, value in list(vars(model).items()):
        if name.startswith("_tensor_constant") and isinstance(value, Tensor):  # left there by the tracer
            setattr(model, name, value.to("meta"))
    return graph
