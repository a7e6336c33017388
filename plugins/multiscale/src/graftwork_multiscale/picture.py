"""A schedule as a picture: the steps of an epoch, and who sees how much over the training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graftwork_multiscale.cost import plan_cost
from graftwork_multiscale.plan import Schedule

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw_schedule(
    schedule: Schedule, samples: int, epochs: int, *, epoch: int = 0, steps: int = 60
) -> Figure:
    """Draw the first steps of an epoch, the pixels they take, and the share of images at every scale.

    Args:
        schedule: What to draw.
        samples: Samples of one rank.
        epochs: Length of the training.
        epoch: Whose steps are drawn.
        steps: How many at most.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6), layout="constrained")
    figure.suptitle(f"{schedule.mode}, base {_size(schedule, schedule.base)}, batch {schedule.base_batch}")
    (top_left, top_right), (bottom_left, bottom_right) = figure.subplots(2, 2, width_ratios=(2, 1))
    plan = schedule.plan(epoch, samples)
    shown = plan[:steps]
    heights = [schedule.scales[step.scale].height for step in shown]
    batches = [step.batch for step in shown]
    top_left.bar(range(len(shown)), heights, color="tab:blue")
    top_left.set(ylabel="height (pixels)", title=f"epoch {epoch}: {len(plan)} steps")
    bottom_left.bar(range(len(shown)), batches, color="tab:orange", label="images")
    bottom_left.set(xlabel="step", ylabel="images per step and rank")
    pixels = bottom_left.twinx()
    areas = [schedule.scales[step.scale] for step in shown]
    megapixels = [
        step.batch * scale.height * scale.width / 1e6 for step, scale in zip(shown, areas, strict=True)
    ]
    pixels.plot(range(len(shown)), megapixels, color="black", linewidth=1)
    pixels.set(ylabel="megapixels (line)", ylim=(0, 1.15 * max(megapixels, default=1)))
    _shares(top_right, schedule, epochs)
    _probabilities(bottom_right, schedule, epochs)
    return figure


def _size(schedule: Schedule, position: int) -> str:
    scale = schedule.scales[position]
    return str(scale.height) if scale.height == scale.width else f"{scale.height}x{scale.width}"


def _shares(panel: Axes, schedule: Schedule, epochs: int) -> None:
    labels = [_size(schedule, i) for i in range(len(schedule.scales))]
    shares = plan_cost(schedule, epochs=epochs).image_shares
    panel.barh(labels, [100 * share for share in shares], color="tab:green")
    panel.set(xlabel="images seen (%)", title="share of images at each scale")


def _probabilities(panel: Axes, schedule: Schedule, epochs: int) -> None:
    grid = [[0.0] * epochs for _ in schedule.scales]
    for epoch in range(epochs):
        for position, probability in schedule.active(epoch):
            grid[position][epoch] = probability
    image = panel.imshow(
        grid, aspect="auto", origin="lower", cmap="Blues", vmin=0, vmax=max(0.5, *map(max, grid))
    )
    image.set_interpolation("nearest")
    panel.figure.colorbar(image, ax=panel)
    panel.set(xlabel="epoch", title="probability per step")
    panel.set_yticks(range(len(grid)), [_size(schedule, i) for i in range(len(grid))])
