"""The batch sampler: equal ranks, exact lengths, resumption, indifference to global random generators."""

from __future__ import annotations

import pickle
import random
from collections import Counter

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from graftwork_multiscale import MultiScaleBatchSampler, RankSampler, ScaledIndex, StateError

SMALL = {"base_size": 64, "min_size": 32, "max_size": 96, "divisor": 16, "seed": 3}


def sampler(samples: int = 500, **options: object) -> MultiScaleBatchSampler:
    return MultiScaleBatchSampler(range(samples), 16, **(SMALL | options))


def shapes(batches: list[list[ScaledIndex]]) -> list[tuple[int, int]]:
    return [(batch[0][0], len(batch)) for batch in batches]


class Echo(Dataset):
    """Returns its indices, and draws from every global generator, as augmentations do."""

    def __len__(self) -> int:
        return 500

    def __getitem__(self, item: ScaledIndex) -> tuple[int, int, tuple[int, int]]:
        for _ in range(item[1] % 5):
            random.random(), np.random.rand(), torch.rand(1)
        return item[0], item[1], item.size


def as_list(batch: list) -> list:
    return batch


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_ranks_take_the_same_steps_and_share_the_data(world_size: int) -> None:
    for epoch in range(50):
        ranks = []
        for rank in range(world_size):
            part = sampler(503, rank=rank, world_size=world_size)
            part.set_epoch(epoch)
            ranks.append(list(part))
            assert len(ranks[-1]) == len(part)
        assert all(shapes(batches) == shapes(ranks[0]) for batches in ranks)
        seen = Counter(index for batches in ranks for batch in batches for _, index in batch)
        assert set(seen) == set(range(503))
        padding = -503 % world_size
        per_rank = (503 + padding) // world_size
        wrapped = sum(len(batch) for batch in ranks[0]) - per_rank
        assert sum(n - 1 for n in seen.values()) == padding + wrapped * world_size


@pytest.mark.parametrize("policy", ["wrap", "trim", "drop", "refit"])
@pytest.mark.parametrize("length_mode", ["variable", "fixed"])
def test_length_is_the_number_of_batches(policy: str, length_mode: str) -> None:
    for samples in range(1, 5 * 64, 3):
        batches = sampler(samples, last_batch=policy, length_mode=length_mode)
        announced = len(batches)
        assert len(list(batches)) == announced == len(batches)


def test_a_batch_larger_than_the_data_set_is_filled_by_going_round_several_times() -> None:
    batch = next(iter(sampler(7, weights=[1, 0, 0, 0, 0])))
    assert len(batch) == 64
    assert Counter(Counter(index for _, index in batch).values()) == {9: 6, 10: 1}


def test_every_batch_has_one_size_and_says_which() -> None:
    batches = sampler()
    for batch in batches:
        assert len({(item[0], item.size) for item in batch}) == 1
        scale = batches.scales[batch[0][0]]
        assert batch[0].size == (scale.height, scale.width)
        assert len(batch) == scale.batch


def test_order_depends_on_seed_and_epoch_only() -> None:
    one, two = sampler(), sampler()
    assert list(one) == list(two)
    two.set_epoch(1)
    assert list(one) != list(two)
    two.set_epoch(0)
    assert list(one) == list(two)
    assert list(one) != list(sampler(seed=4))


def test_global_random_generators_change_nothing() -> None:
    undisturbed = list(sampler())
    disturbed = []
    for number, batch in enumerate(sampler()):
        disturbed.append(batch)
        random.seed(number), np.random.seed(number), torch.manual_seed(number)
        random.random(), np.random.rand(3), torch.rand(3)
    assert disturbed == undisturbed


@pytest.mark.parametrize("step", range(0, 24, 1))
def test_resuming_continues_with_the_next_batch(step: int) -> None:
    whole = sampler()
    whole.set_epoch(2)
    batches = list(whole)
    assert len(batches) >= 20
    step = min(step, len(batches))
    interrupted = sampler()
    interrupted.set_epoch(2)
    iterator = iter(interrupted)
    for _ in range(step):
        next(iterator)
    state = pickle.loads(pickle.dumps(interrupted.state_dict()))
    resumed = sampler(seed=99)
    resumed.load_state_dict(state)
    resumed.set_epoch(2)  # as a training loop does
    assert len(resumed) == len(batches) - step
    assert list(resumed) == batches[step:]
    resumed.set_epoch(3)
    whole.set_epoch(3)
    assert list(resumed) == list(whole)


def test_length_stays_put_during_a_resumed_epoch_and_is_whole_in_the_next_pass() -> None:
    resumed = sampler()
    resumed.load_state_dict(sampler().state_dict() | {"step": 5})
    total = len(resumed.plan)
    lengths = {len(resumed) for _ in resumed}
    assert lengths == {total - 5}
    assert len(list(resumed)) == total


def test_workers_that_load_ahead_are_not_counted_as_trained() -> None:
    trained, batches = sampler(), []
    trained.set_epoch(1)
    trained.mark_consumed(0)
    loader = DataLoader(Echo(), batch_sampler=trained, num_workers=2, prefetch_factor=4, collate_fn=as_list)
    for number, batch in enumerate(loader):
        batches.append(batch)
        trained.mark_consumed()
        if number == 5:
            break
    state = trained.state_dict()
    assert state["step"] == 6
    resumed = sampler()
    resumed.load_state_dict(state)
    loader = DataLoader(Echo(), batch_sampler=resumed, num_workers=2, collate_fn=as_list)
    batches += list(loader)
    whole = sampler()
    whole.set_epoch(1)
    expected = [[(*item, item.size) for item in batch] for batch in whole]
    assert batches == expected


def test_persistent_workers_see_every_epoch() -> None:
    batches = sampler()
    loader = DataLoader(
        Echo(), batch_sampler=batches, num_workers=1, persistent_workers=True, collate_fn=as_list
    )
    for epoch in range(3):
        batches.set_epoch(epoch)
        loaded = list(loader)
        assert len(loaded) == len(loader)
        assert [(len(batch), batch[0][2]) for batch in loaded] == [(len(b), b[0].size) for b in batches]


def test_stateful_dataloader_resumes_in_mid_epoch() -> None:
    stateful = pytest.importorskip("torchdata.stateful_dataloader", reason="torchdata is not installed")

    def loader() -> object:
        return stateful.StatefulDataLoader(
            Echo(), batch_sampler=sampler(), num_workers=2, collate_fn=as_list, prefetch_factor=3
        )

    whole = list(loader())
    interrupted = loader()
    iterator = iter(interrupted)
    head = [next(iterator) for _ in range(7)]
    state = interrupted.state_dict()
    resumed = loader()
    resumed.load_state_dict(state)
    assert head + list(resumed) == whole


def test_a_wrapped_sampler_gives_order_sharding_and_epoch() -> None:
    ranks = []
    for rank in range(2):
        inner = DistributedSampler(range(101), num_replicas=2, rank=rank, seed=7)
        batches = MultiScaleBatchSampler(inner, 16, **(SMALL | {"seed": None}))
        assert batches.schedule.seed == 7
        inner.set_epoch(4)  # all that some frameworks do
        assert batches.epoch == 4
        order = [index for batch in batches for _, index in batch]
        assert order[:51] == list(inner)
        ranks.append(shapes(list(batches)))
    assert ranks[0] == ranks[1]


def test_the_number_of_ranks_may_change_between_epochs_only() -> None:
    two = sampler(world_size=2, rank=0)
    finished = two.state_dict() | {"step": len(two.plan)}
    one = sampler()
    one.load_state_dict(finished)
    assert len(one) == 0
    one.set_epoch(1)
    assert len(one) == len(one.plan)
    with pytest.raises(StateError, match="saved by 2 ranks in the middle of epoch 0, here are 1"):
        sampler().load_state_dict(two.state_dict() | {"step": 3})


def test_states_of_other_samplers_are_refused() -> None:
    state = sampler().state_dict()
    with pytest.raises(StateError, match=r"Saved table: 32x32:64, .*; this one: 32x32:64, 64x64:16, 96x96:7"):
        sampler(divisor=32).load_state_dict(state)
    with pytest.raises(StateError, match="saved with 500 samples, this data set has 501"):
        sampler(501).load_state_dict(state)
    with pytest.raises(StateError, match="it lacks epoch, order_seed"):
        sampler().load_state_dict({"step": 3})
    with pytest.raises(StateError, match="its version is 99"):
        sampler().load_state_dict(state | {"version": 99})
    with pytest.raises(StateError, match="other scales or options"):
        sampler(last_batch="drop").load_state_dict(state)


@pytest.mark.parametrize(
    ("samples", "options", "message"),
    [
        (0, {}, "the data set is empty"),
        (3, {"world_size": 4, "rank": 0}, "4 ranks share 3 samples"),
        (9, {"world_size": 2, "rank": 2}, "rank 2 is not among the 2 ranks"),
    ],
)
def test_impossible_data_is_refused(samples: int, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sampler(samples, **options)


def test_ranks_of_different_length_are_refused() -> None:
    class Uneven(RankSampler):
        round_up = False

    with pytest.raises(ValueError, match="leave the epoch before the others"):
        MultiScaleBatchSampler(Uneven(range(9), world_size=2, rank=0), 16, **SMALL)


class Photographs:
    """Five landscape images to three portraits."""

    def __len__(self) -> int:
        return 400

    def get_data_info(self, index: int) -> dict[str, int]:
        return {"width": 640, "height": 480} if index % 8 < 5 else {"width": 480, "height": 640}


def test_aspect_groups_keep_the_plan_and_rarely_mix() -> None:
    plain = MultiScaleBatchSampler(Photographs(), 16, **SMALL)
    grouped = MultiScaleBatchSampler(Photographs(), 16, aspect_groups=True, **SMALL)
    batches = list(grouped)
    assert shapes(batches) == shapes(list(plain))
    assert {index for batch in batches for _, index in batch} == set(range(400))
    mixed = [len({index % 8 < 5 for _, index in batch}) > 1 for batch in batches]
    assert sum(mixed) <= 3
    assert not any(mixed[: len(mixed) // 2])
    resumed = MultiScaleBatchSampler(Photographs(), 16, aspect_groups=True, **SMALL)
    resumed.load_state_dict(grouped.state_dict() | {"step": 4})
    assert list(resumed) == batches[4:]


def test_aspect_groups_need_the_sizes_of_the_images() -> None:
    with pytest.raises(TypeError, match="get_data_info"):
        list(sampler(aspect_groups=True))


def test_samplers_and_indices_survive_pickling() -> None:
    copy = pickle.loads(pickle.dumps(sampler()))
    assert list(copy) == list(sampler())
    item = pickle.loads(pickle.dumps(ScaledIndex(2, 17, (96, 64))))
    assert item == (2, 17)
    assert item.size == (96, 64)


def test_a_fixed_number_of_steps_holds_for_all_epochs() -> None:
    batches = sampler(length_mode="fixed")
    lengths = set()
    for epoch in range(10):
        batches.set_epoch(epoch)
        lengths.add(len(batches))
    assert len(lengths) == 1
    assert batches.total_steps(10) == 10 * lengths.pop()
