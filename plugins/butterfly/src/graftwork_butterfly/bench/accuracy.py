"""Accuracy on real images at equal multiply-adds: a narrow dense network against a wide one with butterflies."""  # noqa: E501

from __future__ import annotations

import statistics
from pathlib import Path

import torch

from graftwork.bench import Bench
from graftwork.classify import ImageSet, fit, flip_and_shift, load_image_tree
from graftwork_butterfly.macs import count_macs
from graftwork_butterfly.small import small_mobilenet

NETWORKS = {"dense 0.35": (0.35, False), "butterfly 0.75": (0.75, True)}
"""Widths of about equal multiply-adds; the paper pairs 0.25 with 1.0 at different resolutions."""


def measure_accuracy(bench: Bench) -> None:
    """Train both networks with several seeds and compare them.

    Args:
        bench: Where to report; needs the folder ``cifar10`` in its data.
    """
    bench.report.heading("Accuracy at equal multiply-adds")
    folder = None if bench.data is None else Path(bench.data) / "cifar10"
    if folder is None or not (folder / "train.tar.gz").is_file():
        bench.report.text("Skipped: there is no `cifar10` folder in the data (`--data DIR`).")
        return
    train = load_image_tree(folder / "train.tar.gz")
    test = load_image_tree(folder / "test.tar.gz")
    epochs, seeds = (1, 1) if bench.quick else (14, 3)
    if bench.quick:
        train = ImageSet(train.images[::40], train.labels[::40], train.classes)
    bench.report.text(
        f"{len(train):,} training and {len(test):,} test images of CIFAR-10, {epochs} epochs of AdamW, crops and "  # noqa: E501
        f"flips, {seeds} seeds. Butterfly weights are exempt from weight decay by timm's own rule. This is a small "  # noqa: E501
        "fraction of CIFAR-10 and a short schedule: read the difference, not the height."
    )
    rows = []
    with bench.torch_threads(max(bench.threads)):
        for label, (width, butterfly) in NETWORKS.items():
            results = [
                bench.remember(
                    f"accuracy {label} width {width} epochs {epochs} images {len(train)} seed {seed}",
                    lambda seed=seed: _train(bench, train, test, width, butterfly, epochs, seed),  # noqa: B023
                )
                for seed in range(bench.seed, bench.seed + seeds)
            ]
            model = small_mobilenet(width, butterfly=butterfly, in_chans=3)
            top1 = [result["accuracy"] for result in results]
            rows.append(
                [
                    label,
                    count_macs(model, (3, 32, 32)).total,
                    count_macs(model, (3, 32, 32), convention="paper").total,
                    sum(parameter.numel() for parameter in model.parameters()),
                    statistics.mean(top1),
                    statistics.stdev(top1) if len(top1) > 1 else None,
                    ", ".join(f"{value:.2f}" for value in top1),
                    statistics.mean(result["seconds"] for result in results),
                ]
            )
    header = ["network", "multiply-adds", "by the paper's count", "parameters", "top-1 %", "std", "each seed"]
    rows.sort(key=lambda row: -float(row[4]))
    bench.report.table("CIFAR-10 subset at equal multiply-adds", [*header, "training s"], rows)
    _plot(bench, rows)


def _train(
    bench: Bench, train: ImageSet, test: ImageSet, width: float, butterfly: bool, epochs: int, seed: int
) -> dict[str, float]:
    torch.manual_seed(seed)
    model = small_mobilenet(width, butterfly=butterfly, in_chans=3)
    label = f"{'butterfly' if butterfly else 'dense'} {width}, seed {seed}"
    result = fit(
        model,
        train,
        test,
        epochs=epochs,
        augment=flip_and_shift(),
        seed=seed,
        device=bench.device,
        progress=bench.progress,
        label=label,
    )
    return {"accuracy": result.accuracy, "seconds": result.seconds}


def _plot(bench: Bench, rows: list[list[object]]) -> None:
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(4, 3), layout="constrained")
    for number, row in enumerate(rows):
        values = [float(text) for text in str(row[6]).split(", ")]
        axis.plot([number] * len(values), values, "o", color=f"C{number}")
    axis.set_xticks(range(len(rows)), [f"{row[0]}\n{int(str(row[1])) / 1e6:.2f} M" for row in rows])
    axis.set_xlim(-0.5, len(rows) - 0.5)
    axis.set_ylabel("top-1 %, one dot per seed")
    bench.report.figure(figure, "accuracy", "Test accuracy of each seed; below the name, multiply-adds.")
