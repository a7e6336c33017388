"""Accuracy and calibration over test sides."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from graftwork_multiscale.evaluate import (
    SideResult,
    calibration_error,
    evaluate_sides,
    mean_over_sides,
    plot_sides,
)

pytest.importorskip("torchmetrics", reason="torchmetrics is not installed")


def ece_by_definition(logits: Tensor, labels: Tensor, bins: int = 15) -> float:
    confidence, prediction = logits.double().softmax(1).max(1)
    total = 0.0
    for i in range(bins):
        inside = (confidence > i / bins) & (confidence <= (i + 1) / bins)
        if inside.any():
            accuracy = (prediction == labels)[inside].double().mean()
            total += float(inside.double().mean() * (accuracy - confidence[inside].mean()).abs())
    return total


def test_the_error_is_that_of_its_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(500, 7, generator=generator) * 2
    labels = torch.randint(0, 7, (500,), generator=generator)
    assert calibration_error(logits, labels) == pytest.approx(ece_by_definition(logits, labels), abs=1e-5)


def test_certainty_that_is_right_has_no_error_and_certainty_that_is_wrong_has_all() -> None:
    logits, labels = torch.eye(4) * 100, torch.arange(4)
    assert calibration_error(logits, labels) == pytest.approx(0, abs=1e-6)
    assert calibration_error(logits, (labels + 1) % 4) == pytest.approx(1, abs=1e-6)


class KnowsOneSide(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        right = images[:, 0, 0, 0].long()
        return 50 * nn.functional.one_hot(right if images.shape[-1] == 8 else (right + 1) % 3, 3).float()


def test_every_side_is_tested_and_the_mode_is_kept() -> None:
    labels = torch.arange(12) % 3

    def batches(side: int) -> list[tuple[Tensor, Tensor]]:
        images = labels.float().view(-1, 1, 1, 1).expand(-1, 1, side, side)
        return [(images[:5], labels[:5]), (images[5:], labels[5:])]

    model = KnowsOneSide().train()
    results = evaluate_sides(model, batches, [4, 8])
    assert [(r.side, r.accuracy, r.samples) for r in results] == [(4, 0, 12), (8, 100, 12)]
    assert results[0].ece == pytest.approx(1, abs=1e-5)
    assert model.training


def test_means_over_sides() -> None:
    results = [SideResult(16, 40, 0, 1), SideResult(32, 80, 0, 1), SideResult(64, 60, 0, 1)]
    assert mean_over_sides(results) == pytest.approx((16 * 60 + 32 * 70) / 48)
    assert mean_over_sides(results, exclude=32) == 50
    assert mean_over_sides(results[:1]) == 40


def test_the_plot_has_a_line_per_model_and_panel() -> None:
    pytest.importorskip("matplotlib")
    curve = [SideResult(16, 40, 0.1, 1), SideResult(32, 80, 0.2, 1)]
    figure = plot_sides({"one": curve, "two": curve}, base=32)
    assert [len(panel.lines) for panel in figure.axes] == [3, 3]
