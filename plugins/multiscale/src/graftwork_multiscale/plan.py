"""The schedule of an epoch: which scale and how many images in every step.

A plan is a pure function of (seed, epoch, samples per rank, schedule). It asks neither the rank nor any
global random number generator, so all ranks take the same steps whatever augmentations, loggers or models
draw.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import Any, Literal, NamedTuple, get_args

from graftwork_multiscale.curriculum import Curriculum, Ladder, build_curriculum
from graftwork_multiscale.scales import Scale, Size, base_index, scale_table

Mode = Literal["SSc-FBS", "MSc-FBS", "MSc-VBS", "MSc-VBSWC"]
LastBatch = Literal["wrap", "trim", "drop", "refit"]
LengthMode = Literal["variable", "fixed"]

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_FIXED_PLAN = -1  # the epoch whose draws every epoch of a fixed-length schedule shares


class Step(NamedTuple):
    """One training step of one rank.

    Args:
        scale: Position in the scale table.
        batch: Number of images.
    """

    scale: int
    batch: int


def _mix(value: int) -> int:
    """Return the finaliser of splitmix64, a bijection of 64-bit integers that scatters neighbours."""
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def stream_key(seed: int, epoch: int, stream: str) -> int:
    """Return the 64-bit key of an independent random stream.

    Args:
        seed: Of the training.
        epoch: Counted from 0.
        stream: What is drawn, such as ``"shape"``.
    """
    key = int.from_bytes(hashlib.sha256(stream.encode()).digest()[:8], "big")
    for part in (seed, epoch):
        key = _mix(((key ^ (part & _MASK)) + _GOLDEN) & _MASK)
    return key


def _uniforms(key: int) -> Iterator[float]:
    """Yield numbers in [0, 1), the j-th a function of the key and of j alone."""
    counter = key
    while True:
        counter = (counter + _GOLDEN) & _MASK
        yield (_mix(counter) >> 11) / (1 << 53)


@dataclass(frozen=True)
class Schedule:
    """Everything that decides the steps of an epoch, apart from the number of samples.

    Make one with :func:`make_schedule`, which checks the options.

    Args:
        mode: See :class:`~graftwork_multiscale.MultiScaleBatchSampler`.
        scales: The scale table with the batches of the mode, smallest first.
        base: Position of the base scale.
        base_batch: Images per step and rank at the base scale; what a single-scale run would use.
        divisor: Every side is a multiple of it.
        share: Relative probability of each scale within a step, before the curriculum.
        curriculum: Of MSc-VBSWC, else None.
        epochs: Length of the training; None without a curriculum.
        last_batch: What happens when fewer samples are left than the step takes.
        length_mode: Whether every epoch has the same number of steps.
        min_batch: Smallest batch of a trimmed step.
        seed: Of all draws.
    """

    mode: Mode
    scales: tuple[Scale, ...]
    base: int
    base_batch: int
    divisor: int
    share: tuple[float, ...]
    curriculum: Curriculum | None = None
    epochs: int | None = None
    last_batch: LastBatch = "wrap"
    length_mode: LengthMode = "variable"
    min_batch: int = 1
    seed: int = 0

    def ladder(self) -> Ladder:
        """Return the scale table as curricula see it."""
        return Ladder(self.scales, self.base, self.divisor, self.epochs or 1)

    def active(self, epoch: int) -> list[tuple[int, float]]:
        """Return (position, probability per step) of the scales that an epoch uses."""
        weights = list(self.share)
        if self.curriculum is not None:
            weights = [
                w * share
                for w, share in zip(self.curriculum.weights(epoch, self.ladder()), weights, strict=True)
            ]
        total = sum(weights)
        if total <= 0:
            raise ValueError(
                f"in epoch {epoch} every scale has probability 0: the weights {list(self.share)} exclude "
                "all that "
                "the curriculum allows."
            )
        return [(i, weight / total) for i, weight in enumerate(weights) if weight > 0]

    def plan(self, epoch: int, samples: int) -> list[Step]:
        """Lay out one epoch.

        Example:
            >>> schedule = make_schedule(base_size=64, base_batch=4, min_size=32, max_size=96, divisor=32)
            >>> sum(step.batch for step in schedule.plan(epoch=0, samples=100)) >= 100
            True

        Args:
            epoch: Counted from 0.
            samples: Samples of one rank; equal on all ranks.

        Returns:
            The steps. Their batches sum to `samples` or a little more (``wrap``, ``refit``), to exactly
            `samples` (``trim``), or to less (``drop``).
        """
        if self.length_mode == "variable":
            return list(self._steps(epoch, samples))
        steps = list(self._steps(_FIXED_PLAN, samples))
        # a trimmed step stays last, where its odd shape costs one search for kernels and no more
        tail = [steps.pop()] if steps and steps[-1].batch != self.scales[steps[-1].scale].batch else []
        draws = _uniforms(stream_key(self.seed, epoch, "order"))
        for i in range(len(steps) - 1, 0, -1):
            j = int(next(draws) * (i + 1))
            steps[i], steps[j] = steps[j], steps[i]
        return steps + tail

    def _steps(self, epoch: int, samples: int) -> Iterator[Step]:
        active = self.active(epoch)
        positions = [position for position, _ in active]
        bounds = list(accumulate(probability for _, probability in active))
        draws = _uniforms(stream_key(self.seed, epoch, "shape"))
        left = samples
        while left > 0:
            scale = positions[min(bisect_right(bounds, next(draws)), len(positions) - 1)]
            batch = self.scales[scale].batch
            if batch > left:
                if self.last_batch == "drop":
                    return
                if self.last_batch == "trim":
                    batch = max(left, min(self.min_batch, batch))
                elif self.last_batch == "refit":
                    sizes = {i: self.scales[i].batch for i in positions}
                    # the largest batch that fits; if none does, wrapping the smallest repeats least
                    scale = max(
                        sizes, key=lambda i: (sizes[i] <= left, sizes[i] if sizes[i] <= left else -sizes[i])
                    )
                    batch = sizes[scale]
            yield Step(scale, batch)
            left -= batch

    def total_steps(self, epochs: int, samples: int) -> int:
        """Return the exact number of steps of a whole training."""
        return sum(len(self.plan(epoch, samples)) for epoch in range(epochs))

    def fingerprint(self) -> str:
        """Return a digest of everything that decides the steps, apart from the seed."""
        parts = asdict(self) | {"curriculum": repr(self.curriculum), "seed": None}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def make_schedule(
    *,
    base_size: Size,
    base_batch: int,
    min_size: Size,
    max_size: Size,
    max_scales: int = 5,
    divisor: int = 32,
    mode: str = "MSc-VBS",
    weights: str | Sequence[float] = "steps",
    curriculum: str | Mapping[str, Any] | Curriculum | None = None,
    epochs: int | None = None,
    last_batch: str = "wrap",
    length_mode: str = "variable",
    pixel_budget: float | None = None,
    cost_model: str | Mapping[str, Any] = "area",
    model_stride: int = 1,
    min_batch: int = 1,
    seed: int = 0,
) -> Schedule:
    """Build a schedule from the options of the sampler and check them against each other.

    Args are those of :class:`~graftwork_multiscale.MultiScaleBatchSampler`.

    Raises:
        ValueError: Options that do not exist or exclude each other, with the way out.
    """
    mode = _choice("mode", mode, get_args(Mode))
    last_batch = _choice("last_batch", last_batch, get_args(LastBatch))
    length_mode = _choice("length_mode", length_mode, get_args(LengthMode))
    scales = scale_table(
        base_size,
        base_batch,
        min_size,
        max_size,
        max_scales,
        divisor,
        pixel_budget=pixel_budget,
        cost_model=cost_model,
        model_stride=model_stride,
        min_batch=min_batch,
    )
    base = base_index(scales, base_size, divisor)
    if mode == "SSc-FBS":
        scales, base = [scales[base]._replace(batch=base_batch)], 0
    elif mode == "MSc-FBS":
        scales = [scale._replace(batch=base_batch) for scale in scales]
    if mode == "MSc-VBSWC":
        curriculum = build_curriculum(curriculum or "grow_max")
        if not epochs or epochs < 1:
            raise ValueError(
                "mode='MSc-VBSWC' needs epochs=, the length of the training: the curriculum is a function of "
                "epoch / epochs."
            )
        if length_mode == "fixed":
            raise ValueError(
                "length_mode='fixed' and a curriculum exclude each other: epochs of small images have fewer "
                "steps. Keep length_mode='variable' and let the train loop count "
                "(graftwork.MultiScaleTrainLoop), or step the schedulers per epoch."
            )
    elif curriculum is not None:
        raise ValueError(f"mode={mode!r} takes no curriculum; write mode='MSc-VBSWC'.")
    schedule = Schedule(
        mode=mode,  # type: ignore[arg-type]
        scales=tuple(scales),
        base=base,
        base_batch=base_batch,
        divisor=divisor,
        share=_shares(weights, scales),
        curriculum=curriculum,
        epochs=epochs if curriculum is not None else None,
        last_batch=last_batch,  # type: ignore[arg-type]
        length_mode=length_mode,  # type: ignore[arg-type]
        min_batch=min_batch,
        seed=seed,
    )
    if schedule.curriculum is not None:
        schedule.curriculum.check(schedule.ladder())
        final = [position for position, _ in schedule.active(schedule.epochs - 1)]  # type: ignore[operator]
        if base not in final:
            warnings.warn(
                f"the curriculum ends without the base scale {scales[base].height}x{scales[base].width}, "
                "the size "
                "the model is tested at; the last epochs should include it.",
                stacklevel=2,
            )
    return schedule


def _choice(name: str, value: str, choices: Sequence[str]) -> str:
    for choice in choices:
        if isinstance(value, str) and value.lower() == choice.lower():
            return choice
    raise ValueError(f"{name} must be one of {', '.join(choices)}; got {value!r}.")


def _shares(weights: str | Sequence[float], scales: Sequence[Scale]) -> tuple[float, ...]:
    if isinstance(weights, str):
        if _choice("weights", weights, ("steps", "images")) == "steps":
            return (1.0,) * len(scales)
        return tuple(1 / scale.batch for scale in scales)
    shares = tuple(float(weight) for weight in weights)
    if len(shares) != len(scales) or min(shares) < 0 or sum(shares) <= 0:
        raise ValueError(
            f"weights must be 'steps', 'images' or one non-negative number for each of the {len(scales)} "
            f"scales {', '.join(f'{s.height}x{s.width}' for s in scales)}; got {list(shares)}."
        )
    return shares
