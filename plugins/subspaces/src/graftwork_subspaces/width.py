"""Structured compression: a level keeps the first channels of every layer, without scoring them.

Notation: a *space* is a set of channels that must be cut alike (all ends of a residual sum, the channels of a
depthwise convolution, the heads of an attention layer). It is counted in *blocks*, which are never split: one
channel, one group of channels, or one head. A *layout* says which spaces follow each other along an axis.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from graftwork_subspaces.levels import Level

if TYPE_CHECKING:
    from graftwork_subspaces.layers import OnSubspace

FULL = -1
"""Space number of channels that no level cuts."""


@dataclass(frozen=True)
class Segment:
    """A stretch of channels along an axis.

    Args:
        space: Number of the space, or ``FULL``.
        blocks: Blocks at full width.
        channels: Channels per block here.
    """

    space: int
    blocks: int
    channels: int = 1

    @property
    def size(self) -> int:
        """Channels at full width."""
        return self.blocks * self.channels

    def kept(self, sizes: Sequence[int]) -> int:
        """Channels at the level whose blocks per space are given."""
        return self.size if self.space == FULL else sizes[self.space] * self.channels


Layout = tuple[Segment, ...]


def layout_size(layout: Layout, sizes: Sequence[int]) -> int:
    """Return how many channels of a layout a level keeps."""
    return sum(segment.kept(sizes) for segment in layout)


def kept_indices(layout: Layout, sizes: Sequence[int]) -> list[int]:
    """Return the indices that a level keeps of an axis; a prefix unless several spaces follow each other."""
    indices: list[int] = []
    start = 0
    for segment in layout:
        indices += range(start, start + segment.kept(sizes))
        start += segment.size
    return indices


def take(tensor: Tensor, axis: int, layout: Layout, sizes: Sequence[int]) -> Tensor:
    """Return what a level keeps of an axis: a view for one segment, a copy for several.

    Args:
        tensor: A weight at full width.
        axis: Axis that the layout describes.
        layout: Segments along it; empty for an axis that is never cut.
        sizes: Blocks kept, by space.
    """
    if not layout:
        return tensor
    if len(layout) == 1:
        kept = layout[0].kept(sizes)
        return tensor if kept == tensor.shape[axis] else tensor.narrow(axis, 0, kept)
    parts, start = [], 0
    for segment in layout:
        parts.append(tensor.narrow(axis, start, segment.kept(sizes)))
        start += segment.size
    return tensor if all(s.kept(sizes) == s.size for s in layout) else torch.cat(parts, axis)


@dataclass(frozen=True)
class Space:
    """A set of channels cut alike.

    Args:
        blocks: Blocks at full width.
        step: Kept blocks are a multiple of this, except at full width.
    """

    blocks: int
    step: int = 1

    def size(self, width: float) -> int:
        """Return the blocks kept: the multiple nearest to width * blocks, halves to even, at least one step.

        Source: section 4.2; with steps of one channel this is ``max(1, round(width * channels))``.
        """
        if width >= 1:
            return self.blocks
        return min(self.blocks, max(1, round(width * self.blocks / self.step)) * self.step)


def step_for(blocks: int, channels: int, unit: int, multiple: int) -> int:
    """Return the step, in blocks, that keeps channel counts at multiples where the space is large enough.

    Args:
        blocks: Blocks of the space.
        channels: Channels per block.
        unit: Blocks that a grouped layer needs together.
        multiple: Wanted multiple of the channel count.
    """
    step = unit * (multiple // math.gcd(multiple, unit * channels))
    return step if channels == 1 and step <= blocks else unit


@dataclass(frozen=True, eq=False)
class WidthLevel(Level):
    """A width, with the blocks kept of every space.

    Args:
        sizes: Blocks kept, by space.
    """

    sizes: tuple[int, ...] = ()

    def weight(self, layer: OnSubspace, weight: Tensor) -> Tensor:
        """Cut a layer's weight, or its scale and shift, to the channels that arrive and leave."""
        weight = take(weight, 0, layer.outputs, self.sizes)
        if weight.ndim > 1 and layer.groups == 1:  # a grouped weight holds the channels of one group there
            weight = take(weight, 1, layer.inputs, self.sizes)
        return weight
