"""Demonstration: one digits network at every level, beside one that never learned to be compressed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from graftwork.classify import ImageSet, load_digits
from graftwork.demo import Stage
from graftwork_subspaces.digits import GRIDS, DigitsNet, curve, fit
from graftwork_subspaces.net import CompressibleNet
from graftwork_subspaces.samplers import Fixed
from graftwork_subspaces.training import calibrate
from graftwork_subspaces.wrap import wrap

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LINE, POINT, PLAIN = "line (LCS+L)", "point (LCS+P)", "trained uncompressed"
COLOURS = {LINE: "#1f77b4", POINT: "#2ca02c", PLAIN: "#7f7f7f"}
AXES = {"sparse": "kept weights", "width": "width", "quant": "bits"}
EPOCHS = {"sparse": 30, "width": 15, "quant": 20}


@dataclass(frozen=True)
class Curve:
    """Accuracy of one network at every level.

    Args:
        regime: What is compressed.
        label: Which network.
        values: Accuracy from 0 to 1, along the regime's grid.
    """

    regime: str
    label: str
    values: Sequence[float]


def scene(stage: Stage) -> None:
    """Train nine small networks and draw their accuracy against the level.

    Args:
        stage: Where to report, and whether to be quick.
    """
    train, test = load_digits(seed=stage.seed)
    if stage.quick:
        train = ImageSet(train.images[:256], train.labels[:256], train.classes)
    report = stage.report
    report.heading("Compressible subspaces: one network, any compression level")
    report.text(
        f"A network of four convolutions is trained on {len(train):,} scanned digits of 8x8 pixels and "
        "tested on "
        f"{len(test):,} others at every level of compression, without retraining or recalibration in "
        "between. "
        f"*{LINE}* trains two sets of weights and every level has its place between them; *{POINT}* trains "
        "one "
        f"set for all levels; *{PLAIN}* is the ordinary network, compressed afterwards in the same way. One "
        "test "
        f"image is {100 / len(test):.1f} %."
    )
    with _one_thread(stage.device):
        curves: list[Curve] = []
        width: CompressibleNet | None = None
        for regime in GRIDS:
            for label in (LINE, POINT, PLAIN):
                net = _train(stage, train, regime, label)
                curves.append(Curve(regime, label, curve(net, test)))
                width = net if (regime, label) == ("width", POINT) else width
            _tabulate(stage, [c for c in curves if c.regime == regime])
        report.figure(
            _figure(curves),
            "accuracy-against-level",
            "Test accuracy of the same network at every level; compression grows to the left.",
        )
        assert width is not None
        report.heading("What a level costs")
        report.text("The nominal figures say nothing about time, so the time is measured (`net.stats`).")
        for value in (1.0, 0.5, 0.25):
            report.text(f"```\n{width.stats(width=value, input_size=(1, 8, 8))}\n```")
    report.text(_conclusion(curves))


def _train(stage: Stage, train: ImageSet, regime: str, label: str) -> CompressibleNet:
    torch.manual_seed(stage.seed)
    kind: Literal["line", "point"] = "line" if label == LINE else "point"
    grid = GRIDS[regime]
    net = wrap(
        DigitsNet(),
        regime=regime,  # type: ignore[arg-type]
        subspace=kind,
        input_size=(1, 8, 8),
        multiple=1,
        sampler=Fixed((1.0,)) if label == PLAIN else None,
        levels={"lo": grid[0], "hi": grid[-1]},
    )
    epochs = 1 if stage.quick else EPOCHS[regime]
    rate = 0.025 if regime == "quant" else 0.1
    name = f"{regime}, {label}"
    fit(net, train, epochs=epochs, lr=rate, seed=stage.seed, progress=stage.progress, label=name)
    if regime == "quant":
        calibrate(net, [train.images[:256]])
    return net


def _tabulate(stage: Stage, curves: Sequence[Curve]) -> None:
    regime = curves[0].regime
    header = [AXES[regime], *(f"{value:g}" for value in GRIDS[regime])]
    rows = [[c.label, *(round(100 * value, 1) for value in c.values)] for c in curves]
    stage.report.table(f"Test accuracy in % by {AXES[regime]}", header, rows)


def _conclusion(curves: Sequence[Curve]) -> str:
    first = {(c.regime, c.label): 100 * c.values[0] for c in curves}
    last = {(c.regime, c.label): 100 * c.values[-1] for c in curves}
    parts = [
        f"{AXES[regime]} {GRIDS[regime][0]:g}: {first[regime, LINE]:.1f} % on the line, "
        f"{first[regime, POINT]:.1f} % for the point, {first[regime, PLAIN]:.1f} % trained uncompressed "
        f"(uncompressed: {last[regime, LINE]:.1f}, {last[regime, POINT]:.1f}, {last[regime, PLAIN]:.1f} %)"
        for regime in GRIDS
    ]
    return "At the most compressed level, " + "; ".join(parts) + "."


def _figure(curves: Sequence[Curve]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.8), layout="constrained")
    for axes, regime in zip(figure.subplots(1, 3, sharey=True), GRIDS):
        for c in curves:
            if c.regime == regime:
                style = "--" if c.label == PLAIN else "-"
                percent = [100 * value for value in c.values]
                axes.plot(
                    GRIDS[regime], percent, style, marker="o", ms=4, color=COLOURS[c.label], label=c.label
                )
        axes.set(xlabel=AXES[regime], title=f"regime '{regime}'", ylim=(0, 102))
        if regime == "sparse":
            axes.set_xscale("log")
            axes.set_ylabel("test accuracy %")
        axes.grid(alpha=0.3)
        axes.legend(loc="lower right", fontsize=8)
    return figure


@contextmanager
def _one_thread(device: str) -> Iterator[None]:
    """Keep torch on one thread: for layers this small a second one costs more than it brings."""
    before = torch.get_num_threads()
    if device == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
