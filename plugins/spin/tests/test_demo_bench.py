"""The demonstration and the benchmark run to their end and leave what they promise."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from graftwork.bench import Bench
from graftwork.demo import Stage
from graftwork.report import Report
from graftwork_spin.bench import bench
from graftwork_spin.cost import count_parameters, write_checkpoint
from graftwork_spin.demo import scene

DATA = Path(__file__).resolve().parents[3] / "../shared/data"


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_demo_reports_three_networks_with_checkpoints_and_a_picture(tmp_path):
    pytest.importorskip("sklearn")
    scene(Stage(Report(tmp_path, "demo", echo=False), quick=True))
    plain, shared, fused = rows(tmp_path / "digits-shared-and-unshared.csv")
    assert int(shared["parameters"]) == int(fused["parameters"]) < int(plain["parameters"])
    written = sorted(path.stat().st_size for path in tmp_path.glob("*.safetensors"))
    assert written == sorted(int(row["checkpoint bytes"]) for row in (plain, shared, fused))
    assert (tmp_path / "spin-digits.png").stat().st_size > 10_000
    assert "Sharing shrank the checkpoint" in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_the_demo_leaves_the_number_of_threads_as_it_was(tmp_path):
    pytest.importorskip("sklearn")
    torch.set_num_threads(2)
    try:
        scene(Stage(Report(tmp_path, "demo", echo=False), quick=True))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_the_cost_benchmark_compares_every_form_with_the_unshared_network(tmp_path):
    bench(Bench(Report(tmp_path, "bench", echo=False), quick=True, threads=(1,), parts=("cost",)))
    sizes = {row["network"]: int(row["parameters"]) for row in rows(tmp_path / "size.csv")}
    assert sizes["shared r=4"] < sizes["shared r=2"] == sizes["collapsed r=2"] < sizes["unshared"]
    assert sizes["fused online r=2 (training form)"] > sizes["unshared"]
    latencies = rows(tmp_path / "latency.csv")
    assert {(row["threads"], row["batch"]) for row in latencies} == {("1", "1"), ("1", "16")}
    assert {row["network"] for row in latencies} == set(sizes)
    assert all(float(row["ratio to unshared"]) == 1 for row in latencies if row["network"] == "unshared")


def test_the_accuracy_benchmark_says_what_it_misses_without_data(tmp_path):
    bench(Bench(Report(tmp_path, "bench", echo=False), quick=True, parts=("accuracy",)))
    assert "Skipped: it needs train.tar.gz" in (tmp_path / "report.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_accuracy_benchmark_reports_mean_and_spread(tmp_path):
    if not (DATA / "cifar10").is_dir():
        pytest.skip(f"needs the CIFAR-10 subset in {DATA}")
    bench(
        Bench(Report(tmp_path, "bench", echo=False), quick=True, threads=(1,), parts=("accuracy",), data=DATA)
    )
    table = {row["network"]: row for row in rows(tmp_path / "accuracy.csv")}
    assert list(table) == ["unshared", "r=2", "r=4", "r=2, fused start", "r=2, twice as long"]
    assert all(0 < float(row["accuracy %"]) <= 100 and float(row["std"]) >= 0 for row in table.values())
    assert (tmp_path / "accuracy.png").stat().st_size > 10_000


def test_a_checkpoint_is_written_whole_and_counted(tmp_path):
    model = torch.nn.Linear(10, 10)
    size = write_checkpoint(model, tmp_path / "a.safetensors")
    assert size == (tmp_path / "a.safetensors").stat().st_size > 4 * count_parameters(model)
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]
