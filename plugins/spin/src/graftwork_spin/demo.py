"""Demonstration: a ConvMixer with shared weights beside the same ConvMixer without, on handwritten digits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from graftwork.classify import FitResult, ImageSet, fit, load_digits
from graftwork.demo import Stage
from graftwork_spin import models
from graftwork_spin.cost import count_parameters, write_checkpoint
from graftwork_spin.fusion import fuse

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RATE = 2
SIZES: dict[str, Any] = {"dim": 64, "depth": 8, "kernel_size": 3, "patch_size": 2}
LABELS = ("unshared", f"shared, r={RATE}", f"shared, r={RATE}, fused start")
COLOURS = ("#7f7f7f", "#1f77b4", "#2ca02c")


@dataclass(frozen=True)
class Trained:
    """A trained network and what it cost.

    Args:
        label: Name in tables and pictures.
        model: The network.
        checkpoint: Size of its checkpoint in bytes.
        fit: What training gave.
    """

    label: str
    model: nn.Module
    checkpoint: int
    fit: FitResult


def scene(stage: Stage) -> None:
    """Train the three networks and report parameters, checkpoint bytes, accuracy and images per second.

    Args:
        stage: Where to report, and whether to be quick.
    """
    train, test = load_digits(seed=stage.seed)
    epochs = 1 if stage.quick else 15
    if stage.quick:
        train = ImageSet(train.images[:256], train.labels[:256], train.classes)
    report = stage.report
    report.heading("SPIN: layers that share their weights")
    report.text(
        f"`convmixer_spin` (here {SIZES['dim']} channels, {SIZES['depth']} layers, patch "
        f"{SIZES['patch_size']}) lets {RATE} neighbouring layers use one pointwise weight. It is trained on "
        f"{len(train):,} scanned digits for {epochs} epochs and tested on {len(test):,} others, beside "
        "the same network without sharing. The third network begins with the mean of the trained "
        "unshared weights (weight fusion) and is trained for the same number of epochs again, so it has "
        "had twice the training in total."
    )
    with _one_thread(stage.device):
        runs = _train_all(stage, train, test, epochs)
    _report(stage, runs, len(test))


def _train_all(stage: Stage, train: ImageSet, test: ImageSet, epochs: int) -> list[Trained]:
    runs: list[Trained] = []
    for label in LABELS:
        torch.manual_seed(stage.seed)
        if label == LABELS[2]:
            model = fuse(runs[0].model, "mean", rate=RATE)
        else:
            rate = 1 if label == LABELS[0] else RATE
            model = models.convmixer_spin(
                rate=rate, in_chans=train.images.shape[1], num_classes=len(train.classes), **SIZES
            )
        result = fit(
            model,
            train,
            test,
            epochs=epochs,
            lr=1e-2,
            seed=stage.seed,
            device=stage.device,
            progress=stage.progress,
            label=label,
        )
        name = f"convmixer_spin-{len(runs)}-{label.replace(', ', '-').replace(' ', '-').replace('=', '')}"
        runs.append(
            Trained(label, model, write_checkpoint(model, stage.report.out / f"{name}.safetensors"), result)
        )
    return runs


def _report(stage: Stage, runs: list[Trained], tested: int) -> None:
    rows = [
        [
            run.label,
            count_parameters(run.model),
            run.checkpoint,
            run.fit.accuracy,
            round(run.fit.images_per_second),
        ]
        for run in runs
    ]
    stage.report.table(
        "Digits, shared and unshared",
        ["network", "parameters", "checkpoint bytes", "test accuracy %", "training images/s"],
        rows,
    )
    stage.report.figure(
        _figure(runs),
        "spin-digits",
        "Left: training loss of each epoch. Right: size of the checkpoint on disk, with the test accuracy.",
    )
    plain, shared, fused = runs
    stage.report.text(
        f"Sharing shrank the checkpoint from {plain.checkpoint:,} to {shared.checkpoint:,} bytes "
        f"({shared.checkpoint / plain.checkpoint:.0%}). Test accuracy was {plain.fit.accuracy:.1f} % without "
        f"sharing, {shared.fit.accuracy:.1f} % with it and {fused.fit.accuracy:.1f} % from the fused start; "
        f"one test image more or less is {100 / tested:.1f} %, so small differences mean nothing. Sharing "
        "saves memory and download, not time: every layer still computes."
    )


def _figure(runs: list[Trained]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.8), layout="constrained")
    curves, bars = figure.subplots(1, 2)
    for run, colour in zip(runs, COLOURS):
        curves.plot(
            range(1, len(run.fit.losses) + 1), run.fit.losses, marker="o", ms=3, color=colour, label=run.label
        )
    curves.set(xlabel="epoch", ylabel="training loss (log scale)", yscale="log", title="Training")
    curves.legend()
    curves.grid(alpha=0.3)
    drawn = bars.bar(
        [run.label.replace(", ", "\n") for run in runs],
        [run.checkpoint / 1000 for run in runs],
        color=COLOURS,
    )
    bars.bar_label(drawn, [f"{run.fit.accuracy:.1f} %" for run in runs], padding=3)
    bars.set(ylabel="checkpoint (kB)", title="Size on disk; test accuracy above the bars")
    bars.margins(y=0.15)
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
