"""How many tokens are left after which block.

A schedule holds fractions of the patch tokens, not counts, so that it survives a change of the image size.
Fractions are exact: 0.7 is 7/10, and 137 of 196 tokens stay 137 of 196.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

_FORMAT = "graftwork-token-pooling-schedule/1"
_RATIO = re.compile(r"r(\d+)(?:@(\d+(?:,\d+)*))?")
_DECREMENT = re.compile(r"d(\d+)")


class ScheduleError(ValueError):
    """A schedule that cannot be, with what was expected."""


@dataclass(frozen=True)
class Schedule:
    """Where tokens are pooled, and to which fraction of the original number.

    Example:
        >>> Schedule.ratio("0.7").counts(196)
        {3: 137, 6: 96, 9: 67}

    Args:
        sites: Pairs of a block, counted from 1, after which tokens are pooled, and the fraction of the
            original patch tokens to leave there. Blocks increase, fractions do not.
    """

    sites: tuple[tuple[int, Fraction], ...] = ()

    def __post_init__(self) -> None:
        sites = tuple((int(block), Fraction(fraction)) for block, fraction in self.sites)
        object.__setattr__(self, "sites", sites)
        before, left = 0, Fraction(1)
        for block, fraction in sites:
            if block <= before:
                raise ScheduleError(
                    f"blocks count from 1 and increase, got block {block} after block {before}."
                )
            if not 0 < fraction <= 1:
                raise ScheduleError(
                    f"the fraction of tokens left after block {block} must be in (0, 1], got {fraction}; "
                    "an image keeps one patch token or more."
                )
            if fraction > left:
                raise ScheduleError(
                    f"pooling cannot bring tokens back: {fraction} of them after block {block}, but only "
                    f"{left} before; make the schedule non-increasing."
                )
            before, left = block, fraction

    def counts(self, tokens: int) -> dict[int, int]:
        """Return the number of patch tokens left after each pooling block.

        Args:
            tokens: Patch tokens of the image, such as 196.

        Returns:
            Block, counted from 1, to tokens; rounded down, at least 1.
        """
        return {block: kept(tokens, fraction) for block, fraction in self.sites}

    def per_block(self, tokens: int, depth: int) -> list[int]:
        """Return the number of patch tokens after each of `depth` blocks.

        Example:
            >>> Schedule.ratio("0.5", blocks=(1, 2)).per_block(196, depth=4)
            [98, 49, 49, 49]
        """
        counts, left = self.counts(tokens), tokens
        after = []
        for block in range(1, depth + 1):
            left = counts.get(block, left)
            after.append(left)
        return after

    def within(self, depth: int) -> Schedule:
        """Return the schedule if it fits a model of `depth` blocks.

        Raises:
            ScheduleError: It pools after a block that the model does not have.
        """
        if self.sites and self.sites[-1][0] > depth:
            raise ScheduleError(
                f"the schedule pools after block {self.sites[-1][0]}, but the model has {depth} blocks; "
                f"use blocks up to {depth}."
            )
        return self

    def without(self, block: int) -> Schedule:
        """Return the schedule without one block."""
        return Schedule(tuple(site for site in self.sites if site[0] != block))

    @classmethod
    def ratio(cls, ratio: str | float | Fraction, blocks: Sequence[int] = (3, 6, 9)) -> Schedule:
        """Keep a fixed share of the tokens at each of some blocks.

        Args:
            ratio: Share of the tokens that each pooling leaves.
            blocks: Blocks after which to pool, counted from 1.
        """
        share = _fraction(ratio)
        if share == 1:
            return cls()
        return cls(tuple((block, share**step) for step, block in enumerate(blocks, start=1)))

    @classmethod
    def decrement(cls, step: int, depth: int, tokens: int) -> Schedule:
        """Take the same number of tokens away after every block.

        Args:
            step: Tokens to take away.
            depth: Blocks of the model.
            tokens: Patch tokens of the image size that `step` refers to.

        Raises:
            ScheduleError: Nothing would be left.
        """
        if step < 1 or tokens - step * depth < 1:
            raise ScheduleError(
                f"{depth} blocks that each take {step} of {tokens} tokens away leave "
                f"{tokens - step * depth}; the step must be between 1 and {(tokens - 1) // depth}."
            )
        return cls.from_counts([tokens - step * block for block in range(1, depth + 1)], tokens)

    @classmethod
    def from_counts(cls, counts: Sequence[int], tokens: int) -> Schedule:
        """Take the number of tokens after block 1, 2, ..., as the K of the paper.

        Args:
            counts: K_1, K_2, ...; a block that changes nothing is none of the sites.
            tokens: Patch tokens of the image size that the counts refer to.

        Raises:
            ScheduleError: A count of zero, one above `tokens`, or one above its predecessor.
        """
        sites, left = [], tokens
        for block, count in enumerate(counts, start=1):
            if not isinstance(count, int) or not 1 <= count <= tokens:
                raise ScheduleError(
                    f"the number of tokens after block {block} must be between 1 and {tokens}, got {count!r}."
                )
            if count != left:
                sites.append((block, Fraction(count, tokens)))
            left = count
        return cls(tuple(sites))

    def save(self, path: str | Path, tokens: int, **notes: object) -> Path:
        """Write the schedule as JSON.

        Args:
            path: File to write; replaced in one step.
            tokens: Patch tokens of the image size in use, for readers of the file.
            notes: Anything worth remembering, such as the settings of the search.

        Returns:
            The file.
        """
        path = Path(path)
        content = {
            "format": _FORMAT,
            "sites": [{"after_block": block, "fraction": str(fraction)} for block, fraction in self.sites],
            "tokens": tokens,
            "counts": list(self.counts(tokens).values()),
            "notes": notes,
        }
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
            json.dump(content, file, indent=2)
        Path(file.name).replace(path)
        return path

    @classmethod
    def load(cls, path: str | Path) -> Schedule:
        """Read a schedule file.

        Raises:
            FileNotFoundError: There is no such file.
            ScheduleError: It holds something else.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            if content["format"] != _FORMAT:
                raise ScheduleError(f"{path}: expected format {_FORMAT!r}, got {content['format']!r}.")
            return cls(tuple((site["after_block"], Fraction(site["fraction"])) for site in content["sites"]))
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ScheduleError(
                f"{path} is no schedule file as Schedule.save writes it: {error!r}."
            ) from error


ScheduleLike = Schedule | str | list[int] | tuple[int, ...] | Mapping[int, int | float]


def kept(tokens: int, fraction: Fraction) -> int:
    """Return how many of `tokens` a fraction leaves: rounded down, at least 1."""
    return max(1, tokens * fraction.numerator // fraction.denominator)


def usual_blocks(depth: int) -> tuple[int, ...]:
    """Return the blocks after a quarter, a half and three quarters of the depth: 3, 6 and 9 of 12."""
    return tuple(sorted({max(1, depth * quarter // 4) for quarter in (1, 2, 3)}))


def parse(schedule: ScheduleLike, depth: int, tokens: int) -> Schedule:
    """Read any way of writing a schedule except a budget, which needs a model.

    Args:
        schedule: A :class:`Schedule`; ``"r70"`` (70 % left at each of the usual blocks) or ``"r70@2,5"``;
            ``"d13"`` (13 tokens less after every block); the path of a schedule file; the list of K_1,
            K_2, ...; or a mapping from block to count (int) or share of the original tokens (float).
        depth: Blocks of the model.
        tokens: Patch tokens at the model's image size.

    Returns:
        The schedule.

    Raises:
        ScheduleError: It cannot be read, does not fit the depth, or leaves no tokens.
    """
    if isinstance(schedule, Schedule):
        return schedule.within(depth)
    if isinstance(schedule, str):
        return _parse_text(schedule, depth, tokens).within(depth)
    if isinstance(schedule, Mapping):
        sites = []
        for block, left in schedule.items():
            if isinstance(left, int) and not 1 <= left <= tokens:
                raise ScheduleError(
                    f"the number of tokens after block {block} must be between 1 and {tokens}, got {left}."
                )
            fraction = Fraction(left, tokens) if isinstance(left, int) else _fraction(left)
            sites.append((int(block), fraction))
        return Schedule(tuple(sites)).within(depth)
    if isinstance(schedule, list | tuple):
        if len(schedule) > depth:
            raise ScheduleError(
                f"the schedule lists {len(schedule)} blocks, but the model has {depth}; "
                "give one count per block."
            )
        return Schedule.from_counts(schedule, tokens)
    raise ScheduleError(f"cannot read a schedule from {type(schedule).__name__} {schedule!r}.")


def _parse_text(text: str, depth: int, tokens: int) -> Schedule:
    if found := _RATIO.fullmatch(text):
        blocks = tuple(map(int, found[2].split(","))) if found[2] else usual_blocks(depth)
        return Schedule.ratio(Fraction(int(found[1]), 100), blocks)
    if found := _DECREMENT.fullmatch(text):
        return Schedule.decrement(int(found[1]), depth, tokens)
    if text.endswith(".json"):
        return Schedule.load(text)
    raise ScheduleError(
        f"cannot read the schedule {text!r}; expected 'r70' (70 % left after a quarter, a half and three "
        "quarters of the blocks), 'r70@2,5' (after blocks 2 and 5), 'd13' (13 tokens less after every "
        "block), '0.58x' (58 % of the base model's GMACs), '2.7G' (that many GMACs), or the path of a "
        ".json schedule file."
    )


def _fraction(ratio: str | float | Fraction) -> Fraction:
    # str(0.7) is "0.7", the number that was meant; 0.7 itself is a little less
    fraction = ratio if isinstance(ratio, Fraction) else Fraction(str(ratio))
    if not 0 < fraction <= 1:
        raise ScheduleError(f"a ratio of tokens to keep must be in (0, 1], got {ratio}.")
    return fraction
