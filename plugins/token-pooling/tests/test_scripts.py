"""The demonstration, the benchmark and the examples run."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from graftwork.bench import Bench
from graftwork.demo import Stage
from graftwork.report import Report

ROOT = Path(__file__).resolve().parents[3]
EXAMPLES = ROOT / "examples" / "token_pooling"
DATA = ROOT.parent / "shared" / "data"

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")


def test_the_demonstration_runs(tmp_path: Path) -> None:
    from graftwork_token_pooling.demo import scene

    scene(Stage(Report(tmp_path, "demo", echo=False), quick=True))
    assert (tmp_path / "accuracy.csv").read_text().count("\n") == 2 + 3 * 6
    assert (tmp_path / "clusters.png").stat().st_size > 10_000


@pytest.mark.parametrize("part", ["speed", "scores", "error"])
def test_the_benchmark_runs(tmp_path: Path, part: str) -> None:
    from graftwork_token_pooling.bench import bench

    bench(Bench(Report(tmp_path, "bench", echo=False), quick=True, threads=(1,), parts=(part,)))
    assert len(list(tmp_path.glob("*.csv"))) == 1


@pytest.mark.slow
def test_the_accuracy_benchmark_runs(tmp_path: Path) -> None:
    from graftwork_token_pooling.bench import bench

    if not (DATA / "cifar10").is_dir():
        pytest.skip(f"needs the CIFAR-10 subset in {DATA}")
    bench(Bench(Report(tmp_path, "bench", echo=False), quick=True, data=DATA, parts=("accuracy",)))
    assert {path.name for path in tmp_path.glob("*.png")} == {"clusters.png", "low-pass.png", "accuracy.png"}


def test_the_accuracy_benchmark_says_what_it_misses(tmp_path: Path) -> None:
    from graftwork_token_pooling.bench import bench

    bench(Bench(Report(tmp_path, "bench", echo=False), quick=True, parts=("accuracy",)))
    assert "Skipped accuracy" in (tmp_path / "report.md").read_text()


@pytest.mark.skipif(not EXAMPLES.is_dir(), reason="needs the repository's examples")
def test_the_examples_run(tmp_path: Path, capsys) -> None:
    pool = runpy.run_path(str(EXAMPLES / "pool_any_vit.py"))["main"]
    pool(["--model", "vit_tiny_patch16_224", "--batch-size", "1", "--out", str(tmp_path / "clusters.png")])
    assert "tokens: 196 -> 196 196 137" in capsys.readouterr().out
    assert (tmp_path / "clusters.png").is_file()
    search = runpy.run_path(str(EXAMPLES / "search_and_retrain.py"))["main"]
    search(["--quick", "--out", str(tmp_path / "schedule.json")])
    assert "tokens after each block: (" in capsys.readouterr().out
