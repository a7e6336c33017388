"""Real processes: two ranks over gloo with uneven data, and a training that is killed and started again."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("training_process.py")
HANG_SECONDS = 60
START_SECONDS = 300  # importing torch on a busy machine


def start(folder: Path, ranks: int, *words: str) -> list[subprocess.Popen]:
    folder.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(folder), *words],
            env=environment | {"RANK": str(rank), "WORLD_SIZE": str(ranks)},
        )
        for rank in range(ranks)
    ]


def finish(folder: Path, processes: list[subprocess.Popen], code: int = 0) -> None:
    """Wait for the processes, as long as some step is trained every minute once training has begun."""
    logs = [folder / f"steps{rank}.jsonl" for rank in range(len(processes))]
    written, since = 0, time.monotonic()
    try:
        while any(process.poll() is None for process in processes):
            now = sum(log.stat().st_size for log in logs if log.exists())
            if now > written:
                written, since = now, time.monotonic()
            allowed = HANG_SECONDS if written else START_SECONDS
            assert time.monotonic() - since < allowed, "no progress: a rank waits for another"
            time.sleep(0.05)
        assert [process.returncode for process in processes] == [code] * len(processes)
    finally:
        for process in processes:
            process.kill()


def steps(folder: Path, rank: int = 0) -> list[dict]:
    return [json.loads(line) for line in (folder / f"steps{rank}.jsonl").read_text().splitlines()]


def test_two_ranks_with_uneven_data_end_together(tmp_path: Path) -> None:
    finish(tmp_path, start(tmp_path, 2))
    first, second = steps(tmp_path, 0), steps(tmp_path, 1)
    assert [(s["side"], len(s["samples"])) for s in first] == [(s["side"], len(s["samples"])) for s in second]
    assert {s["epoch"] for s in first} == {0, 1}
    assert len({s["side"] for s in first}) == 3
    for epoch in (0, 1):
        seen = {i for s in first + second if s["epoch"] == epoch for i in s["samples"]}
        assert seen == set(range(61))


@pytest.mark.parametrize("kill_at", [3, 13])
def test_a_killed_training_goes_on_with_the_batch_it_was_killed_in(tmp_path: Path, kill_at: int) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    finish(whole, start(whole, 1))
    expected = steps(whole)
    assert len(expected) > kill_at
    finish(broken, start(broken, 1, "--kill-at", str(kill_at), "--workers", "1"), code=-signal.SIGKILL)
    assert steps(broken) == expected[:kill_at]
    finish(broken, start(broken, 1, "--workers", "1"))
    assert steps(broken) == expected[:kill_at] + expected[kill_at - 1 :]
