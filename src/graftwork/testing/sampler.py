"""The contract of a sampler: what a training loop on several ranks, with resumption, relies on."""

# ruff: noqa: D102  the name of a check is its sentence

from __future__ import annotations

import pickle
import random
from collections import Counter
from collections.abc import Hashable, Sequence
from itertools import islice
from typing import Any, ClassVar

import pytest

WORLD_SIZES = (1, 2, 3, 8)


class SamplerContract:
    """What a sampler, or a batch sampler, owes the loop that trains with it.

    Example:
        >>> class TestMultiScale(SamplerContract):
        ...     def make(self, samples, *, rank=0, world_size=1, seed=0):
        ...         return MultiScaleBatchSampler(range(samples), 4, rank=rank, world_size=world_size,
        seed=seed, ...) ...
        ...     def index_of(self, item):
        ...         return item[1]
        ...
        ...     def shape_of(self, batch):
        ...         return batch[0][0], len(batch)

    Args:
        batches: Whether iteration yields batches; False for a sampler of single indices.
        samples: Size of the data set of most checks; larger than eight and no multiple of eight.
        covers: Whether an epoch shows every sample; False for a sampler that drops the tail.
        resumes: Whether it has ``state_dict`` and ``load_state_dict``.
    """

    batches: ClassVar[bool] = True
    samples: ClassVar[int] = 203
    covers: ClassVar[bool] = True
    resumes: ClassVar[bool] = True

    def make(self, samples: int, *, rank: int = 0, world_size: int = 1, seed: int = 0) -> Any:
        """Return a new sampler over this many samples."""
        raise NotImplementedError(
            f"{type(self).__name__} must override make(self, samples, *, rank=0, world_size=1, seed=0)"
        )

    def index_of(self, item: Any) -> int:
        """Return the sample index of an item of a batch."""
        return int(item)

    def shape_of(self, batch: Any) -> Hashable:
        """Return what all ranks must agree on in a step: its size, and the image size if that varies."""
        return len(batch)

    def indices(self, yielded: Sequence[Any]) -> list[int]:
        """Return all sample indices of what an epoch yielded."""
        items = [item for batch in yielded for item in batch] if self.batches else yielded
        return [self.index_of(item) for item in items]

    def epoch(self, sampler: Any, number: int) -> list[Any]:
        """Return what one epoch yields."""
        sampler.set_epoch(number)
        return list(sampler)

    @pytest.mark.parametrize("samples", [1, 2, 7, 64, 203])
    def test_length_is_the_number_yielded(self, samples: int) -> None:
        sampler = self.make(samples)
        for number in range(3):
            sampler.set_epoch(number)
            announced = len(sampler)
            assert len(list(sampler)) == announced

    def test_an_epoch_is_a_function_of_its_number_and_the_seed(self) -> None:
        first, second = self.make(self.samples, seed=1), self.make(self.samples, seed=1)
        later = [self.epoch(first, number) for number in (3, 1, 3)]
        assert later[0] == later[2], "epoch 3 differs after epoch 1 was visited"
        assert later[0] == self.epoch(second, 3), "two samplers with one seed differ"
        assert later[0] != later[1], "set_epoch does not change the order"
        assert later[0] != self.epoch(self.make(self.samples, seed=2), 3), (
            "the seed does not change the order"
        )

    def test_global_random_generators_neither_matter_nor_are_touched(self) -> None:
        import numpy as np
        import torch

        expected = self.epoch(self.make(self.samples), 2)
        sampler, disturbed = self.make(self.samples), []
        sampler.set_epoch(2)
        for number, item in enumerate(sampler):
            disturbed.append(item)
            random.seed(number)
            np.random.seed(number)
            torch.manual_seed(number)
        assert disturbed == expected, "drawing from global generators between two batches changes the epoch"
        states = (
            random.getstate(),
            _numpy_state(),
            torch.get_rng_state().tolist(),
        )
        self.epoch(self.make(self.samples), 2)
        after = (
            random.getstate(),
            _numpy_state(),
            torch.get_rng_state().tolist(),
        )
        assert states == after, "iterating draws from a global generator"

    @pytest.mark.parametrize("world_size", WORLD_SIZES)
    def test_ranks_take_the_same_steps(self, world_size: int) -> None:
        for number in range(3):
            ranks = [
                self.epoch(self.make(self.samples, rank=rank, world_size=world_size), number)
                for rank in range(world_size)
            ]
            lengths = [len(yielded) for yielded in ranks]
            assert len(set(lengths)) == 1, f"ranks take {lengths} steps in epoch {number}: one waits for ever"
            if self.batches:
                for step, batches in enumerate(zip(*ranks, strict=True)):
                    shapes = [self.shape_of(batch) for batch in batches]
                    assert len(set(shapes)) == 1, f"shapes {shapes} in step {step} of epoch {number}"

    @pytest.mark.parametrize("world_size", WORLD_SIZES)
    def test_ranks_share_the_data(self, world_size: int) -> None:
        ranks = [
            self.epoch(self.make(self.samples, rank=rank, world_size=world_size), 1)
            for rank in range(world_size)
        ]
        seen = Counter(index for yielded in ranks for index in self.indices(yielded))
        assert set(seen) <= set(range(self.samples)), "indices outside the data set"
        if self.covers:
            assert len(seen) == self.samples, f"{self.samples - len(seen)} samples are shown by no rank"
        largest = max((len(batch) for batch in ranks[0]), default=0) if self.batches else 1
        padding = -self.samples % world_size
        repeated = sum(seen.values()) - len(seen)
        assert repeated <= padding + world_size * largest, f"{repeated} samples are shown more than once"

    def test_pickling_keeps_the_order(self) -> None:
        sampler = self.make(self.samples)
        copy = pickle.loads(pickle.dumps(sampler))
        assert self.epoch(copy, 1) == self.epoch(sampler, 1)

    def test_an_interrupted_iteration_leaves_nothing_behind(self) -> None:
        sampler = self.make(self.samples)
        expected = self.epoch(sampler, 0)
        list(islice(iter(sampler), 2))
        assert self.epoch(sampler, 0) == expected

    def test_resuming_continues_with_what_comes_next(self) -> None:
        if not self.resumes:
            pytest.skip("declared: it has no state")
        whole = self.epoch(self.make(self.samples), 1)
        for taken in range(len(whole) + 1):
            interrupted = self.make(self.samples)
            interrupted.set_epoch(1)
            list(islice(iter(interrupted), taken))
            state = pickle.loads(pickle.dumps(interrupted.state_dict()))
            resumed = self.make(self.samples)
            resumed.load_state_dict(state)
            resumed.set_epoch(1)
            assert len(resumed) == len(whole) - taken
            assert list(resumed) == whole[taken:], f"resuming after {taken} of {len(whole)} goes on elsewhere"
        resumed.set_epoch(2)
        assert list(resumed) == self.epoch(self.make(self.samples), 2), (
            "the epoch after a resumed one differs"
        )

    def test_an_empty_data_set_is_refused(self) -> None:
        with pytest.raises(ValueError):
            list(self.make(0))

    def test_a_tiny_data_set_works(self) -> None:
        indices = self.indices(self.epoch(self.make(1), 0))
        assert set(indices) <= {0}
        assert indices or not self.covers

    def test_a_large_data_set_is_planned_in_a_second(self) -> None:
        import time

        started = time.process_time()
        sampler = self.make(1_280_000, world_size=8)
        sampler.set_epoch(1)
        next(iter(sampler))
        seconds = time.process_time() - started
        assert seconds < 5, f"the first batch of 1.28 million samples took {seconds:.1f} s of processor time"


def _numpy_state() -> list[int]:
    import numpy as np

    state: Any = np.random.get_state()  # a tuple, or a dictionary for other generators
    return [int(word) for word in state[1]]
