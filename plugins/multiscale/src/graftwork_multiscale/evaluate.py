"""Accuracy and calibration over test sizes: does a model hold up away from the size it was tuned for?

The calibration error is the top-label ECE with equal-width bins, sum over bins of |B_m| / N |acc(B_m) -
conf(B_m)|, at the logits as they are, without temperature scaling.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BINS = 15
Batches = Callable[[int], Iterable[tuple[Tensor, Tensor]]]


@dataclass(frozen=True)
class SideResult:
    """A classifier at one test size.

    Args:
        side: Pixels.
        accuracy: Top-1, in percent.
        ece: Expected calibration error, 0 to 1.
        samples: Number of test images.
    """

    side: int
    accuracy: float
    ece: float
    samples: int


def calibration_error(logits: Tensor, labels: Tensor, bins: int = BINS) -> float:
    """Return the expected calibration error of the predicted class, with torchmetrics.

    Args:
        logits: (N, classes).
        labels: (N,).
        bins: Number of equal-width bins of confidence.

    Returns:
        0 for a model that is right exactly as often as it is sure, at most 1.
    """
    from torchmetrics.functional.classification import multiclass_calibration_error

    error = multiclass_calibration_error(
        logits.float().softmax(1), labels, num_classes=logits.shape[1], n_bins=bins, norm="l1"
    )
    return float(error)


@torch.no_grad()
def evaluate_sides(
    model: nn.Module, batches: Batches, sides: Sequence[int], *, device: str | torch.device = "cpu"
) -> list[SideResult]:
    """Test a classifier at several sizes.

    Example:
        >>> results = evaluate_sides(model, lambda side: test_loader(side), range(128, 385, 32))  # doctest:
        +SKIP

    Args:
        model: Maps (B, C, H, W) to logits; left in the mode it was in.
        batches: Gives the test set at a side, as (images, labels).
        sides: In pixels.
        device: Where to compute.

    Returns:
        One result per side.
    """
    was_training = model.training
    model.to(device).eval()
    results = []
    for side in sides:
        outputs, targets = [], []
        for images, labels in batches(side):
            outputs.append(model(images.to(device)).float().cpu())
            targets.append(labels.cpu())
        logits, truth = torch.cat(outputs), torch.cat(targets)
        accuracy = 100 * float((logits.argmax(1) == truth).float().mean())
        results.append(SideResult(side, accuracy, calibration_error(logits, truth), len(truth)))
    model.train(was_training)
    return results


def mean_over_sides(results: Sequence[SideResult], exclude: int | None = None) -> float:
    """Return the area under the curve of accuracy over sides, divided by its width.

    Args:
        results: Sorted by side.
        exclude: A side that is left out, such as the one trained at; the mean is then over the others'
            points.

    Returns:
        Percent.
    """
    if exclude is not None:
        others = [result.accuracy for result in results if result.side != exclude]
        return sum(others) / len(others)
    if len(results) == 1:
        return results[0].accuracy
    area = sum((b.side - a.side) * (a.accuracy + b.accuracy) / 2 for a, b in pairwise(results))
    return area / (results[-1].side - results[0].side)


def plot_sides(curves: Mapping[str, Sequence[SideResult]], base: int | None = None) -> Figure:
    """Draw accuracy and calibration error over test sides, one line per model.

    Args:
        curves: Label to results.
        base: Marked with a vertical line.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    panels = figure.subplots(1, 2)
    for label, results in curves.items():
        sides = [result.side for result in results]
        panels[0].plot(sides, [result.accuracy for result in results], marker="o", label=label)
        panels[1].plot(sides, [100 * result.ece for result in results], marker="o", label=label)
    for panel, title in zip(panels, ("top-1 accuracy (%)", "expected calibration error (%)"), strict=True):
        panel.set(xlabel="test side (pixels)", ylabel=title)
        panel.grid(alpha=0.3)
        if base is not None:
            panel.axvline(base, color="grey", linestyle=":")
    panels[0].legend()
    return figure
