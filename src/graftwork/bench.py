"""Benchmarks: ratios against named peers, measured in one run.

A plugin names its benchmark under the entry-point group ``graftwork.bench``; it is called with a
:class:`Bench`.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from graftwork.contributed import Contribution, find, run_each
from graftwork.report import Report


@dataclass(frozen=True)
class Timing:
    """Wall-clock seconds of one call.

    Args:
        median: Over all rounds.
        best: Smallest.
        p95: 95th percentile.
        rounds: How many rounds there were.
    """

    median: float
    best: float
    p95: float
    rounds: int


@dataclass
class Bench:
    """What a benchmark works with.

    Args:
        report: Where tables and pictures go.
        quick: A small version that only proves the benchmark runs; its figures are worth nothing.
        threads: CPU thread counts to measure with.
        seed: Seed for weights and inputs.
        device: Device to measure on.
        data: Folder of real data, or None when there is none; say so and skip what needs it.
        parts: Names of the parts asked for on the command line; empty means all.
    """

    report: Report
    quick: bool = False
    threads: tuple[int, ...] = (1, 2)
    seed: int = 0
    device: str = "cpu"
    data: Path | None = None
    parts: tuple[str, ...] = field(default=())

    def wants(self, part: str) -> bool:
        """Say whether a named part is to be run."""
        return not self.parts or part in self.parts

    def progress(self, iterable: Iterable[int], label: str) -> Iterable[int]:
        """Wrap an iterable in a progress bar on standard error."""
        return progress(iterable, label)

    def compare(
        self,
        candidates: Mapping[str, Callable[[], object]],
        *,
        seconds: float = 1.0,
        min_rounds: int = 7,
        warmup: int = 2,
    ) -> dict[str, Timing]:
        """Time several callables in interleaved rounds, so that a disturbance hits all of them alike.

        Args:
            candidates: Label to callable without arguments. Very short calls are repeated inside one round.
            seconds: Aim for about this much time per candidate.
            min_rounds: At least this many rounds.
            warmup: Calls before the first round.

        Returns:
            Timing per label, of a single call.
        """
        if self.quick:
            seconds, min_rounds, warmup = 0.0, 2, 1
        synchronize = _synchronizer(self.device)
        repeats: dict[str, int] = {}
        for label, call in candidates.items():
            for _ in range(warmup):
                call()
            synchronize()
            started = time.perf_counter()
            call()
            synchronize()
            elapsed = max(time.perf_counter() - started, 1e-7)
            repeats[label] = 1 if self.quick else max(1, min(1000, int(2e-3 / elapsed)))
        samples: dict[str, list[float]] = {label: [] for label in candidates}
        started = time.perf_counter()
        while len(next(iter(samples.values()))) < min_rounds or time.perf_counter() - started < seconds * len(
            candidates
        ):
            for label, call in candidates.items():
                begin = time.perf_counter()
                for _ in range(repeats[label]):
                    call()
                synchronize()
                samples[label].append((time.perf_counter() - begin) / repeats[label])
        return {label: _summarise(values) for label, values in samples.items()}

    def remember(self, key: str, compute: Callable[[], dict[str, float]]) -> dict[str, float]:
        """Compute something long once: an interrupted benchmark goes on where it stopped.

        Args:
            key: Name that holds every setting the result depends on.
            compute: Gives a dictionary of numbers.

        Returns:
            The dictionary, now or from the file ``finished.json`` of the report's folder; delete that file to
            compute everything again.
        """
        if self.quick:
            return compute()
        path = self.report.out / "finished.json"
        finished: dict[str, dict[str, float]] = json.loads(path.read_text()) if path.exists() else {}
        if key not in finished:
            finished[key] = compute()
            beside = path.with_suffix(".part")
            beside.write_text(json.dumps(finished, indent=1))
            beside.replace(path)
        return finished[key]

    @contextmanager
    def torch_threads(self, count: int) -> Iterator[None]:
        """Run a block with this many intra-operator threads."""
        import torch

        before = torch.get_num_threads()
        torch.set_num_threads(count)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def _summarise(values: list[float]) -> Timing:
    ordered = sorted(values)
    return Timing(
        median=statistics.median(ordered),
        best=ordered[0],
        p95=ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))],
        rounds=len(ordered),
    )


def _synchronizer(device: str) -> Callable[[], None]:
    if not device.startswith("cuda"):
        return lambda: None
    import torch

    return torch.cuda.synchronize


def progress(iterable: Iterable[int], label: str) -> Iterable[int]:
    """Wrap an iterable in a progress bar on standard error."""
    from tqdm import tqdm

    bar: Iterable[int] = tqdm(iterable, desc=label, leave=False, dynamic_ncols=True)
    return bar


def machine() -> str:
    """Describe the machine in one line, without its name: processor, cores, load, Python and torch."""
    import torch

    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                processor = line.partition(":")[2].strip()
                break
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return (
        f"{processor}, {os.cpu_count()} cores{load}{gpu}, Python {platform.python_version()}, "
        f"torch {torch.__version__.partition('+')[0]}"
    )


def run_benchmarks(
    methods: Sequence[str],
    out: Path,
    *,
    quick: bool,
    seed: int,
    device: str,
    threads: tuple[int, ...],
    parts: tuple[str, ...],
    data: Path | None,
) -> int:
    """Run the benchmarks of the named plugins, or of all, each into a folder and report of its own.

    Args:
        methods: Plugin slugs; empty for all.
        out: Folder that gets one sub-folder per method.
        quick: Only prove that the benchmarks run.
        seed: Seed for weights and inputs.
        device: Device to measure on.
        threads: CPU thread counts.
        parts: Parts of the benchmark; empty for all.
        data: Folder of real data; looked for when None.

    Returns:
        0 if every benchmark ran, 1 if one failed, 2 if a name is unknown.
    """
    benchmarks = find("graftwork.bench", methods, needs=("torch", "matplotlib", "tqdm"), extra="demo")
    if isinstance(benchmarks, int):
        return benchmarks
    data = data or Path(os.environ.get("GRAFTWORK_DATA", "../shared/data"))

    def run(benchmark: Contribution) -> Path:
        report = Report(out / benchmark.slug, f"graftwork bench {benchmark.slug}")
        report.text(machine())
        if quick:
            report.text("**Quick run: it proves that the benchmark runs; its figures mean nothing.**")
        benchmark.load()(
            Bench(
                report,
                quick=quick,
                threads=threads,
                seed=seed,
                device=device,
                data=data if data.is_dir() else None,
                parts=parts,
            )
        )
        words = [
            benchmark.slug,
            *(["--parts", ",".join(parts)] if parts else []),
            *(["--quick"] if quick else []),
        ]
        report.text(f"Command: `graftwork bench {' '.join(words)}`.")
        return report.write()

    return run_each("bench", benchmarks, run)
