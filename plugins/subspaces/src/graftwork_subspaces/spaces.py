"""The spaces of a network while they are being found: joined, tied to steps, or fixed at full width."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from graftwork_subspaces.width import FULL, Layout, Segment, Space, step_for


@dataclass(frozen=True)
class ChannelPlan:
    """Which channels of which layer every width keeps.

    Args:
        spaces: What is cut.
        inputs: Layout of the channels that arrive, by layer name.
        outputs: Layout of the channels that leave, by layer name.
        kept_whole: Layers whose channels are never cut, with the reason.
    """

    spaces: tuple[Space, ...]
    inputs: Mapping[str, Layout]
    outputs: Mapping[str, Layout]
    kept_whole: Mapping[str, str]

    def sizes(self, width: float) -> tuple[int, ...]:
        """Return the blocks kept of every space."""
        return tuple(space.size(width) for space in self.spaces)


@dataclass
class _Root:
    blocks: int
    channels: int
    unit: int = 1
    whole: str = ""


class SpaceBook:
    """Keeps the spaces while a graph is walked (union-find).

    Args:
        multiple: Kept channels are a multiple of this where a space is large enough.
    """

    def __init__(self, multiple: int) -> None:
        self.multiple = multiple
        self._parent: list[int] = []
        self._root: list[_Root] = []

    def new(self, blocks: int, channels: int = 1) -> Layout:
        """Open a space and return its layout."""
        self._parent.append(len(self._parent))
        self._root.append(_Root(blocks, channels))
        return (Segment(len(self._parent) - 1, blocks, channels),)

    def find(self, space: int) -> int:
        """Return the representative of a space."""
        while self._parent[space] != space:
            self._parent[space] = self._parent[self._parent[space]]
            space = self._parent[space]
        return space

    def need_unit(self, layout: Layout, unit: int) -> None:
        """Demand that blocks of every space of a layout are kept `unit` at a time."""
        for segment in layout:
            if segment.space != FULL:
                root = self._root[self.find(segment.space)]
                root.unit = math.lcm(root.unit, unit)

    def fix(self, layout: Layout, reason: str) -> None:
        """Keep every space of a layout whole."""
        for segment in layout:
            if segment.space != FULL:
                root = self._root[self.find(segment.space)]
                root.whole = root.whole or reason

    def reason(self, layout: Layout) -> str:
        """Return why the layout is whole, or an empty string if a part of it is cut."""
        reasons = [self._root[self.find(s.space)].whole if s.space != FULL else "never cut" for s in layout]
        return "" if "" in reasons else next(iter(reasons), "never cut")

    def touch(self, first: Layout, second: Layout) -> bool:
        """Say whether two layouts have a space in common."""
        roots = [{self.find(s.space) for s in layout if s.space != FULL} for layout in (first, second)]
        return not roots[0].isdisjoint(roots[1])

    def join(self, first: Layout, second: Layout) -> bool:
        """Cut two layouts alike from now on.

        Returns:
            False if they cannot be: their segments differ.
        """
        if [(s.blocks, s.channels) for s in first] != [(s.blocks, s.channels) for s in second]:
            return False
        for a, b in zip(first, second):
            if FULL in (a.space, b.space):
                self.fix((a, b), "added to channels that are never cut")
                continue
            keep, drop = self.find(a.space), self.find(b.space)
            if keep == drop:
                continue
            self._parent[drop] = keep
            kept, dropped = self._root[keep], self._root[drop]
            kept.unit = math.lcm(kept.unit, dropped.unit)
            kept.whole = kept.whole or dropped.whole
        return True

    def finish(self, inputs: Mapping[str, Layout], outputs: Mapping[str, Layout]) -> ChannelPlan:
        """Number the spaces that are cut and drop the others from the layouts."""
        numbers: dict[int, int] = {}
        spaces: list[Space] = []

        def settle(layout: Layout) -> Layout:
            settled = []
            for segment in layout:
                root = FULL if segment.space == FULL else self.find(segment.space)
                if root == FULL or self._root[root].whole:
                    settled.append(Segment(FULL, segment.blocks, segment.channels))
                    continue
                if root not in numbers:
                    known = self._root[root]
                    step = step_for(known.blocks, known.channels, known.unit, self.multiple)
                    numbers[root] = len(spaces)
                    spaces.append(Space(known.blocks, step))
                settled.append(Segment(numbers[root], segment.blocks, segment.channels))
            return () if all(s.space == FULL for s in settled) else tuple(settled)

        settled_inputs = {name: settle(layout) for name, layout in inputs.items()}
        settled_outputs = {name: settle(layout) for name, layout in outputs.items()}
        whole = {
            name: self.reason(layout)
            for name, layout in outputs.items()
            if layout and not settled_outputs[name] and self.reason(layout) != "never cut"
        }
        return ChannelPlan(tuple(spaces), settled_inputs, settled_outputs, whole)
