"""Switching levels at once: finished weights are kept per level, thresholds are tabulated, nothing is sorted.

In evaluation every layer's weights are computed once per level and kept for the levels used last. With a
table of thresholds a new level of a sparse network costs one interpolation and one comparison per weight.
"""

from __future__ import annotations

import bisect
import threading
import weakref
from collections import OrderedDict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from graftwork_subspaces.layers import OnSubspace
from graftwork_subspaces.levels import Level
from graftwork_subspaces.quant import QuantLevel, affine_code
from graftwork_subspaces.sparse import SparseLevel, keep_largest
from graftwork_subspaces.subspace import DELTA, SUFFIX

CHUNK = 1 << 15
"""Weights handled at a time: small enough for the cache, and for torch not to wake its thread pool."""

Pair = tuple[Tensor | None, Tensor | None]


class Prepared:
    """Finished weights of one level.

    Args:
        pairs: Weight and bias by layer index.
    """

    def __init__(self, pairs: Mapping[int, Pair]) -> None:
        self._pairs = dict(pairs)

    def tensors(self, index: int) -> Pair:
        """Return weight and bias of a layer."""
        return self._pairs[index]

    @property
    def bytes(self) -> int:
        """Memory of the finished weights."""
        return sum(
            t.numel() * t.element_size() for pair in self._pairs.values() for t in pair if t is not None
        )


class ThresholdTable:
    """Magnitude thresholds of every layer on a grid of positions.

    On the grid the counts are exact; between two grid points the threshold is interpolated and the kept
    fraction is off by less than 0.2 %.

    Args:
        alphas: Grid, increasing.
        thresholds: One float per grid point, by layer index.
    """

    def __init__(self, alphas: Sequence[float], thresholds: Mapping[int, Sequence[float]]) -> None:
        self.alphas = list(alphas)
        self.thresholds = {index: list(row) for index, row in thresholds.items()}
        self._roots = [alpha**0.5 for alpha in self.alphas]

    def threshold(self, index: int, alpha: float) -> float:
        """Return the threshold of a layer; weights whose magnitude does not exceed it are zeroed."""
        row = self.thresholds[index]
        right = min(max(bisect.bisect_left(self.alphas, alpha), 1), len(row) - 1)
        left = right - 1
        # the grid is even in the square root, dense where few weights are kept and thresholds move fast
        part = (alpha**0.5 - self._roots[left]) / (self._roots[right] - self._roots[left])
        part = min(1.0, max(0.0, part))
        # written so that the grid points themselves come out exactly
        return (
            row[left]
            if part == 0
            else row[right]
            if part == 1
            else row[left] + part * (row[right] - row[left])
        )


class Switcher:
    """Keeps the finished weights of the levels used last.

    Args:
        cache: How many levels to keep.
    """

    def __init__(self, cache: int = 4) -> None:
        self.cache = cache
        self.table: ThresholdTable | None = None
        self._table_of: tuple[object, ...] = ()
        self._levels: OrderedDict[tuple[float, float, bool], Prepared] = OrderedDict()
        self._of: tuple[object, ...] = ()
        self._pool: dict[tuple[torch.Size, torch.device], list[Tensor]] = {}
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, int]:
        return {"cache": self.cache}

    def __setstate__(self, state: dict[str, int]) -> None:
        self.__init__(state["cache"])  # type: ignore[misc]

    def prepared(self, layers: Sequence[OnSubspace], level: Level, exact: bool) -> Prepared:
        """Return the finished weights of a level, from the cache if the parameters have not changed since.

        Args:
            layers: All layers, by index.
            level: What to prepare.
            exact: Count exactly, even if a table of thresholds is there.
        """
        key = (level.alpha, level.value, exact)
        with self._lock, torch.no_grad():
            state = _state(layers)
            if state != self._of:
                self._levels.clear()
                self._of = state
            if key not in self._levels:
                if len(self._levels) >= self.cache:
                    self._levels.popitem(last=False)  # its buffers return to the pool once nobody runs it
                table = self.table if not exact and self._table_of == state else None
                self._levels[key] = self._compute(layers, level, table)
            self._levels.move_to_end(key)
            return self._levels[key]

    def tabulate(self, layers: Sequence[OnSubspace], levels: Sequence[SparseLevel]) -> None:
        """Compute the thresholds of every layer at each of the given levels, in order of position."""
        blocks = [layer for layer in layers if layer.role == "block"]
        rows: dict[int, list[float]] = {layer.index: [] for layer in blocks}
        with self._lock, torch.no_grad():
            for level in levels:
                for layer in blocks:
                    weight = layer.on_line("weight", level.position)
                    assert weight is not None
                    zeros = level.zeros[layer.index]
                    threshold = float(weight.abs().flatten().kthvalue(zeros).values) if zeros else -1.0
                    rows[layer.index].append(threshold)
            self.table = ThresholdTable([level.alpha for level in levels], rows)
            self._table_of = _state(layers)
            self._levels.clear()

    def has_table(self, layers: Sequence[OnSubspace]) -> bool:
        """Say whether thresholds are tabulated for the parameters as they are now."""
        return self.table is not None and self._table_of == _state(layers)

    def _compute(self, layers: Sequence[OnSubspace], level: Level, table: ThresholdTable | None) -> Prepared:
        pairs: dict[int, Pair] = {}
        buffers: list[Tensor] = []
        for layer in layers:
            bias = layer.on_line("bias", level.position)
            weight = layer.weight
            if weight is None or weight.ndim == 1:
                pairs[layer.index] = (layer.on_line("weight", level.position), bias)
                continue
            out = self._buffer(weight)
            buffers.append(out)
            _fill(out, layer, level, table)
            pairs[layer.index] = (out, bias)
        prepared = Prepared(pairs)
        weakref.finalize(prepared, _give_back, self._pool, buffers).atexit = False
        return prepared

    def _buffer(self, like: Tensor) -> Tensor:
        free = self._pool.get((like.shape, like.device))
        if free:
            return free.pop()
        return torch.empty(
            like.shape, dtype=torch.promote_types(like.dtype, torch.float32), device=like.device
        )


def _give_back(pool: dict[tuple[torch.Size, torch.device], list[Tensor]], buffers: list[Tensor]) -> None:
    # a fresh 40 MB costs as much in page faults as the whole switch, so buffers are used again
    for buffer in buffers:
        pool.setdefault((buffer.shape, buffer.device), []).append(buffer)


def _state(layers: Sequence[OnSubspace]) -> tuple[object, ...]:
    """Return what changes whenever a parameter does."""
    return tuple(
        (tensor.data_ptr(), tensor._version if not tensor.is_inference() else 0)
        for layer in layers
        for tensor in (*layer._parameters.values(), *layer._buffers.values())
        if tensor is not None
    )


def _fill(out: Tensor, layer: OnSubspace, level: Level, table: ThresholdTable | None) -> None:
    """Write a layer's finished weight, in chunks that stay in the cache."""
    accurate = layer.weight
    assert isinstance(accurate, Tensor)
    compressed, delta = getattr(layer, "weight" + SUFFIX, None), getattr(layer, "weight" + DELTA, None)
    flat = out.view(-1)
    ends = [None if end is None else end.detach().reshape(-1) for end in (accurate, compressed, delta)]
    chunk = CHUNK if out.device.type == "cpu" else max(1, flat.numel())
    block = layer.role == "block"
    threshold = None
    if block and table is not None and isinstance(level, SparseLevel):
        threshold = table.threshold(layer.index, level.alpha)
    lowest, highest = flat.new_zeros(()), flat.new_zeros(())
    for start in range(0, flat.numel(), chunk):
        piece = flat[start : start + chunk]
        _interpolate(
            piece, [None if end is None else end[start : start + chunk] for end in ends], level.alpha
        )
        if threshold is not None and threshold >= 0:
            torch.ops.aten.hardshrink.out(piece, threshold, out=piece)
        elif block and isinstance(level, QuantLevel):
            low, high = piece.aminmax()
            lowest, highest = torch.minimum(lowest, low), torch.maximum(highest, high)
    if block and isinstance(level, SparseLevel) and threshold is None and level.zeros[layer.index]:
        out.mul_(keep_largest(out, level.zeros[layer.index]))
    elif block and isinstance(level, QuantLevel):
        half = level.halves[layer.index].to(flat.device)
        scale, zero_point = affine_code(lowest, highest, half)
        for start in range(0, flat.numel(), chunk):
            _round(flat[start : start + chunk], float(scale), float(zero_point), float(half))


def _interpolate(out: Tensor, ends: Sequence[Tensor | None], alpha: float) -> None:
    accurate, compressed, delta = ends
    assert accurate is not None
    if compressed is not None:
        torch.lerp(compressed, accurate, alpha, out=out)
    elif delta is not None:
        out.copy_(delta).mul_(alpha - 1).add_(accurate.float())
    else:
        out.copy_(accurate)


def _round(piece: Tensor, scale: float, zero_point: float, half: float) -> None:
    """Quantise and restore in place, as :func:`graftwork_subspaces.quant.fake_quantise` does."""
    if scale == 0:
        piece.zero_()
        return
    piece.div_(scale).round_().add_(zero_point).clamp_(-half, half - 1).sub_(zero_point).mul_(scale)


def store_half(layers: Sequence[OnSubspace]) -> None:
    """Replace the two float32 ends of every layer by one end and the difference, both in half precision.

    Afterwards the network serves every level and cannot be trained. Values move by up to 0.05 %.

    Args:
        layers: Layers of the network, changed in place.
    """
    for layer in layers:
        for name in ("weight", "bias"):
            accurate, compressed = layer._parameters.get(name), layer._parameters.get(name + SUFFIX)
            if accurate is None or compressed is None or accurate.ndim == 1:
                continue
            delta = (accurate.detach() - compressed.detach()).half()
            setattr(layer, name, nn.Parameter(accurate.detach().half(), requires_grad=False))
            del layer._parameters[name + SUFFIX]
            layer.register_buffer(name + DELTA, delta)
