"""The demonstration, the benchmark and the example run, and report what they measured."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("matplotlib", reason="matplotlib is not installed")
pytest.importorskip("sklearn", reason="scikit-learn is not installed")
from graftwork.bench import Bench
from graftwork.demo import Stage
from graftwork.report import Report
from graftwork_subspaces.accuracy import ROWS
from graftwork_subspaces.bench import bench
from graftwork_subspaces.demo import scene

REPOSITORY = Path(__file__).resolve().parents[3]
DATA = REPOSITORY.parent / "shared" / "data"
EXAMPLE = REPOSITORY / "examples" / "subspaces" / "serve_under_budget.py"


@pytest.mark.slow
def test_demo_draws_the_curves(tmp_path):
    scene(Stage(Report(tmp_path, "demo", echo=False), quick=True))
    text = (tmp_path / "report.md").read_text()
    assert (tmp_path / "accuracy-against-level.png").stat().st_size > 10_000
    for word in ("line (LCS+L)", "point (LCS+P)", "trained uncompressed", "measured:"):
        assert word in text


@pytest.mark.parametrize(
    ("part", "table"),
    [
        ("switching", "time-to-reach-a-level"),
        ("latency", "latency-by-level-and-form"),
        ("training", "memory-in-training"),
    ],
)
def test_benchmark_part_writes_its_table(tmp_path, part, table):
    bench(Bench(Report(tmp_path, "bench", echo=False), quick=True, threads=(1,), parts=(part,)))
    rows = (tmp_path / f"{table}.csv").read_text().splitlines()
    assert len(rows) >= 6


@pytest.mark.slow
def test_accuracy_part_resumes_where_it_stopped(tmp_path):
    if not (DATA / "cifar10").is_dir():
        pytest.skip(f"no CIFAR-10 subset at {DATA}")

    def run():
        bench(
            Bench(
                Report(tmp_path, "bench", echo=False),
                quick=True,
                threads=(1,),
                data=DATA,
                parts=("accuracy",),
            )
        )
        return json.loads((tmp_path / "accuracy-runs.json").read_text())

    first = run()
    assert len(first["runs"]) == len(ROWS)
    store = tmp_path / "accuracy-runs.json"
    kept = dict(first["runs"])
    lost = kept.pop("width line 0")
    store.write_text(json.dumps({**first, "runs": kept}))
    second = run()
    assert second["runs"]["width line 0"]["curve"] == lost["curve"], "a run is decided by its seed"
    assert all(second["runs"][key] == value for key, value in kept.items()), "finished runs are not repeated"


def test_accuracy_part_without_data_says_so(tmp_path):
    bench(Bench(Report(tmp_path, "bench", echo=False), quick=True, parts=("accuracy",)))
    assert "Skipped: no CIFAR-10 subset" in (tmp_path / "report.md").read_text()


def load_example():
    spec = importlib.util.spec_from_file_location("serve_under_budget", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["serve_under_budget"] = module
    spec.loader.exec_module(module)
    return module


def test_controller_narrows_under_load_and_widens_again():
    controller = load_example().BudgetController(0.1)
    controller.calibrate([0.01, 0.02, 0.03, 0.05, 0.06, 0.08, 0.09])
    assert controller.choose() == 6
    for _ in range(10):  # everything takes four times as long
        level = controller.choose()
        controller.observe(level, 4 * controller.expected[level])
    assert controller.choose() == 1
    for _ in range(10):
        level = controller.choose()
        controller.observe(level, controller.expected[level])
    assert controller.choose() == 6
    controller.slowdown = 100.0
    assert controller.choose() == 0, "the narrowest level when none fits"


@pytest.mark.slow
def test_example_serves_three_phases():
    command = [sys.executable, str(EXAMPLE), "--model", "cpreresnet20_lcs_width_line", "--requests", "10"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert [line.split("  ")[0].strip() for line in lines[-3:]] == ["quiet", "disturbed", "quiet again"]
