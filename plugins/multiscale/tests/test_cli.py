"""``python -m graftwork_multiscale``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from graftwork_multiscale.cli import main

IMAGENET = [*("--base", "224", "--min", "128", "--max", "320", "--scales", "10"), *("--samples", "1281167")]
IMAGENET += ["--world-size", "8"]


def test_plan_prints_table_iterations_and_ratios_and_draws_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "plan.png"
    assert main(["plan", *IMAGENET, "--out", str(picture)]) == 0
    text = capsys.readouterr().out
    assert "128x128     392" in text
    assert "949.9 iterations per epoch are expected (1252 with one scale)" in text
    assert "0.7587     24.1" in text
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_plan_as_json_is_exact(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *IMAGENET, "--mode", "MSc-VBSWC", "--epochs", "600", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["scales"][0] == [128, 128, 392]
    assert plan["ratios"]["pixels"] == pytest.approx(0.667, abs=1e-3)
    assert plan["total_steps"] == pytest.approx(600 * plan["expected_steps_per_epoch"], rel=0.01)


def test_plan_counts_the_flops_of_a_timm_model(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("timm")
    words = ["--base", "64", "--min", "32", "--max", "96", "--model", "test_resnet", "--json"]
    assert main(["plan", *words]) == 0
    ratios = json.loads(capsys.readouterr().out)["ratios"]
    (label,) = [label for label in ratios if "test_resnet" in label]
    assert "torch.utils.flop_counter" in label
    assert ratios[label] == pytest.approx(ratios["pixels"], abs=0.05)


@pytest.mark.usefixtures("mmcv_operators")
def test_plan_reads_a_shipped_config_and_changes_to_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = [
        "plan",
        "mask_rcnn_small_vbs",
        "--samples",
        "100",
        "--out",
        str(tmp_path / "p.png"),
        "--cfg-options",
    ]
    assert main([*words, "train_dataloader.batch_sampler.max_size=128"]) == 0
    text = capsys.readouterr().out
    assert "128x128" in text
    assert "160x160" not in text
    assert "32 regions per image of which 8 get masks, counted by torch.utils.flop_counter" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["plan"], "needs a CONFIG, or --base, --min and --max"),
        (["plan", "--base", "64", "--min", "128", "--max", "320"], "lies outside the range"),
        (
            ["plan", *IMAGENET, "--mode", "MSc-VBSWC", "--epochs", "9", "--curriculum", "no"],
            "unknown curriculum",
        ),
    ],
)
def test_mistakes_are_explained(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert message in capsys.readouterr().err


def test_configs_are_listed_with_their_paths(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["configs"]) == 0
    for line in capsys.readouterr().out.splitlines():
        assert Path(line.split()[1]).is_file()
