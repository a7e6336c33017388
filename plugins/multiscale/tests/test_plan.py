"""Plans: equal on all ranks, exact in length, drawn as often as the closed forms say."""

from __future__ import annotations

import math
from collections import Counter

import pytest

from graftwork_multiscale import Schedule, make_schedule, rank_indices
from graftwork_multiscale.plan import _uniforms

SMALL = {"base_size": 64, "base_batch": 16, "min_size": 32, "max_size": 96, "divisor": 16}
POLICIES = ("wrap", "trim", "drop", "refit")


def schedule(**options: object) -> Schedule:
    return make_schedule(**(SMALL | options))


@pytest.mark.parametrize("policy", POLICIES)
def test_batches_sum_to_what_the_policy_promises(policy: str) -> None:
    plans = schedule(last_batch=policy)
    largest = max(scale.batch for scale in plans.scales)
    for samples in range(1, 5 * largest):
        total = sum(step.batch for step in plans.plan(samples, samples))
        if policy == "trim":
            assert total == samples
        elif policy == "drop":
            assert samples - largest < total <= samples
        else:
            assert samples <= total < samples + largest


def test_refit_ends_on_full_batches_and_repeats_less_than_wrap() -> None:
    wrap, refit = schedule(last_batch="wrap"), schedule(last_batch="refit")
    smallest = min(scale.batch for scale in refit.scales)
    extra = [sum(step.batch for step in refit.plan(epoch, 501)) - 501 for epoch in range(40)]
    assert max(extra) < smallest
    assert sum(extra) < sum(sum(step.batch for step in wrap.plan(epoch, 501)) - 501 for epoch in range(40))
    for step in refit.plan(0, 501):
        assert step.batch == refit.scales[step.scale].batch


def test_trim_never_leaves_a_batch_below_the_smallest_allowed() -> None:
    plans = schedule(last_batch="trim", min_batch=2)
    last = {plans.plan(epoch, 129)[-1].batch for epoch in range(200)}
    assert min(last) == 2


def test_plans_are_a_function_of_seed_and_epoch() -> None:
    assert schedule(seed=5).plan(3, 5000) == schedule(seed=5).plan(3, 5000)
    assert schedule(seed=5).plan(3, 5000) != schedule(seed=5).plan(4, 5000)
    assert schedule(seed=5).plan(3, 5000) != schedule(seed=6).plan(3, 5000)
    assert schedule(seed=-1).plan(0, 500) == schedule(seed=-1).plan(0, 500)


def test_draws_are_those_of_the_published_splitmix64() -> None:
    # known answer of the public-domain reference with seed 0
    assert next(_uniforms(0)) == (0xE220A8397B1DCDAF >> 11) / 2**53


def test_a_plan_is_the_same_on_every_machine() -> None:
    # recorded once: integers and float64 comparisons are defined to the bit
    plan = [(3, 10), (3, 10), (4, 7), (3, 10), (0, 64), (1, 28), (2, 16), (0, 64)]
    assert schedule(seed=1).plan(2, 200) == plan


@pytest.mark.parametrize(
    ("samples", "options", "iterations", "deviation"),
    [
        # ceil(1281167 / 8) with the ten-scale table, ceil(1281167 / 4) with five scales and twice the batch
        (160146, {"base_batch": 128, "max_scales": 10}, 949.9, 20.5),
        (320292, {"base_batch": 256, "max_scales": 5}, 961.4, 21.8),
    ],
)
def test_iterations_and_image_shares_follow_the_closed_forms(
    samples: int, options: dict, iterations: float, deviation: float
) -> None:
    plans = make_schedule(base_size=224, min_size=128, max_size=320, **options)
    batches = [scale.batch for scale in plans.scales]
    mean = sum(batches) / len(batches)
    expected = (samples + sum(b * b for b in batches) / len(batches) / (2 * mean)) / mean
    assert expected == pytest.approx(iterations, abs=0.1)
    epochs = 300
    counts = Counter()
    lengths = []
    for epoch in range(epochs):
        plan = plans.plan(epoch, samples)
        lengths.append(len(plan))
        counts.update(step.scale for step in plan)
    assert abs(sum(lengths) / epochs - expected) < 3 * deviation / math.sqrt(epochs)
    spread = math.sqrt(sum((n - expected) ** 2 for n in lengths) / epochs)
    assert spread == pytest.approx(deviation, rel=0.15)
    total = sum(lengths)
    for i in range(len(batches)):  # scales are drawn uniformly per step: binomial error
        error = math.sqrt(total * (1 / len(batches)) * (1 - 1 / len(batches)))
        assert abs(counts[i] - total / len(batches)) < 4 * error


def test_weights_decide_how_often_a_scale_is_drawn() -> None:
    plans = schedule(weights=[0, 1, 3, 0, 0])
    counts = Counter(step.scale for step in plans.plan(0, 200_000))
    assert set(counts) == {1, 2}
    assert counts[2] / counts[1] == pytest.approx(3, rel=0.1)


def test_equal_shares_of_images_are_weights_by_the_inverse_batch() -> None:
    plans = schedule(weights="images")
    images = Counter()
    for step in plans.plan(0, 400_000):
        images[step.scale] += step.batch
    for i in range(len(plans.scales)):
        assert images[i] / sum(images.values()) == pytest.approx(1 / len(plans.scales), rel=0.1)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_fixed_length_shuffles_the_same_shapes_in_every_epoch(policy: str) -> None:
    plans = schedule(length_mode="fixed", last_batch=policy)
    first, *others = (plans.plan(epoch, 1003) for epoch in range(20))
    assert all(Counter(plan) == Counter(first) for plan in others)
    assert len({tuple(plan) for plan in others}) > 10
    if policy == "trim":
        assert len({plan[-1] for plan in others}) == 1
        assert sum(step.batch for step in first) == 1003


def test_modes_are_special_cases_of_one_loop() -> None:
    single = schedule(mode="SSc-FBS", last_batch="trim")
    assert single.scales == ((64, 64, 16),)
    assert [step.batch for step in single.plan(0, 40)] == [16, 16, 8]
    assert {scale.batch for scale in schedule(mode="msc-fbs").scales} == {16}
    assert schedule(mode="MSc-VBS").scales == (
        (32, 32, 64),
        (48, 48, 28),
        (64, 64, 16),
        (80, 80, 10),
        (96, 96, 7),
    )


def test_a_single_scale_keeps_the_batch_it_was_given() -> None:
    # the base of 300 is rounded to 288, where the budget would hold 14 images
    plans = make_schedule(base_size=300, base_batch=13, min_size=128, max_size=320, mode="SSc-FBS")
    assert plans.scales == ((288, 288, 13),)


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("count", [8, 31, 64, 97])
def test_ranks_share_all_samples_and_pad_by_exactly_what_is_missing(world_size: int, count: int) -> None:
    for epoch in range(50):
        parts = [rank_indices(count, world_size, rank, epoch=epoch, seed=3) for rank in range(world_size)]
        assert {len(part) for part in parts} == {math.ceil(count / world_size)}
        seen = Counter(index for part in parts for index in part)
        assert set(seen) == set(range(count))
        assert sum(n - 1 for n in seen.values()) == math.ceil(count / world_size) * world_size - count
        assert max(seen.values()) <= 2


def test_more_ranks_than_samples_pad_cyclically() -> None:
    parts = [rank_indices(3, 8, rank, shuffle=False) for rank in range(8)]
    assert parts == [[0], [1], [2], [0], [1], [2], [0], [1]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "VBS"}, "mode must be one of SSc-FBS, MSc-FBS, MSc-VBS, MSc-VBSWC; got 'VBS'"),
        ({"last_batch": "keep"}, "last_batch must be one of wrap, trim, drop, refit"),
        ({"length_mode": "constant"}, "length_mode must be one of variable, fixed"),
        ({"weights": [1, 2]}, "one non-negative number for each of the 5 scales 32x32, 48x48"),
        ({"weights": "pixels"}, "weights must be one of steps, images"),
        ({"mode": "MSc-VBSWC"}, "needs epochs="),
        ({"mode": "MSc-VBSWC", "epochs": 5, "length_mode": "fixed"}, "exclude each other"),
        ({"curriculum": "grow_max", "epochs": 5}, "takes no curriculum"),
    ],
)
def test_contradicting_options_are_refused_with_the_way_out(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        schedule(**options)
