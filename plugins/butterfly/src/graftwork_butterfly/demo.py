"""Demonstration: what accuracy a multiply-add buys on handwritten digits, dense and with butterflies."""

from __future__ import annotations

import torch

from graftwork.classify import ImageSet, fit, load_digits
from graftwork.demo import Stage
from graftwork_butterfly.macs import count_macs
from graftwork_butterfly.small import small_mobilenet

FAMILIES = {"dense": (False, (0.125, 0.25, 0.375)), "butterfly": (True, (0.25, 0.5, 0.75))}
"""Butterflies or not, and the widths trained."""


def scene(stage: Stage) -> None:
    """Train small networks of several widths, with and without butterflies, and draw accuracy over cost.

    Args:
        stage: Where to report, and how.
    """
    report = stage.report
    report.text(
        "Six networks of the MobileNetV1 kind learn 1,347 scans of handwritten digits. In half of them the "
        "pointwise convolutions are butterflies: O(n log n) multiplications where a dense layer has n². What "
        "that saves is spent on width."
    )
    train, test = load_digits(size=16, seed=stage.seed)
    if stage.quick:
        train = ImageSet(train.images[:256], train.labels[:256], train.classes)
    rows = []
    for family, (butterfly, widths) in FAMILIES.items():
        for width in widths[:1] if stage.quick else widths:
            torch.manual_seed(stage.seed)
            model = small_mobilenet(width, butterfly=butterfly, in_chans=1)
            result = fit(
                model,
                train,
                test,
                epochs=1 if stage.quick else 12,
                seed=stage.seed,
                device=stage.device,
                progress=stage.progress,
                label=f"{family} {width}",
            )
            counts = count_macs(model, (1, 16, 16))
            parameters = sum(parameter.numel() for parameter in model.parameters())
            share = 100 * counts.pointwise / counts.total
            rows.append([family, width, counts.total, share, parameters, result.accuracy, result.seconds])
    rows.sort(key=lambda row: row[2])
    header = ["network", "width", "multiply-adds", "% pointwise", "parameters", "top-1 %", "training s"]
    report.table("Digits: accuracy and cost", header, rows)
    _plot(stage, rows)
    report.text(
        "Time is another matter than multiply-adds: `graftwork bench butterfly` measures it. Any convolutional "  # noqa: E501
        "network takes part with `graftwork_butterfly.replace_pointwise(model)`."
    )


def _plot(stage: Stage, rows: list[list[object]]) -> None:
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(5, 3.4), layout="constrained")
    for number, family in enumerate(FAMILIES):
        points = [(row[2], row[5], row[1]) for row in rows if row[0] == family]
        axis.plot([p[0] for p in points], [p[1] for p in points], "o-", label=family, color=f"C{number}")
        for macs, accuracy, width in points:
            axis.annotate(
                f"{width}", (macs, accuracy), textcoords="offset points", xytext=(5, -9), fontsize=7
            )
    axis.set(xscale="log", xlabel="multiply-adds per image", ylabel="test accuracy, %")
    axis.grid(alpha=0.3)
    axis.legend()
    stage.report.figure(figure, "accuracy per multiply-add", "Accuracy over cost; labels are widths.")
