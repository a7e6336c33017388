"""Curricula: which scales are active in which epoch, and how likely each is.

A curriculum is a pure function of the epoch, so a resumed run sees what the interrupted one would have seen.
The paper says only that resolutions grow during training and that compute falls by more than 30 %; the shapes
here are ours, and :class:`GrowMax` with its defaults saves 33 % on the paper's classification table.
"""

# ruff: noqa: D102  the base class says what the methods do

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from typing import Any

from graftwork_multiscale.scales import Scale, make_divisible


class CurriculumError(ValueError):
    """A curriculum that does not exist or does not fit the scale table."""


@dataclass(frozen=True)
class Ladder:
    """The scale table as a curriculum sees it.

    Args:
        scales: All scales, smallest first.
        base: Position of the base scale.
        divisor: Every side is a multiple of it.
        epochs: Length of the training.
    """

    scales: Sequence[Scale]
    base: int
    divisor: int
    epochs: int

    def sides(self) -> list[int]:
        """Longer side of every scale, in pixels."""
        return [max(scale.height, scale.width) for scale in self.scales]

    def progress(self, epoch: int, fraction: float = 1.0) -> float:
        """Share of the first `fraction` of the training that lies behind, clipped to 0 and 1."""
        return min(1.0, max(0.0, epoch / (fraction * self.epochs)))


class Curriculum(ABC):
    """What all curricula have in common."""

    @abstractmethod
    def weights(self, epoch: int, ladder: Ladder) -> list[float]:
        """Return how likely each scale is in one step of an epoch, relative to the others.

        Args:
            epoch: Counted from 0; after the last epoch nothing changes any more.
            ladder: The scale table.

        Returns:
            One weight per scale; 0 where the scale is not active.
        """

    @abstractmethod
    def check(self, ladder: Ladder) -> None:
        """Raise :class:`CurriculumError` if the options do not fit the table."""


def _check_fraction(name: str, fraction: float) -> None:
    if not 0 < fraction <= 1:
        raise CurriculumError(
            f"{name}: fraction is the share of the training in which resolutions grow, between 0 and 1; "
            f"got {fraction}."
        )


@dataclass(frozen=True)
class GrowMax(Curriculum):
    """The default: small scales stay active, the largest allowed side grows linearly.

    Args:
        start: Largest side in the first epoch, in pixels; 5/7 of the base side when None, which is 160 for a
            base of 224.
        end: Largest side once it has grown; the largest in the table when None.
        fraction: Share of the training in which it grows.
    """

    start: int | None = None
    end: int | None = None
    fraction: float = 0.5

    def weights(self, epoch: int, ladder: Ladder) -> list[float]:
        sides = ladder.sides()
        start = Fraction(5 * sides[ladder.base], 7) if self.start is None else Fraction(self.start)
        end = Fraction(sides[-1] if self.end is None else self.end)
        # a fraction again: 160 + 0.1 * 160 must round the same way everywhere
        grown = Fraction(epoch) / (Fraction(self.fraction).limit_denominator(10**6) * ladder.epochs)
        limit = make_divisible(start + min(Fraction(1), grown) * (end - start), ladder.divisor)
        return [float(side <= limit) for side in sides]

    def check(self, ladder: Ladder) -> None:
        _check_fraction("grow_max", self.fraction)
        smallest = ladder.sides()[0]
        for name in ("start", "end"):
            side = getattr(self, name)
            if side is not None and side < smallest:
                raise CurriculumError(
                    f"grow_max: {name}={side} is below the smallest side, {smallest}: nothing is active."
                )


@dataclass(frozen=True)
class PrefixK(Curriculum):
    """The k smallest scales, with k growing linearly to all of them.

    Args:
        start: Number of scales in the first epoch.
        fraction: Share of the training in which it grows.
    """

    start: int = 1
    fraction: float = 0.5

    def weights(self, epoch: int, ladder: Ladder) -> list[float]:
        count = len(ladder.scales)
        active = self.start + math.floor(ladder.progress(epoch, self.fraction) * (count - self.start) + 1e-9)
        return [float(i < active) for i in range(count)]

    def check(self, ladder: Ladder) -> None:
        _check_fraction("prefix_k", self.fraction)
        if not 1 <= self.start <= len(ladder.scales):
            raise CurriculumError(
                f"prefix_k: start is a number of scales, 1 to {len(ladder.scales)}; got {self.start}."
            )


@dataclass(frozen=True)
class Window(Curriculum):
    """A window of neighbouring scales that slides from the smallest to the largest.

    It saves little or costs more than a single scale, because it leaves the small scales behind.

    Args:
        width: Number of scales in the window.
    """

    width: int = 3

    def weights(self, epoch: int, ladder: Ladder) -> list[float]:
        count = len(ladder.scales)
        first = round(ladder.progress(epoch) * (count - self.width))
        return [float(first <= i < first + self.width) for i in range(count)]

    def check(self, ladder: Ladder) -> None:
        if not 1 <= self.width <= len(ladder.scales):
            raise CurriculumError(
                f"window: width is a number of scales, 1 to {len(ladder.scales)}; got {self.width}."
            )


@dataclass(frozen=True)
class Staged(Curriculum):
    """A list of stages: from each epoch on, a range of sides.

    Example:
        >>> Staged(((0, 128, 192), (40, 128, 320))).stages[1]
        (40, 128, 320)

    Args:
        stages: (first epoch, smallest side, largest side), the first epoch of the first being 0.
    """

    stages: tuple[tuple[int, int, int], ...] = ()

    def __post_init__(self) -> None:
        try:
            stages = tuple(sorted((int(epoch), int(low), int(high)) for epoch, low, high in self.stages))
        except (TypeError, ValueError) as error:
            raise CurriculumError(
                f"staged: stages are (first epoch, smallest side, largest side), got {self.stages!r}."
            ) from error
        object.__setattr__(self, "stages", stages)

    def weights(self, epoch: int, ladder: Ladder) -> list[float]:
        _, low, high = max((stage for stage in self.stages if stage[0] <= epoch), key=lambda stage: stage[0])
        return [float(low <= side <= high) for side in ladder.sides()]

    def check(self, ladder: Ladder) -> None:
        if not self.stages or self.stages[0][0] > 0:
            raise CurriculumError(f"staged: the first stage starts in epoch 0, got {list(self.stages)}.")
        for epoch, low, high in self.stages:
            if not any(low <= side <= high for side in ladder.sides()):
                raise CurriculumError(
                    f"staged: no scale has a side of {low} to {high} (epoch {epoch}); the sides are "
                    f"{', '.join(map(str, ladder.sides()))}."
                )


@dataclass(frozen=True)
class Gaussian(Curriculum):
    """A soft window, as timm's scheduled loader has it.

    Weights are exp(-((i - c) / sigma)^2 / 2), mixed with a uniform share; the centre c moves from the first
    scale to the last.

    Args:
        sigma: Width of the window, in scales.
        uniform: Share of steps drawn uniformly from all scales.
    """

    sigma: float = 0.65
    uniform: float = 0.1

    def weights(self, epoch: int, ladder: Ladder) -> list[float]:
        count = len(ladder.scales)
        centre = min(1.0, epoch / (ladder.epochs - 1) if ladder.epochs > 1 else 1.0) * (count - 1)
        bells = [math.exp(-0.5 * ((i - centre) / self.sigma) ** 2) for i in range(count)]
        return [(1 - self.uniform) * bell / sum(bells) + self.uniform / count for bell in bells]

    def check(self, ladder: Ladder) -> None:
        if self.sigma <= 0 or not 0 <= self.uniform <= 1:
            raise CurriculumError(
                f"gaussian: sigma is positive and uniform between 0 and 1, got {self.sigma} and "
                f"{self.uniform}."
            )


CURRICULA: Mapping[str, type[Curriculum]] = {
    "grow_max": GrowMax,
    "prefix_k": PrefixK,
    "window": Window,
    "staged": Staged,
    "gaussian": Gaussian,
}


def build_curriculum(description: str | Mapping[str, Any] | Curriculum) -> Curriculum:
    """Make a curriculum from what a config file can hold.

    Example:
        >>> build_curriculum({"type": "prefix_k", "start": 4})
        PrefixK(start=4, fraction=0.5)

    Args:
        description: A name, a mapping with ``type`` and options, or a curriculum.

    Returns:
        The curriculum.

    Raises:
        CurriculumError: No such curriculum or option.
    """
    if isinstance(description, Curriculum):
        return description
    options = {"type": description} if isinstance(description, str) else dict(description)
    name = options.pop("type", None)
    if name not in CURRICULA:
        raise CurriculumError(f"unknown curriculum {name!r}; there are {', '.join(CURRICULA)}.")
    kind = CURRICULA[name]
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(options) - known)
    if unknown:
        raise CurriculumError(
            f"curriculum {name!r} has no option {', '.join(map(repr, unknown))}; "
            f"it takes {', '.join(sorted(known))}."
        )
    return kind(**options)
