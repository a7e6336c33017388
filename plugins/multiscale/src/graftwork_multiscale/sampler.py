"""The batch sampler: a plan of shapes, filled with samples, resumable in the middle of an epoch."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence, Sized
from dataclasses import replace
from itertools import count
from typing import Any

from torch.utils.data import Sampler

from graftwork_multiscale.curriculum import Curriculum
from graftwork_multiscale.indices import RankSampler, ScaledIndex, deal, deal_endless, deal_grouped
from graftwork_multiscale.plan import Step, make_schedule
from graftwork_multiscale.scales import Scale, Size
from graftwork_multiscale.state import STATE_VERSION, StateError, check_state


class MultiScaleBatchSampler(Sampler[list[ScaledIndex]]):
    """Batches whose image size changes from step to step and whose batch size follows the pixel budget.

    Every batch is a list of pairs (scale, index); :class:`~graftwork_multiscale.ScaledDataset` loads them.
    All ranks take the same number of steps with the same shapes, whatever the global random generators do.

    Example:
        >>> sampler = MultiScaleBatchSampler(
        ...     range(1000), 16, base_size=64, min_size=32, max_size=96, divisor=16, seed=1
        ... )
        >>> batch = next(iter(sampler))
        >>> len({scale for scale, _ in batch})
        1
        >>> loader = DataLoader(dataset, batch_sampler=sampler)  # doctest: +SKIP

    Args:
        sampler: A data set, which is shuffled and shared out over the ranks here; or a sampler that does this
            already, such as mmengine's ``DefaultSampler`` or torch's ``DistributedSampler``.
        batch_size: Images per step and rank at the base scale. Other scales get as many as fit the same
        number
            of pixels, so the nominal batch size of a framework keeps its meaning for the learning rate.
        base_size: Side, or (height, width), in pixels, that the model is tested at.
        min_size: Smallest side; see :func:`scale_table`.
        max_size: Largest side.
        max_scales: Upper bound on the number of scales, apart from the base.
        divisor: Every side is a multiple of it.
        mode: ``"SSc-FBS"`` single scale, fixed batch: ordinary training; ``"MSc-FBS"`` several scales, fixed
            batch; ``"MSc-VBS"`` several scales, variable batch; ``"MSc-VBSWC"`` the same with a curriculum.
        weights: How often a scale is drawn: ``"steps"``, equally often per step, as in the paper;
            ``"images"``, equally many images per scale, which saves no compute; or one number per scale.
        curriculum: Of MSc-VBSWC: ``"grow_max"`` (default), ``"prefix_k"``, ``"window"``, ``"staged"``,
            ``"gaussian"``, a mapping with ``type`` and options, or a Curriculum.
        epochs: Length of the training, needed by a curriculum.
        last_batch: When fewer samples are left than the step takes: ``"wrap"`` begins again with the first
            samples; ``"trim"`` takes what is left, at least `min_batch`; ``"drop"`` ends the epoch;
            ``"refit"`` takes the active scale with the largest batch that still fits, and wraps the smallest
            at the end.
        length_mode: ``"variable"`` draws a new number of steps in every epoch; ``"fixed"`` draws the shapes
            once and shuffles them in every epoch, for schedulers that need a constant number.
        pixel_budget: See :func:`scale_table`.
        cost_model: See :func:`scale_table`.
        model_stride: See :func:`scale_table`.
        min_batch: Smallest batch the model can be trained with.
        aspect_groups: Keep landscape and portrait images apart, so that less is padded when the aspect ratio
        is
            kept. The data set must give ``get_data_info(i)`` with ``width`` and ``height``.
        shuffle: Permute in every epoch; only where `sampler` is a data set.
        seed: Of the shapes, and of the order where `sampler` is a data set. The wrapped sampler's seed, else
        0,
            when None. Equal on all ranks.
        rank: Of this process; asked from ``torch.distributed`` when None.
        world_size: Number of processes, likewise.

    Raises:
        ValueError: Options that make no sense, an empty data set, or fewer samples than ranks.
    """

    def __init__(
        self,
        sampler: Sampler[int] | Sized,
        batch_size: int,
        *,
        base_size: Size,
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
        aspect_groups: bool = False,
        shuffle: bool = True,
        seed: int | None = None,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        if isinstance(sampler, Sampler):
            seed = getattr(sampler, "seed", None) if seed is None else seed
        else:
            sampler = RankSampler(sampler, shuffle=shuffle, seed=seed or 0, rank=rank, world_size=world_size)
        self.sampler: Any = sampler
        self.schedule = make_schedule(
            base_size=base_size,
            base_batch=batch_size,
            min_size=min_size,
            max_size=max_size,
            max_scales=max_scales,
            divisor=divisor,
            mode=mode,
            weights=weights,
            curriculum=curriculum,
            epochs=epochs,
            last_batch=last_batch,
            length_mode=length_mode,
            pixel_budget=pixel_budget,
            cost_model=cost_model,
            model_stride=model_stride,
            min_batch=min_batch,
            seed=seed or 0,
        )
        self.batch_size = batch_size
        self.drop_last = last_batch == "drop"
        self.aspect_groups = aspect_groups
        self.world_size = int(getattr(sampler, "world_size", getattr(sampler, "num_replicas", 1)))
        # mmengine's sampler for iteration-based training deals out one endless stream
        self.endless = any(kind.__name__ == "InfiniteSampler" for kind in type(sampler).__mro__)
        self.dataset_size = self._dataset_size()
        self._check_sizes()
        if aspect_groups and self.endless:
            raise ValueError("aspect_groups needs a sampler with an end; use DefaultSampler.")
        self._epoch = 0
        self._cached: tuple[object, list[Step]] = (None, [])
        self._groups: dict[int, int] = {}
        self._resume: tuple[int, int] | None = None  # epoch and step
        self._resume_used = False
        self._yielded = self._consumed = 0
        self._counts_consumed = False

    @property
    def scales(self) -> tuple[Scale, ...]:
        """The scale table, smallest first."""
        return self.schedule.scales

    @property
    def epoch(self) -> int:
        """The current epoch: that of the wrapped sampler, which is all that some frameworks set."""
        return int(getattr(self.sampler, "epoch", self._epoch))

    @property
    def samples_per_rank(self) -> int:
        """Samples of one rank and epoch, padding included."""
        if self.endless:
            return math.ceil(self.dataset_size / self.world_size)
        return len(self.sampler)

    @property
    def plan(self) -> list[Step]:
        """All steps of the current epoch, also those that a resumed epoch leaves out."""
        key = (self.epoch, self.samples_per_rank, self.schedule)
        if self._cached[0] != key:
            self._cached = (key, self.schedule.plan(self.epoch, self.samples_per_rank))
        return self._cached[1]

    @property
    def resume_step(self) -> int:
        """How many steps of the current epoch were taken before the interruption."""
        return self._resume[1] if self._resume is not None and self._resume[0] == self.epoch else 0

    def __len__(self) -> int:
        """Number of batches that the current epoch still yields."""
        return len(self.plan) - min(self.resume_step, len(self.plan))

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch: a restored one goes on where it stopped, any other begins at the start.

        Args:
            epoch: Counted from 0.
        """
        self._epoch = epoch
        if hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(epoch)
        if self._resume_used:
            self._resume = None
        self._yielded = self._consumed = self.resume_step

    def total_steps(self, epochs: int) -> int:
        """Return the exact number of steps of a training of this many epochs."""
        return self.schedule.total_steps(epochs, self.samples_per_rank)

    def __iter__(self) -> Iterator[list[ScaledIndex]]:
        # a generator: nothing below runs before the first batch is asked for, so a loader may make two
        # iterators, restore the state and use only the second
        if self._resume_used:
            self._resume = None
        start, self._resume_used = self.resume_step, True
        self._yielded = self._consumed = start
        sizes = [(scale.height, scale.width) for scale in self.scales]
        for number, (step, indices) in enumerate(self._dealt()):
            if number < start:
                continue
            self._yielded = number + 1
            yield [ScaledIndex(step.scale, index, sizes[step.scale]) for index in indices]

    def _dealt(self) -> Iterator[tuple[Step, list[int]]]:
        if self.endless:
            plans = (self.schedule.plan(epoch, self.samples_per_rank) for epoch in count())
            return deal_endless(iter(self.sampler), (step for plan in plans for step in plan))
        indices = list(self.sampler)
        if self.aspect_groups:
            return deal_grouped(indices, [self._group_of(i) for i in indices], self.plan)
        return deal(indices, self.plan)

    def mark_consumed(self, batches: int = 1) -> None:
        """Say that batches have been trained on, which is less than were yielded when workers load ahead.

        From the first call on :meth:`state_dict` counts these instead of the yielded ones.

        Args:
            batches: How many; 0 only switches the counting on.
        """
        self._counts_consumed = True
        self._consumed += batches

    def state_dict(self) -> dict[str, Any]:
        """Return where the training stands, as plain numbers and strings."""
        return {
            "version": STATE_VERSION,
            "seed": self.schedule.seed,
            "order_seed": getattr(self.sampler, "seed", None),
            "epoch": self.epoch,
            "step": self._consumed if self._counts_consumed else self._yielded,
            "samples": self.dataset_size,
            "world_size": self.world_size,
            "table": self._fingerprint(),
            "scales": [list(scale) for scale in self.scales],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where :meth:`state_dict` was called; no data is loaded for the steps that are skipped.

        Args:
            state: From a sampler with the same options and data set. The number of ranks may differ only
                between two epochs.

        Raises:
            StateError: The state does not fit, with what differs.
        """
        check_state(state, self.state_dict())
        step, epoch = int(state["step"]), int(state["epoch"])
        schedule = replace(self.schedule, seed=int(state["seed"]))
        if state["world_size"] != self.world_size:
            there = math.ceil(self.dataset_size / state["world_size"])
            done = step >= len(schedule.plan(epoch, there))
            if step and not done:
                raise StateError(
                    f"the state was saved by {state['world_size']} ranks in the middle of epoch {epoch}, "
                    "here "
                    f"are {self.world_size}. The number of ranks can change between epochs only."
                )
            step = len(schedule.plan(epoch, self.samples_per_rank)) if done else 0
        self.schedule = schedule
        if state.get("order_seed") is not None and hasattr(self.sampler, "seed"):
            self.sampler.seed = int(state["order_seed"])
        self._resume = None
        self.set_epoch(epoch)
        self._resume, self._resume_used = (epoch, step), False
        self._yielded = self._consumed = step

    def _dataset_size(self) -> int:
        for name in ("dataset", "data_source"):
            if hasattr(self.sampler, name):
                return len(getattr(self.sampler, name))
        return len(self.sampler) * self.world_size

    def _check_sizes(self) -> None:
        if self.dataset_size == 0:
            raise ValueError(
                "the data set is empty; there is nothing to draw. Check its path and its filter."
            )
        if self.dataset_size < self.world_size:
            raise ValueError(
                f"{self.world_size} ranks share {self.dataset_size} samples: some would only repeat others' "
                "work. Start fewer processes or use more data."
            )
        if not getattr(self.sampler, "round_up", True) and self.dataset_size % self.world_size:
            raise ValueError(
                f"with round_up=False the {self.world_size} ranks get different numbers of samples, so one "
                "would leave the epoch before the others. Keep the sampler's round_up=True."
            )

    def _group_of(self, index: int) -> int:
        if index not in self._groups:
            dataset = getattr(self.sampler, "dataset", None)
            if not hasattr(dataset, "get_data_info"):
                raise TypeError(
                    "aspect_groups asks the data set for get_data_info(i) with 'width' and 'height', which "
                    f"{type(dataset).__name__} does not have. Leave aspect_groups off."
                )
            info = dataset.get_data_info(index)
            self._groups[index] = int(info["width"] < info["height"])
        return self._groups[index]

    def _fingerprint(self) -> str:
        shuffle = getattr(self.sampler, "shuffle", None)
        text = f"{self.schedule.fingerprint()} {self.aspect_groups} {shuffle}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]
