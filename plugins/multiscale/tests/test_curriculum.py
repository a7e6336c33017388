"""Curricula: pure functions of the epoch, with the savings that were computed for them."""

from __future__ import annotations

import pytest

from graftwork_multiscale import CurriculumError, Schedule, build_curriculum, make_schedule
from graftwork_multiscale.cost import plan_cost

# forward MACs of ResNet-101 per image, in units of 10^9
RESNET101 = {128: 2.549, 160: 3.981, 192: 5.732, 224: 7.801, 256: 10.189, 288: 12.895, 320: 15.919}
EPOCHS = 600


def schedule(curriculum: object, epochs: int = EPOCHS, **options: object) -> Schedule:
    arguments = {"base_size": 224, "base_batch": 128, "min_size": 128, "max_size": 320, "max_scales": 10}
    return make_schedule(**(arguments | options), mode="MSc-VBSWC", curriculum=curriculum, epochs=epochs)


def sides(plans: Schedule, epoch: int) -> list[int]:
    return [plans.scales[i].height for i, _ in plans.active(epoch)]


@pytest.mark.parametrize(
    ("curriculum", "flops", "updates"),
    [
        ({"type": "grow_max", "fraction": 0.25}, 28.8, 28.6),
        ("grow_max", 33.3, 33.1),
        ({"type": "grow_max", "fraction": 0.75}, 37.8, 37.6),
        ({"type": "grow_max", "fraction": 1.0}, 42.2, 42.2),
        ({"type": "prefix_k", "fraction": 0.25}, 30.6, 30.4),
        ({"type": "prefix_k", "fraction": 0.33, "start": 3}, 30.3, 30.1),
        ({"type": "prefix_k", "fraction": 0.5, "start": 4}, 31.5, 31.4),
        ({"type": "prefix_k", "fraction": 1.0}, 49.4, 49.4),
    ],
)
def test_savings_are_those_computed_for_resnet_101(curriculum: object, flops: float, updates: float) -> None:
    cost = plan_cost(schedule(curriculum), image_cost=lambda height, _: RESNET101[height])
    assert 100 * (1 - cost.flops_ratio) == pytest.approx(flops, abs=0.06)
    assert 100 * (1 - cost.updates_ratio) == pytest.approx(updates, abs=0.06)


@pytest.mark.parametrize(("width", "saved"), [(1, -6.3), (2, -2.9), (3, 1.1), (4, 5.8)])
@pytest.mark.filterwarnings("ignore:the curriculum ends without the base")
def test_a_sliding_window_saves_little_or_nothing(width: int, saved: float) -> None:
    plans = schedule({"type": "window", "width": width})
    cost = plan_cost(plans, image_cost=lambda height, _: RESNET101[height])
    assert 100 * (1 - cost.flops_ratio) == pytest.approx(saved, abs=0.06)


@pytest.mark.parametrize(
    ("active", "flops", "updates"),
    [(1, 0.327, 0.3265), (2, 0.398, 0.3988), (3, 0.470, 0.4706), (4, 0.542, 0.5424), (7, 0.756, 0.7587)],
)
def test_cost_of_the_k_smallest_scales(active: int, flops: float, updates: float) -> None:
    side = sorted(RESNET101)[active - 1]
    plans = schedule({"type": "staged", "stages": [(0, 128, side), (1, 128, 320)]}, epochs=10**6)
    cost = plan_cost(plans, epochs=1, image_cost=lambda height, _: RESNET101[height])
    assert cost.flops_ratio == pytest.approx(flops, abs=6e-4)
    assert cost.updates_ratio == pytest.approx(updates, abs=6e-5)


def test_the_default_grows_from_160_to_320_in_the_first_half() -> None:
    plans = schedule("grow_max")
    assert sides(plans, 0) == [128, 160]
    assert sides(plans, 150) == [128, 160, 192, 224, 256]  # half way: limit 240, rounded up to 256
    assert sides(plans, 300) == sides(plans, 599) == sides(plans, 5000) == [128, 160, 192, 224, 256, 288, 320]
    growing = [len(sides(plans, epoch)) for epoch in range(EPOCHS)]
    assert growing == sorted(growing)


def test_stages_hold_from_their_epoch_on() -> None:
    plans = schedule({"type": "staged", "stages": [(40, 128, 320), (0, 128, 192)]})
    assert sides(plans, 39) == [128, 160, 192]
    assert len(sides(plans, 40)) == 7


def test_a_gaussian_window_moves_its_centre_and_keeps_exploring() -> None:
    plans = schedule({"type": "gaussian", "sigma": 0.65, "uniform": 0.1})
    for epoch, favourite in ((0, 0), (EPOCHS - 1, 6)):
        shares = dict(plans.active(epoch))
        assert max(shares, key=shares.__getitem__) == favourite
        assert min(shares.values()) >= 0.1 / 7 - 1e-12
        assert sum(shares.values()) == pytest.approx(1)


def test_a_curriculum_does_not_change_the_batch_of_a_scale() -> None:
    plans = schedule("grow_max", epochs=4)
    for epoch in range(4):
        for step in plans.plan(epoch, 4000)[:-1]:
            assert step.batch == plans.scales[step.scale].batch


def test_ending_without_the_test_resolution_is_worth_a_warning() -> None:
    with pytest.warns(UserWarning, match="ends without the base scale 224x224"):
        schedule({"type": "window", "width": 1})


@pytest.mark.parametrize(
    ("curriculum", "message"),
    [
        ("cosine", "unknown curriculum 'cosine'; there are grow_max, prefix_k, window, staged, gaussian"),
        ({"type": "grow_max", "speed": 2}, "has no option 'speed'; it takes end, fraction, start"),
        ({"type": "grow_max", "fraction": 0}, "share of the training"),
        ({"type": "grow_max", "start": 96}, "start=96 is below the smallest side, 128"),
        ({"type": "prefix_k", "start": 9}, "1 to 7; got 9"),
        ({"type": "window", "width": 0}, "1 to 7; got 0"),
        ({"type": "staged", "stages": [(3, 128, 320)]}, "first stage starts in epoch 0"),
        ({"type": "staged", "stages": [(0, 130, 140)]}, "no scale has a side of 130 to 140"),
        ({"type": "staged", "stages": [(0, 128)]}, "stages are"),
        ({"type": "gaussian", "sigma": 0}, "sigma is positive"),
    ],
)
def test_impossible_curricula_are_refused(curriculum: object, message: str) -> None:
    with pytest.raises(CurriculumError, match=message):
        schedule(curriculum)


def test_a_curriculum_may_be_an_object_of_ones_own() -> None:
    built = build_curriculum({"type": "prefix_k", "start": 2})
    assert build_curriculum(built) is built
