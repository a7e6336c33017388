"""Levels: where on the subspace a network runs, how much it is compressed there, and how a layer learns it.

A level is entered with ``with net.at(alpha):``. It is held per thread, beside the network and never on its
modules, so that threads may serve different levels of one network at the same time. ``torch.compile`` reads
it like any other Python object and guards on it in the calling thread.
"""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

if TYPE_CHECKING:
    from graftwork_subspaces.layers import OnSubspace
    from graftwork_subspaces.switching import Prepared

Regime = Literal["sparse", "width", "quant"]
REGIMES: tuple[Regime, ...] = ("sparse", "width", "quant")
VALUE_NAMES = {"sparse": "kept", "width": "width", "quant": "bits"}
DEFAULT_RANGES: dict[str, tuple[float, float]] = {
    "sparse": (0.025, 1.0),
    "width": (0.25, 1.0),
    "quant": (3, 8),
}


class LevelError(ValueError):
    """A level that does not exist, or that the network was not trained for."""


@dataclass(frozen=True)
class LevelMap:
    """The compression level that belongs to a position on the subspace: the paper's gamma(alpha).

    Position 1 is the accurate end, position 0 the most compressed one.

    Example:
        >>> LevelMap("width", 0.25, 1.0).value(0.5)
        0.625
        >>> [LevelMap("quant", 3, 8).value(m / 6) for m in range(1, 7)]
        [3, 4, 5, 6, 7, 8]

    Args:
        regime: What is compressed.
        lo: Most compressed level: kept fraction of the weights, width, or bits.
        hi: Least compressed level.
        kind: ``"affine"`` spreads the levels over the whole line; ``"upstream"`` takes the position itself as
            the kept fraction, as the published code does (sparse only; the other maps do not differ).

    Raises:
        LevelError: The range is empty or outside what the regime allows.

    Note:
        With the published map a network trained for kept fractions of 0.5 % to 5 % uses a twentieth of its
        line. The affine map uses all of it.
    """

    regime: Regime
    lo: float
    hi: float
    kind: Literal["affine", "upstream"] = "affine"

    def __post_init__(self) -> None:
        if self.regime not in REGIMES:
            raise LevelError(f"regime must be one of {', '.join(REGIMES)}, got {self.regime!r}.")
        if self.kind not in ("affine", "upstream"):
            raise LevelError(f"alpha_map must be 'affine' or 'upstream', got {self.kind!r}.")
        if self.regime == "quant":
            if any(value != int(value) for value in (self.lo, self.hi)):
                raise LevelError(f"bits are whole numbers, got levels {self.lo} to {self.hi}.")
            if not 2 <= self.lo <= self.hi <= 8:
                raise LevelError(
                    f"bits must satisfy 2 <= lo <= hi <= 8, got {self.lo} to {self.hi}. One bit leaves a "
                    "signed "
                    "affine code with a single non-zero value; start at 2, or at the paper's 3."
                )
        elif not 0 < self.lo <= self.hi <= 1:
            raise LevelError(
                f"{VALUE_NAMES[self.regime]} must satisfy 0 < lo <= hi <= 1, got {self.lo} to {self.hi}."
            )

    @property
    def value_name(self) -> str:
        """What the level is called: ``kept``, ``width`` or ``bits``."""
        return VALUE_NAMES[self.regime]

    @property
    def _literal(self) -> bool:
        return self.regime == "sparse" and self.kind == "upstream"

    def value(self, alpha: float) -> float:
        """Return the compression level at a position in [0, 1]."""
        if self.regime == "quant":
            count = self.hi - self.lo + 1
            # a boundary belongs to the lower bit width; the slack absorbs m / count not being exact
            return int(self.lo - 1 + max(1, math.ceil(alpha * count - 1e-9)))
        return alpha if self._literal else self.lo + (self.hi - self.lo) * alpha

    def alpha(self, value: float) -> float:
        """Return the position of a compression level; the inverse of :meth:`value` on its grid."""
        if self.regime == "quant":
            return (value - self.lo + 1) / (self.hi - self.lo + 1)
        if self._literal:
            return value
        return 1.0 if self.hi == self.lo else (value - self.lo) / (self.hi - self.lo)

    def spread(self, unit: float) -> float:
        """Map a sampler's draw in [0, 1] to a position that is trained."""
        return self.lo + (self.hi - self.lo) * unit if self._literal else unit

    def locate(self, alpha: float | None, named: dict[str, float], outside: str) -> tuple[float, float]:
        """Resolve what a caller asked for to (position, level).

        Args:
            alpha: Position, or None if a level was named.
            named: The level by its name, such as ``{"width": 0.5}``.
            outside: ``"refuse"`` or ``"warn"`` about levels that were not trained.

        Raises:
            LevelError: Not exactly one of both is given, it is no number in range, or it was not trained.
        """
        if (alpha is None) == (not named) or len(named) > 1:
            raise LevelError(f"name one level: at(0.5) for a position, or at({self.value_name}=...).")
        if named:
            ((name, value),) = named.items()
            if name != self.value_name:
                raise LevelError(f"a {self.regime} network has no level {name!r}; use {self.value_name}=.")
            value = float(value)
            if self.regime == "quant" and not (value == int(value) and 2 <= value <= 8):
                raise LevelError(f"bits must be a whole number from 2 to 8, got {value:g}.")
            if not value > 0 or (self.regime != "quant" and value > 1):
                raise LevelError(f"{name} must lie in (0, 1], got {value:g}.")
            value = int(value) if self.regime == "quant" else value
            if not self.lo - 1e-9 <= value <= self.hi + 1e-9:
                self._complain(f"{name}={value:g}", outside)
            return min(1.0, max(0.0, self.alpha(value))), value
        assert alpha is not None
        alpha = float(alpha)
        if not 0 <= alpha <= 1:
            raise LevelError(
                f"alpha is a position from 0 (most compressed) to 1 (most accurate), got {alpha:g}. "
                f"To name the level itself write at({self.value_name}=...)."
            )
        if self._literal and not self.lo - 1e-9 <= alpha <= self.hi + 1e-9:
            self._complain(f"alpha={alpha:g}, which is kept={alpha:g} under the upstream map", outside)
        return alpha, self.value(alpha)

    def _complain(self, what: str, outside: str) -> None:
        message = (
            f"{what} is outside the trained range {self.value_name}={self.lo:g} to {self.hi:g}; the accuracy "
            "there is nobody's promise."
        )
        if outside == "refuse":
            raise LevelError(
                f"{message} Train with other levels=, or allow it with wrap(..., outside='warn')."
            )
        warnings.warn(message, stacklevel=5)


@dataclass(frozen=True, eq=False)
class Level:
    """One level of one network, ready for its layers.

    Args:
        alpha: Position on the subspace, 0 to 1.
        value: Compression level.
        position: ``alpha`` as a 0-dimensional tensor, so that a compiled graph takes it as an input.
        prepared: Finished weights by layer, for evaluation; None computes them in the forward pass.
    """

    alpha: float
    value: float
    position: Tensor
    prepared: Prepared | None = None

    def weight(self, layer: OnSubspace, weight: Tensor) -> Tensor:
        """Compress a weight that already lies on the subspace."""
        return weight

    def inputs(self, layer: OnSubspace, x: Tensor) -> Tensor:
        """Compress what goes into a layer."""
        return x


class LevelContext:
    """Holds, per thread, the level that a network runs at. Its layers share one.

    Args:
        default: Level of a thread that has entered none.
    """

    def __init__(self, default: Level | None = None) -> None:
        self.default = default
        self._local = threading.local()
        self._entered: dict[int, list[Level]] = {}

    def level(self) -> Level:
        """Return the level of the calling thread."""
        level: Level | None = getattr(self._local, "level", None)
        if level is not None:
            return level
        if not torch.compiler.is_compiling() and in_backward():
            return self._level_of_backward()
        assert self.default is not None
        return self.default

    def _level_of_backward(self) -> Level:
        """Find the level for activation checkpointing, which runs layers again in autograd's own threads."""
        active = {id(levels[-1]): levels[-1] for levels in list(self._entered.values()) if levels}
        if len(active) == 1:
            return next(iter(active.values()))
        if not active:
            assert self.default is not None
            return self.default
        raise LevelError(
            "activation checkpointing recomputes a layer while several threads run this network at different "
            "levels, so its level is unknown. Train in one thread, or switch gradient checkpointing off."
        )

    def entered(self) -> bool:
        """Say whether the calling thread has entered a level."""
        return getattr(self._local, "level", None) is not None

    @contextmanager
    def enter(self, level: Level) -> Iterator[Level]:
        """Run a block of the calling thread at a level; blocks nest."""
        before = getattr(self._local, "level", None)
        thread = threading.get_ident()
        self._local.level = level
        self._entered.setdefault(thread, []).append(level)
        try:
            yield level
        finally:
            self._local.level = before
            levels = self._entered[thread]
            levels.pop()
            if not levels:
                del self._entered[thread]

    def __getstate__(self) -> dict[str, Any]:
        return {"default": self.default}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["default"])  # type: ignore[misc]


def in_backward() -> bool:
    """Say whether this thread is running a backward pass, as it does when it recomputes activations."""
    return bool(torch._C._current_graph_task_id() != -1)
