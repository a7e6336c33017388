"""What both accuracy studies have in common: resumable results, and the question what eats the saving."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftwork.report import Cell

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MODES: Mapping[str, str] = {"ssc": "SSc-FBS", "vbs": "MSc-VBS", "vbswc": "MSc-VBSWC"}


def remembered(path: Path, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return the result in a file, or run and write it; an interrupted study goes on with the next run.

    Args:
        path: JSON file.
        run: Makes the result.
    """
    if path.exists():
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return result
    result = run()
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps(result), encoding="utf-8")
    temporary.replace(path)
    return result


def spread(values: Sequence[float]) -> str:
    """Format the mean with the standard deviation over seeds."""
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"


def cost_by_side(
    steps: Iterable[tuple[int, int, float]], base: int, flops: Callable[[int], float]
) -> list[list[Cell]]:
    """Compare the measured time per image at every side with the computed FLOPs per image.

    Args:
        steps: (side, images, seconds) of every step; the median per side counts.
        base: Side that both are relative to.
        flops: Side -> FLOPs of one image.

    Returns:
        Rows of side, batch, measured milliseconds per image, measured and computed cost relative to the base.
    """
    by_side: dict[tuple[int, int], list[float]] = {}
    for side, images, seconds in steps:
        by_side.setdefault((side, images), []).append(seconds / images)
    # trimmed or refitted batches are rare; the full batch of a side is the most frequent
    full = {
        side: max((images for s, images in by_side if s == side), key=lambda n: len(by_side[side, n]))
        for side, _ in by_side
    }
    times = {side: statistics.median(by_side[side, images]) for side, images in full.items()}
    if base not in times:
        return []
    return [
        [side, full[side], 1000 * times[side], times[side] / times[base], flops(side) / flops(base)]
        for side in sorted(times)
    ]


def draw_losses(curves: Mapping[str, Sequence[tuple[float, float]]], ylabel: str = "training loss") -> Figure:
    """Draw loss over epochs, one line per mode.

    Args:
        curves: Label to (epoch, loss).
        ylabel: What is drawn.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    panel = figure.subplots()
    for label, points in curves.items():
        panel.plot([epoch for epoch, _ in points], [loss for _, loss in points], label=label)
    panel.set(xlabel="epoch", ylabel=ylabel)
    panel.grid(alpha=0.3)
    panel.legend()
    return figure
