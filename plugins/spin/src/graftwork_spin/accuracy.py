"""Accuracy at equal training on a small image set: the sharing rates and weight fusion, several seeds."""

from __future__ import annotations

import statistics
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from torch import nn

from graftwork.bench import Bench
from graftwork.classify import ImageSet, fit, flip_and_shift, load_image_tree
from graftwork_spin import models
from graftwork_spin.cost import count_parameters, write_checkpoint
from graftwork_spin.fusion import fuse

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIZES: dict[str, Any] = {"dim": 64, "depth": 8, "kernel_size": 3, "patch_size": 4}
EPOCHS = 6
LR = 5e-3
SEEDS = (0, 1, 2)
UNSHARED, FUSED = "unshared", "r=2, fused start"
# Rate, and training in units of `epochs`. The fused network goes on from the unshared one, so it has had two
# units in total; r=2 trained twice as long separates fusion from longer training.
SETTINGS: dict[str, tuple[int, int]] = {
    UNSHARED: (1, 1),
    "r=2": (2, 1),
    "r=4": (4, 1),
    FUSED: (2, 1),
    "r=2, twice as long": (2, 2),
}


def measure_accuracy(bench: Bench) -> None:
    """Train every setting with every seed; report mean and spread. Finished runs survive an interruption.

    Args:
        bench: ``bench.data`` holds ``cifar10/train.tar.gz`` and ``cifar10/test.tar.gz``, or the part is
            skipped.
    """
    report = bench.report
    report.heading("Accuracy at equal training")
    folder = None if bench.data is None else bench.data / "cifar10"
    if folder is None or not (folder / "train.tar.gz").exists():
        report.text(
            "Skipped: it needs train.tar.gz and test.tar.gz of CIFAR-10 images in "
            f"{folder or 'DATA/cifar10'}; name the folder with `--data DATA`."
        )
        return
    train, test = (load_image_tree(folder / f"{part}.tar.gz") for part in ("train", "test"))
    epochs, seeds = EPOCHS, SEEDS
    if bench.quick:
        epochs, seeds, train, test = 1, SEEDS[:2], _some(train, 128), _some(test, 128)
    report.text(
        f"ConvMixer, {SIZES['dim']} channels, {SIZES['depth']} layers, patch {SIZES['patch_size']}, on "
        f"{len(train):,} training and {len(test):,} test images of CIFAR-10 (32 x 32, flips and shifts); "
        f"AdamW, learning rate {LR}, batch 64, {epochs} epochs, seeds {', '.join(map(str, seeds))}. "
        f"'{FUSED}' starts from the mean of the trained unshared weights of the same seed and is trained for "
        f"{epochs} epochs more, {2 * epochs} in total; its peer is '{list(SETTINGS)[-1]}', {2 * epochs} "
        "epochs from scratch."
    )
    runs: dict[str, list[dict[str, float]]] = {label: [] for label in SETTINGS}
    with bench.torch_threads(max(bench.threads)):
        for seed in seeds:
            for label in SETTINGS:
                key = f"{label}, {SIZES}, lr {LR}, {epochs} epochs of {len(train)} images, seed {seed}"
                runs[label].append(
                    bench.remember(key, partial(_train, bench, label, seed, epochs, train, test))
                )
    _report(bench, runs)


def _train(
    bench: Bench, label: str, seed: int, epochs: int, train: ImageSet, test: ImageSet
) -> dict[str, float]:
    rate, units = SETTINGS[label]
    weights = bench.report.out / f"unshared-{epochs}-{seed}.safetensors"
    torch.manual_seed(seed)
    model: nn.Module = models.convmixer_spin(
        rate=1 if label == FUSED else rate, num_classes=len(train.classes), **SIZES
    )
    if label == FUSED:
        model = fuse(_unshared(model, weights), "mean", rate=rate)
    result = fit(
        model,
        train,
        test,
        epochs=epochs * units,
        lr=LR,
        augment=flip_and_shift(),
        seed=seed,
        device=bench.device,
        progress=bench.progress,
        label=f"{label}, seed {seed}",
    )
    if label == UNSHARED:
        write_checkpoint(model, weights)
    return {
        "accuracy": result.accuracy,
        "parameters": count_parameters(model),
        "seconds": result.seconds,
        "images_per_second": result.images_per_second,
    }


def _unshared(model: nn.Module, weights: Path) -> nn.Module:
    if not weights.exists():
        raise FileNotFoundError(
            f"{weights} is gone, which the finished unshared run had written: delete finished.json beside it "
            "to train that network again."
        )
    model.load_state_dict(load_file(weights))
    return model


def _some(data: ImageSet, count: int) -> ImageSet:
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[:count]
    return ImageSet(data.images[order], data.labels[order], data.classes)


def _report(bench: Bench, runs: dict[str, list[dict[str, float]]]) -> None:
    rows: list[list[str | int | float | None]] = []
    for label, found in runs.items():
        values = [run["accuracy"] for run in found]
        rows.append(
            [
                label,
                int(found[0]["parameters"]),
                statistics.mean(values),
                statistics.stdev(values),
                min(values),
                max(values),
                statistics.mean(run["images_per_second"] for run in found),
            ]
        )
    header = ["network", "parameters", "accuracy %", "std", "lowest", "highest", "training images/s"]
    bench.report.table("Accuracy", header, rows)
    bench.report.figure(
        _figure(runs), "accuracy", "Test accuracy of every seed (dots) and their mean (bars), by sharing."
    )


def _figure(runs: dict[str, list[dict[str, float]]]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.8), layout="constrained")
    axis = figure.subplots()
    for position, found in enumerate(runs.values()):
        values = [run["accuracy"] for run in found]
        axis.barh(position, statistics.mean(values), color="#9ecae1")
        axis.plot(values, [position] * len(values), "o", color="#08519c", ms=5)
    every = [run["accuracy"] for found in runs.values() for run in found]
    axis.set_xlim(max(0.0, min(every) - 5), max(every) + 1)
    labels = [f"{label}\n{int(found[0]['parameters']):,} parameters" for label, found in runs.items()]
    axis.set_yticks(range(len(labels)), labels)
    axis.invert_yaxis()
    axis.set_xlabel("top-1 test accuracy, % (the axis does not start at 0)")
    axis.grid(axis="x", alpha=0.3)
    return figure
