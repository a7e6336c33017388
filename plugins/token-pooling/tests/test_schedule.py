"""Schedules: every way of writing one, the costs they lead to, and their files."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import pytest
import timm
import torch
from timm.models import VisionTransformer

from graftwork_token_pooling import Schedule, ScheduleError, apply, cost_of, schedule_of
from graftwork_token_pooling.cost import Shape, resolve
from graftwork_token_pooling.schedule import parse, usual_blocks

# GMACs of the network and of the clustering (T = 5), computed independently of this package
GMACS = {
    "none": {"tiny": (1.2537, 0), "small": (4.5989, 0), "base": (17.5638, 0)},
    "r90": {"tiny": (1.0597, 0.0190), "small": (3.9136, 0.0371), "base": (15.0043, 0.0734)},
    "r70": {"tiny": (0.7755, 0.0133), "small": (2.8780, 0.0261), "base": (11.0645, 0.0516)},
    "r50": {"tiny": (0.5810, 0.0101), "small": (2.1468, 0.0197), "base": (8.2325, 0.0391)},
    "r25": {"tiny": (0.4272, 0.0081), "small": (1.5552, 0.0160), "base": (5.9133, 0.0317)},
    "d8": {"tiny": (0.9527, 0.0578), "small": (3.5297, 0.1128), "base": (13.5569, 0.2227)},
    "d13": {"tiny": (0.7772, 0.0424), "small": (2.8867, 0.0827), "base": (11.1031, 0.1634)},
    "d16": {"tiny": (0.6765, 0.0356), "small": (2.5103, 0.0695), "base": (9.6495, 0.1373)},
}


@pytest.fixture(scope="module")
def deits() -> dict[str, VisionTransformer]:
    with torch.device("meta"):
        return {size: timm.create_model(f"deit_{size}_patch16_224") for size in ("tiny", "small", "base")}


@pytest.mark.parametrize("schedule", GMACS)
def test_costs_are_the_published_ones(deits: dict[str, VisionTransformer], schedule: str) -> None:
    for size, (network, pooling) in GMACS[schedule].items():
        found = Schedule() if schedule == "none" else parse(schedule, 12, 196)
        cost = Shape.of(deits[size]).cost(found)
        assert round(cost.network / 1e9, 4) == network
        assert round(cost.pooling / 1e9, 4) == pooling


def test_counted_costs_are_those_torch_counts(make_vit) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    for options in ({}, {"position": "pre_mlp"}, {"method": "power_bert"}):
        base = make_vit()
        for block in base.blocks:
            block.attn.fused_attn = False  # torch does not count fused attention on a CPU
        model = apply(base, "r70", **options)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(torch.randn(1, 3, 32, 32))
        distances = sum(
            n * n * 32
            for n in [64, *schedule_of(model).counts(64).values()][:-1]
            if options.get("method") != "power_bert"
        )
        assert counter.get_total_flops() // 2 == cost_of(model).network + distances


@pytest.mark.parametrize(
    ("written", "counts"),
    [
        ("r70", {3: 137, 6: 96, 9: 67}),
        ("r90", {3: 176, 6: 158, 9: 142}),
        ("r25", {3: 49, 6: 12, 9: 3}),
        ("r50@2,5", {2: 98, 5: 49}),
        ({3: 137, 6: 0.5, 9: 67}, {3: 137, 6: 98, 9: 67}),
        ([196, 196, 150, 150, 100], {3: 150, 5: 100}),
        (Schedule.ratio("0.7"), {3: 137, 6: 96, 9: 67}),
        ([196] * 12, {}),
        ("r100", {}),
    ],
)
def test_every_way_of_writing_a_schedule(written: object, counts: dict[int, int]) -> None:
    assert parse(written, 12, 196).counts(196) == counts


def test_a_decrement_takes_the_same_number_after_every_block() -> None:
    assert parse("d13", 12, 196).per_block(196, 12) == [196 - 13 * block for block in range(1, 13)]


def test_fractions_follow_the_image_size_and_leave_at_least_one_token() -> None:
    schedule = parse("d13", 12, 196)
    assert list(schedule.counts(4 * 196).values()) == [4 * (196 - 13 * block) for block in range(1, 13)]
    assert parse("r25", 12, 196).counts(4) == {3: 1, 6: 1, 9: 1}


def test_the_usual_blocks_divide_the_depth() -> None:
    assert usual_blocks(12) == (3, 6, 9)
    assert usual_blocks(24) == (6, 12, 18)
    assert usual_blocks(4) == (1, 2, 3)
    assert usual_blocks(2) == (1,)


@pytest.mark.parametrize("method", ["wk_medoids", "wk_means", "power_bert", "tome"])
@pytest.mark.parametrize("budget", ["0.58x", "0.8x", "2.7G"])
def test_a_budget_is_met_closely_with_the_clustering_included(
    deits: dict[str, VisionTransformer], method: str, budget: str
) -> None:
    shape = Shape.of(deits["small"])
    schedule = resolve(budget, deits["small"], method)
    gmacs = shape.cost(schedule, method).gmacs
    wanted = 2.7 if budget == "2.7G" else float(budget[:-1]) * shape.cost().gmacs
    assert gmacs <= wanted
    assert gmacs >= 0.99 * wanted


def test_a_budget_above_the_model_pools_nothing(make_vit) -> None:
    assert schedule_of(apply(make_vit(), "1.0x")) == Schedule()


def test_an_impossible_budget_is_explained(make_vit) -> None:
    with pytest.raises(ScheduleError, match="cannot be met"):
        apply(make_vit(), "0.05x")


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ([196, 0], "after block 2 must be between 1 and 196, got 0"),
        ([197], "between 1 and 196, got 197"),
        ([100, 150], "cannot bring tokens back"),
        ([190] * 13, "lists 13 blocks, but the model has 12"),
        ({13: 0.5}, "after block 13, but the model has 12 blocks"),
        ({0: 0.5}, "count from 1"),
        ({3: 0}, "between 1 and 196, got 0"),
        ({3: 200}, "between 1 and 196, got 200"),
        ({3: 0.0}, r"must be in \(0, 1\]"),
        ({3: 1.5}, r"must be in \(0, 1\]"),
        ("r50@3,13", "after block 13"),
        ("r0", r"must be in \(0, 1\]"),
        ("d17", "must be between 1 and 16"),
        ("d0", "must be between 1 and 16"),
        ("seventy", "cannot read the schedule 'seventy'"),
        (0.7, "cannot read a schedule from float"),
        ([0.9, 0.5], "between 1 and 196, got 0.9"),
    ],
)
def test_a_schedule_that_cannot_be_is_explained(written: object, message: str) -> None:
    with pytest.raises(ScheduleError, match=message):
        parse(written, 12, 196)


def test_a_saved_schedule_is_read_back_exactly(tmp_path: Path) -> None:
    schedule = Schedule(((2, Fraction(1, 3)), (5, Fraction(1, 7))))
    path = schedule.save(tmp_path / "found.json", 196, regularization=1e-3)
    assert Schedule.load(path) == schedule
    assert parse(str(path), 12, 196) == schedule
    content = json.loads(path.read_text())
    assert content["counts"] == [65, 28]
    assert content["notes"] == {"regularization": 1e-3}
    assert [file.name for file in tmp_path.iterdir()] == ["found.json"]


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    for text in ("{}", "[1, 2]", "not json", '{"format": "other/1"}'):
        path.write_text(text)
        with pytest.raises(ScheduleError, match=r"other\.json"):
            Schedule.load(path)
    with pytest.raises(FileNotFoundError):
        parse("missing.json", 12, 196)
