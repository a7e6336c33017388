"""Time of one layer, relative to the dense pointwise convolution it replaces."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch

from graftwork.bench import Bench, Timing
from graftwork_butterfly.bench.peers import competitors, training_step

COLUMNS = ("released", "radix-2 stack", "staged", "two_factor", "fused")
LARGE = 2**23
"""Activations of a cell from which on only the quick forms are timed, and for fewer rounds."""


@dataclass(frozen=True)
class Cell:
    """One row of the table.

    Args:
        channels: Order n.
        side: Height and width of the map.
        batch: Images.
    """

    channels: int
    side: int
    batch: int

    @property
    def large(self) -> bool:
        """Whether its peers would take minutes and gigabytes."""
        return self.channels * self.side**2 * self.batch > LARGE


TARGETS = {Cell(64, 56, 1): 0.4, Cell(256, 14, 1): 0.25, Cell(1024, 14, 1): 0.06}
"""Forward ratio of the fused kernel that this package promises."""


def measure_layers(bench: Bench) -> None:
    """Measure the table of ratios, forward and with gradients, for every thread count.

    Args:
        bench: Where to report, and on what.
    """
    channels = (64, 128) if bench.quick else (64, 128, 256, 512, 1024)
    sides, batches = ((7,), (1, 2)) if bench.quick else ((14, 56), (1, 16))
    cells = [Cell(n, side, batch) for n in channels for side in sides for batch in batches]
    bench.report.heading("One layer")
    bench.report.text(
        "Square layers, float32, base 4. A figure is the time of a form divided by that of the dense 1x1 "
        "convolution of the same shape, medians of interleaved rounds; below 1 is faster. `released` is the "
        "arithmetic of the released code (multiply the matrix out, then convolve), `radix-2 stack` one broadcast "  # noqa: E501
        "product per radix-2 stage, `staged` one einsum per mixed-radix stage, `two_factor` two batched matrix "  # noqa: E501
        "products, `fused` the native kernel. Cells with more than 8 million activations leave the slow forms out."  # noqa: E501
    )
    torch.manual_seed(bench.seed)
    for threads in bench.threads if bench.device == "cpu" else (1,):
        with bench.torch_threads(threads):
            for training in (False, True):
                measured = {cell: _measure(bench, cell, training) for cell in cells}
                _report(bench, measured, threads, training)
    _layouts(bench, channels, sides)


def _measure(
    bench: Bench,
    cell: Cell,
    training: bool,
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.contiguous_format,
    few: bool = False,
) -> dict[str, Timing]:
    x = torch.randn(cell.batch, cell.channels, cell.side, cell.side, dtype=dtype, device=bench.device)
    x = x.contiguous(memory_format=memory_format)
    layers = competitors(cell.channels, few=few or cell.large)
    rounds = {"min_rounds": 3, "warmup": 1} if cell.large else {"min_rounds": 5}
    for layer in layers.values():
        layer.to(device=bench.device, dtype=dtype)
    if training:
        x.requires_grad_()
        grad = torch.randn_like(x)
        calls = {label: training_step(layer, x, grad) for label, layer in layers.items()}
        return bench.compare(calls, seconds=0.15, **rounds)
    with torch.no_grad():
        return bench.compare({k: partial(v, x) for k, v in layers.items()}, seconds=0.15, **rounds)


def _report(bench: Bench, measured: dict[Cell, dict[str, Timing]], threads: int, training: bool) -> None:
    what = "forward and backward" if training else "forward"
    rows = []
    for cell, timings in measured.items():
        dense = timings["dense"].median
        ratios = [timings[label].median / dense if label in timings else None for label in COLUMNS]
        rows.append([cell.channels, f"{cell.side}x{cell.side}", cell.batch, 1000 * dense, *ratios])
    name = f"Time relative to dense, {what}, threads {threads}"
    bench.report.table(name, ["n", "map", "batch", "dense ms", *COLUMNS], rows)
    _plot(bench, measured, name)
    _compare_with_targets(bench, measured, threads, training)


def _compare_with_targets(
    bench: Bench, measured: dict[Cell, dict[str, Timing]], threads: int, training: bool
) -> None:
    ratios = {cell: t["fused"].median / t["dense"].median for cell, t in measured.items()}
    if training:
        rows = [["n >= 256", 0.6, max((r for c, r in ratios.items() if c.channels >= 256), default=None)]]
    else:
        rows = [
            [f"n = {cell.channels}, {cell.side}x{cell.side}, batch {cell.batch}", target, ratios.get(cell)]
            for cell, target in TARGETS.items()
        ]
    rows.append(["every cell", 1.0, max(ratios.values())])
    answers = [
        [where, target, found, "-" if found is None else "yes" if found <= target else "NO"]
        for where, target, found in rows
    ]
    what = "forward and backward" if training else "forward"
    bench.report.table(
        f"Promised and measured, {what}, threads {threads}", ["where", "at most", "fused", "kept"], answers
    )


def _layouts(bench: Bench, channels: tuple[int, ...], sides: tuple[int, ...]) -> None:
    """Channels-last and bfloat16, each against the dense convolution in the same layout and precision."""
    forms = {
        "channels-last float32": (torch.float32, torch.channels_last),
        "contiguous bfloat16": (torch.bfloat16, torch.contiguous_format),
        "channels-last bfloat16": (torch.bfloat16, torch.channels_last),
    }
    threads = bench.threads[0]
    rows = []
    with bench.torch_threads(threads):
        for n in channels:
            for side in sides:
                row: list[str | int | float] = [n, f"{side}x{side}", 1]
                for dtype, memory_format in forms.values():
                    timings = _measure(bench, Cell(n, side, 1), False, dtype, memory_format, few=True)
                    dense = timings["dense"].median
                    row += [1000 * dense, timings["fused"].median / dense]
                rows.append(row)
    header = ["n", "map", "batch"]
    for label in forms:
        header += [f"dense ms, {label}", f"fused, {label}"]
    bench.report.table(f"Other layouts and precision, forward, threads {threads}", header, rows)


def _plot(bench: Bench, measured: dict[Cell, dict[str, Timing]], name: str) -> None:
    import matplotlib.pyplot as plt

    groups = sorted({(cell.side, cell.batch) for cell in measured})
    figure, axes = plt.subplots(
        1, len(groups), figsize=(3.4 * len(groups), 3.4), sharey=True, squeeze=False, layout="constrained"
    )
    for axis, (side, batch) in zip(axes[0], groups):
        for number, label in enumerate(COLUMNS):
            points = [
                (cell.channels, timings[label].median / timings["dense"].median)
                for cell, timings in measured.items()
                if (cell.side, cell.batch) == (side, batch) and label in timings
            ]
            axis.plot(*zip(*points), marker="o", label=label, color=f"C{number}") if points else None
        axis.axhline(1, color="black", linewidth=0.8)
        axis.set(xscale="log", yscale="log", title=f"{side}x{side}, batch {batch}", xlabel="channels n")
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("time / time of dense")
    axes[0][0].legend(fontsize=7)
    bench.report.figure(figure, name, f"{name}: below the black line is faster than the dense convolution.")
