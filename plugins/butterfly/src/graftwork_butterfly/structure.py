"""The shape of a butterfly: stages, squares and what they cost. No tensors here.

Notation: ``n`` channels of one square ("order"), ``N`` the same padded to the product of the radices,
``r_t`` radix of stage t, ``g_t = r_0 ... r_(t-1)`` groups, ``s_t = N / (r_0 ... r_t)`` stride.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

Residual = Literal["first_last", "every_other", "none"]
RESIDUALS: tuple[Residual, ...] = ("none", "first_last", "every_other")

LARGEST_PRIME = 8
"""Orders with a larger prime factor than this (or than the base) are padded."""


@dataclass(frozen=True)
class Stage:
    """One stage of a square: ``z'[g, o, p] = sum_i T[g, o, p, i] z[g, i, p]``.

    Args:
        groups: Blocks that stay apart from here on, g_t.
        radix: Nodes that are mixed densely, r_t.
        stride: Distance of these nodes on the channel axis, s_t.
        offset: Where its weights begin within the weights of a square.
    """

    groups: int
    radix: int
    stride: int
    offset: int

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape of its weights T: (groups, radix out, stride, radix in)."""
        return self.groups, self.radix, self.stride, self.radix

    @property
    def size(self) -> int:
        """Number of its weights, which is also its multiplications per pixel."""
        return self.groups * self.radix * self.stride * self.radix


@dataclass(frozen=True)
class Structure:
    """A butterfly layer from any number of channels to any other.

    Equal numbers are one square. More outputs than inputs: independent squares on the whole input, their
    outputs concatenated and cut. More inputs than outputs: squares on consecutive slices of the input (the
    last one filled with zeros), their outputs summed.

    Example:
        >>> plan = structure(64, 128)
        >>> plan.copies, plan.radices, plan.weights
        (2, (4, 4, 4), 1536)

    Args:
        in_channels: Channels read.
        out_channels: Channels written.
        base: Preferred radix k.
        residual: ``"first_last"`` adds a square's input to its output; ``"every_other"`` adds the input of
            each pair of stages to the output of the pair; ``"none"``.
        order: Channels of one square, n.
        padded: Product of the radices, N.
        copies: Number of squares.
        radices: Radix of every stage, strides decreasing.
    """

    in_channels: int
    out_channels: int
    base: int
    residual: Residual
    order: int
    padded: int
    copies: int
    radices: tuple[int, ...]

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages of one square, first to last."""
        return _stages(self.padded, self.radices)

    @property
    def weights_per_copy(self) -> int:
        """Weights of one square: N times the sum of the radices."""
        return self.padded * sum(self.radices)

    @property
    def weights(self) -> int:
        """Weights of the layer; also its multiplications per pixel."""
        return self.copies * self.weights_per_copy

    @property
    def sums_copies(self) -> bool:
        """Whether the squares' outputs are summed rather than concatenated."""
        return self.in_channels > self.out_channels

    @property
    def layout(self) -> list[int]:
        """The same as plain integers, as TorchScript, custom operators and native code take it.

        Order, padded order, copies, input channels, output channels, index of the residual in ``RESIDUALS``,
        number of stages, then the radices.
        """
        residual = RESIDUALS.index(self.residual)
        head = [self.order, self.padded, self.copies, self.in_channels, self.out_channels, residual]
        return [*head, len(self.radices), *self.radices]

    def piece(self, copy: int) -> tuple[slice, slice]:
        """Input and output channels of a square."""
        n = self.order
        own = slice(copy * n, min((copy + 1) * n, max(self.in_channels, self.out_channels)))
        return (own, slice(0, n)) if self.sums_copies else (slice(0, n), own)


@lru_cache(maxsize=4096)
def structure(
    in_channels: int, out_channels: int, base: int = 4, residual: Residual = "first_last"
) -> Structure:
    """Lay out a butterfly layer (sec. 3.2; rectangular layers as in the released code).

    Example:
        >>> structure(40, 40).radices
        (4, 2, 5)

    Args:
        in_channels: At least 2.
        out_channels: At least 2.
        base: At least 2. With a base of n or more a square is one dense matrix.
        residual: See :class:`Structure`.

    Returns:
        The layout.

    Raises:
        ValueError: A number is too small or the residual unknown.

    Note:
        The paper only defines orders that are powers of the base. Other orders are factored into stages of
        mixed radix; an order with a prime factor above 8 (and above the base) is padded with zero channels
        to the cheapest larger order without one.
    """
    for name, value in (("in_channels", in_channels), ("out_channels", out_channels)):
        if not isinstance(value, int) or value < 2:
            raise ValueError(
                f"{name} must be an integer of at least 2, got {value!r}: a butterfly of one "
                "channel is a single weight. Keep a dense convolution there."
            )
    if not isinstance(base, int) or base < 2:
        raise ValueError(f"base must be an integer of at least 2 (the paper prefers 4), got {base!r}.")
    if residual not in RESIDUALS:
        raise ValueError(f"residual must be one of {', '.join(RESIDUALS)}, got {residual!r}.")
    order, wide = sorted((in_channels, out_channels))
    padded = _padded_order(order, base)
    return Structure(
        in_channels, out_channels, base, residual, order, padded, -(-wide // order), radices(padded, base)
    )


def radices(order: int, base: int) -> tuple[int, ...]:
    """Factor an order into stages: the base as often as it divides, then factors up to the base.

    Example:
        >>> radices(128, 4), radices(24, 4), radices(144, 4)
        ((4, 4, 4, 2), (4, 3, 2), (4, 4, 3, 3))
    """
    found: list[int] = []
    rest = order
    while rest % base == 0:
        found.append(base)
        rest //= base
    # Merging what remains into factors up to the base saves stages; beyond the base only primes are left.
    factor = base
    while rest > 1:
        while factor > 1 and rest % factor:
            factor -= 1
        if factor == 1:
            break
        found.append(factor)
        rest //= factor
    return (*found, *_primes(rest))


def _primes(number: int) -> list[int]:
    found, divisor = [], 2
    while divisor * divisor <= number:
        while number % divisor == 0:
            found.append(divisor)
            number //= divisor
        divisor += 1
    return [*found, number] if number > 1 else found


def _padded_order(order: int, base: int) -> int:
    largest = max(base, LARGEST_PRIME)
    if order <= base:
        return order

    def cost(number: int) -> int:
        return number * sum(radices(number, base))

    def smooth(number: int) -> bool:
        return all(prime <= largest for prime in _primes(number))

    if smooth(order):
        return order
    power = 2 ** math.ceil(math.log2(order))
    return min((number for number in range(order, power + 1) if smooth(number)), key=cost)


@lru_cache(maxsize=4096)
def _stages(padded: int, factors: tuple[int, ...]) -> tuple[Stage, ...]:
    stages, groups, offset = [], 1, 0
    for radix in factors:
        stage = Stage(groups, radix, padded // (groups * radix), offset)
        stages.append(stage)
        groups *= radix
        offset += stage.size
    return tuple(stages)


def count_paper_macs(in_channels: int, out_channels: int, base: int = 4) -> int:
    """Multiply-adds per pixel as the paper counts them: k n ceil(log_k n) for every square of order n.

    Example:
        >>> count_paper_macs(1024, 1024, 4)
        20480

    Args:
        in_channels: Channels read.
        out_channels: Channels written.
        base: Radix k.

    Returns:
        The count that the paper's tables use; :attr:`Structure.weights` is what is executed here.
    """
    plan = structure(in_channels, out_channels, base)
    n, stages, reach = plan.order, 0, 1
    while reach < n:
        reach *= base
        stages += 1
    return plan.copies * base * n * stages
