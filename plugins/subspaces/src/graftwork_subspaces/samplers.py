"""Which levels a training step visits.

A sampler draws positions in [0, 1]. A generator seeded by (seed, step) decides, so every rank of a
distributed run draws the same and a resumed run continues the same sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

_MASK = (1 << 64) - 1


def step_generator(seed: int, step: int, rank: int = 0) -> torch.Generator:
    """Return the generator that decides a step.

    Args:
        seed: Of the run.
        step: Optimiser step.
        rank: Of the process, where ranks are to draw differently.
    """
    # torch's CPU generator uses 32 bits of its seed, so the three numbers are mixed first (splitmix64)
    x = (seed * 0x9E3779B97F4A7C15 + step * 0xD1B54A32D192ED03 + rank * 0x8CB92BA72F3D8DD7 + 1) & _MASK
    x = ((x ^ x >> 30) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ x >> 27) * 0x94D049BB133111EB) & _MASK
    return torch.Generator().manual_seed((x ^ x >> 31) >> 32)


def _uniform(generator: torch.Generator) -> float:
    return float(torch.rand((), generator=generator, dtype=torch.float64))


class Sampler(Protocol):
    """What ``wrap(..., sampler=...)`` takes."""

    def draw(self, generator: torch.Generator) -> list[float]:
        """Return the positions of one step, in [0, 1]."""


@dataclass(frozen=True)
class Uniform:
    """Independent uniform positions.

    Args:
        n: How many per step.
    """

    n: int = 1

    def draw(self, generator: torch.Generator) -> list[float]:
        """Return n positions."""
        return [_uniform(generator) for _ in range(self.n)]


@dataclass(frozen=True)
class BiasedEndpoints:
    """With probability p one of the two ends, with equal odds; otherwise a uniform position.

    Args:
        p: Probability of an end. The paper's line for sparsity uses 0.5.
    """

    p: float = 0.5

    def draw(self, generator: torch.Generator) -> list[float]:
        """Return one position."""
        if _uniform(generator) < self.p:
            return [0.0 if _uniform(generator) < 0.5 else 1.0]
        return [_uniform(generator)]


@dataclass(frozen=True)
class Sandwich:
    """Both ends and n - 2 uniform positions in every step, as for slimmable networks.

    Args:
        n: Positions per step, at least 2.
    """

    n: int = 4

    def __post_init__(self) -> None:
        if self.n < 2:
            raise ValueError(f"Sandwich needs both ends, so n >= 2; got {self.n}.")

    def draw(self, generator: torch.Generator) -> list[float]:
        """Return n positions, both ends first."""
        return [0.0, 1.0, *(_uniform(generator) for _ in range(self.n - 2))]


@dataclass(frozen=True)
class Discrete:
    """One of a list of positions, with equal odds: bit widths, or widths of a deployment grid.

    Args:
        positions: In [0, 1].
    """

    positions: Sequence[float]

    def __post_init__(self) -> None:
        if not self.positions or not all(0 <= position <= 1 for position in self.positions):
            raise ValueError(f"Discrete needs positions in [0, 1], got {list(self.positions)}.")

    def draw(self, generator: torch.Generator) -> list[float]:
        """Return one position."""
        return [self.positions[int(torch.randint(len(self.positions), (), generator=generator))]]


@dataclass(frozen=True)
class Fixed:
    """Always the same positions: a network trained for one level, or a slimmable one with a list of widths.

    Args:
        positions: Visited in every step, in this order.
    """

    positions: Sequence[float] = (1.0,)

    def draw(self, generator: torch.Generator) -> list[float]:
        """Return the positions."""
        return list(self.positions)
