"""Which samples a rank sees in an epoch, and how they are dealt out to the steps of a plan."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence, Sized

import torch
from torch import distributed
from torch.utils.data import Sampler

from graftwork_multiscale.plan import Step, stream_key


class ScaledIndex(tuple[int, int]):
    """A sample index with the scale it is wanted at: the pair (scale, index), which also knows its size.

    Example:
        >>> scale, index = item = ScaledIndex(2, 17, (192, 192))
        >>> scale, index, item.size
        (2, 17, (192, 192))

    Args:
        scale: Position in the scale table.
        index: Position in the data set.
        size: (height, width) in pixels, so that whoever loads the sample needs no table.
    """

    size: tuple[int, int]

    def __new__(cls, scale: int, index: int, size: tuple[int, int]) -> ScaledIndex:
        """Make the pair."""
        self = super().__new__(cls, (scale, index))
        self.size = size
        return self

    def __reduce__(self) -> tuple[type[ScaledIndex], tuple[int, int, tuple[int, int]]]:
        return ScaledIndex, (self[0], self[1], self.size)


def rank_indices(
    count: int, world_size: int, rank: int, *, epoch: int = 0, seed: int = 0, shuffle: bool = True
) -> list[int]:
    """Return the samples of one rank: a permutation of all, padded by repetition, dealt out in turn.

    Example:
        >>> [rank_indices(5, 2, rank, shuffle=False) for rank in (0, 1)]
        [[0, 2, 4], [1, 3, 0]]

    Args:
        count: Size of the data set.
        world_size: Number of ranks; may exceed `count`.
        rank: Which one.
        epoch: Counted from 0.
        seed: The same on all ranks.
        shuffle: Permute.

    Returns:
        ceil(count / world_size) indices.
    """
    length = math.ceil(count / world_size)
    if shuffle:
        generator = torch.Generator().manual_seed(stream_key(seed, epoch, "index") >> 1)
        order = torch.randperm(count, generator=generator)
    else:
        order = torch.arange(count)
    return order[torch.arange(rank, length * world_size, world_size) % count].tolist()


class RankSampler(Sampler[int]):
    """The samples of one rank, in an order that depends on (seed, epoch) alone.

    Args:
        dataset: What to draw from; only its length is used here.
        shuffle: Permute in every epoch.
        seed: The same on all ranks.
        rank: Of this process; asked from ``torch.distributed`` when None.
        world_size: Likewise.
    """

    def __init__(
        self,
        dataset: Sized,
        *,
        shuffle: bool = True,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        running = distributed.is_available() and distributed.is_initialized()
        if rank is None:
            rank = distributed.get_rank() if running else 0
        if world_size is None:
            world_size = distributed.get_world_size() if running else 1
        self.rank, self.world_size = rank, world_size
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank {self.rank} is not among the {self.world_size} ranks, counted from 0.")
        if len(dataset) == 0:
            raise ValueError(
                "the data set is empty; there is nothing to draw. Check its path and its filter."
            )
        self.dataset = dataset
        self.shuffle = shuffle
        self.seed = seed
        self.epoch = 0

    def __iter__(self) -> Iterator[int]:
        return iter(
            rank_indices(
                len(self.dataset),
                self.world_size,
                self.rank,
                epoch=self.epoch,
                seed=self.seed,
                shuffle=self.shuffle,
            )
        )

    def __len__(self) -> int:
        return math.ceil(len(self.dataset) / self.world_size)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration follows."""
        self.epoch = epoch


def deal(indices: Sequence[int], steps: Iterable[Step]) -> Iterator[tuple[Step, list[int]]]:
    """Deal the samples of a rank out to its steps, in order, starting again when they run out."""
    count, position = len(indices), 0
    for step in steps:
        end = position + step.batch
        if end <= count:
            yield step, list(indices[position:end])
        else:
            yield step, [indices[i % count] for i in range(position, end)]
        position = end % count


def deal_endless(indices: Iterator[int], steps: Iterable[Step]) -> Iterator[tuple[Step, list[int]]]:
    """Deal a stream of samples that never ends out to the steps."""
    for step in steps:
        yield step, [next(indices) for _ in range(step.batch)]


def deal_grouped(
    indices: Sequence[int], groups: Sequence[int], steps: Sequence[Step]
) -> Iterator[tuple[Step, list[int]]]:
    """Deal samples out so that a step holds images of one group, landscape or portrait, as far as it goes.

    The number of steps and their sizes are those of the plan, on every rank, whatever the groups: towards the
    end of an epoch, when neither group fills a step any more, they are mixed.

    Args:
        indices: Samples of the rank.
        groups: Group of each of them, aligned with `indices`.
        steps: The plan.

    Returns:
        Pairs of step and samples.
    """
    queues: dict[int, deque[int]] = {group: deque() for group in sorted(set(groups))}
    coming = deque(zip(indices, groups, strict=True))
    used = 0
    for step in steps:
        while coming and all(len(queue) < step.batch for queue in queues.values()):
            index, group = coming.popleft()
            queues[group].append(index)
        fullest = sorted(queues.values(), key=len, reverse=True)
        batch: list[int] = []
        for queue in fullest:
            while queue and len(batch) < step.batch:
                batch.append(queue.popleft())
        while len(batch) < step.batch:  # all samples were seen: begin again
            batch.append(indices[used % len(indices)])
            used += 1
        yield step, batch
