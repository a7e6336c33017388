"""Benchmark: what sharing costs and saves (part "cost"), and what it does to accuracy (part "accuracy")."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn

from graftwork.bench import Bench
from graftwork_spin import models
from graftwork_spin.accuracy import measure_accuracy
from graftwork_spin.cost import count_parameters, write_checkpoint
from graftwork_spin.fusion import collapse, fuse

PAPER = {"dim": 768, "depth": 32, "kernel_size": 3, "patch_size": 14}
UNSHARED = "unshared"


def bench(bench: Bench) -> None:
    """Run the parts asked for.

    Args:
        bench: Where to report, what to run, and on what.
    """
    if bench.wants("cost"):
        _cost(bench)
    if bench.wants("accuracy"):
        measure_accuracy(bench)


def _networks(sizes: dict[str, int]) -> dict[str, nn.Module]:
    plain = models.convmixer_spin(rate=1, **sizes)
    online = fuse(plain, "channel_weighted_mean", rate=2)
    return {
        UNSHARED: plain,
        "shared r=2": models.convmixer_spin(rate=2, **sizes),
        "shared r=2, strided": models.convmixer_spin(rate=2, mapping="strided", **sizes),
        "shared r=4": models.convmixer_spin(rate=4, **sizes),
        "fused online r=2 (training form)": online,
        "collapsed r=2": collapse(online),
    }


def _cost(bench: Bench) -> None:
    sizes = {**PAPER, "dim": 32, "depth": 4} if bench.quick else PAPER
    side = 28 if bench.quick else 224
    torch.manual_seed(bench.seed)
    networks = {label: model.to(bench.device).eval() for label, model in _networks(sizes).items()}
    bench.report.heading("Cost of sharing")
    bench.report.text(
        f"ConvMixer-{sizes['dim']}/{sizes['depth']}, patch {sizes['patch_size']}, kernel "
        f"{sizes['kernel_size']}, images of {side} x {side}, float32. All forms are timed in the same "
        "interleaved rounds; read the ratios. Sharing is no speed-up: every layer computes as before. It "
        "saves parameters, download and memory. Online fusion is for training; what one deploys is collapsed."
    )
    _sizes(bench, networks)
    rows = []
    for threads in bench.threads if bench.device == "cpu" else (1,):
        for batch in (1, 16):
            rows += _latencies(bench, networks, side, threads, batch)
    header = ["network", "threads", "batch", "median ms", "images/s", "ratio to unshared", "rounds"]
    bench.report.table("Latency", header, rows)


def _sizes(bench: Bench, networks: dict[str, nn.Module]) -> None:
    with TemporaryDirectory() as folder:
        sizes = {
            label: write_checkpoint(model, Path(folder) / f"{number}.safetensors")
            for number, (label, model) in enumerate(networks.items())
        }
    rows = [
        [label, count_parameters(model), sizes[label], sizes[label] / sizes[UNSHARED]]
        for label, model in networks.items()
    ]
    bench.report.table("Size", ["network", "parameters", "checkpoint bytes", "ratio to unshared"], rows)


def _latencies(
    bench: Bench, networks: dict[str, nn.Module], side: int, threads: int, batch: int
) -> list[list[str | int | float]]:
    images = torch.randn(batch, 3, side, side, device=bench.device)
    with bench.torch_threads(threads), torch.inference_mode():
        timings = bench.compare(
            {label: partial(model, images) for label, model in networks.items()},
            seconds=3.0,
            min_rounds=7 if batch == 1 else 3,
            warmup=1,
        )
    base = timings[UNSHARED].median
    return [
        [label, threads, batch, 1000 * t.median, batch / t.median, t.median / base, t.rounds]
        for label, t in timings.items()
    ]
