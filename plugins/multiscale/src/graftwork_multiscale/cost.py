"""What a schedule will cost before it is run, relative to training at the base scale alone.

Savings depend on what is counted, so every figure comes with its convention: optimiser updates (a step costs
the same at every scale), pixels, or the FLOPs that a counter finds in a model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from graftwork_multiscale.plan import Schedule
from graftwork_multiscale.scales import Scale

ImageCost = Callable[[int, int], float]
"""(height, width) -> cost of one image; only ratios matter."""


@dataclass(frozen=True)
class PlanCost:
    """Expected cost of a training, averaged over its epochs.

    Args:
        updates_ratio: Optimiser updates, as a share of those of single-scale training.
        flops_ratio: Compute for the same number of images, likewise, in the units of the image cost.
        image_shares: Share of all images that is seen at each scale, smallest scale first.
        step_costs: Cost of a step at each scale, as a share of a step at the base.
        pixel_shares: Pixels of a step at each scale, as a share of the budget.
        max_pixels: Pixels of the largest step of one rank.
        mean_batch: Images per step and rank, averaged over steps.
        steps: Expected steps per epoch, None if the number of samples is unknown.
        single_scale_steps: Those of single-scale training.
        mean_area: Mean pixels per image.
    """

    updates_ratio: float
    flops_ratio: float
    image_shares: tuple[float, ...]
    step_costs: tuple[float, ...]
    pixel_shares: tuple[float, ...]
    max_pixels: int
    mean_batch: float
    steps: float | None
    single_scale_steps: float | None
    mean_area: float


def area_cost(height: int, width: int) -> float:
    """Count pixels: what a convolutional network without a head costs, to a fraction of a per cent."""
    return float(height * width)


def plan_cost(
    schedule: Schedule,
    *,
    image_cost: ImageCost = area_cost,
    epochs: int | None = None,
    samples: int | None = None,
) -> PlanCost:
    """Compute what a schedule costs in expectation.

    Example:
        >>> from graftwork_multiscale import make_schedule
        >>> schedule = make_schedule(base_size=1024, base_batch=4, min_size=512, max_size=1280, max_scales=10)
        >>> round(100 * (1 - plan_cost(schedule).updates_ratio), 1)
        36.5

    Args:
        schedule: What to train with.
        image_cost: Cost of one image.
        epochs: Length of the training; that of the curriculum, else 1, when None.
        samples: Samples of one rank.

    Returns:
        The cost; ratios are closed forms, U = b / E[b] and F = E[b_s f_s] / (E[b_s] f_0).
    """
    epochs = epochs or schedule.epochs or 1
    base = schedule.scales[schedule.base]
    costs = [image_cost(scale.height, scale.width) for scale in schedule.scales]
    updates = flops = batches = steps = area = 0.0
    shares = [0.0] * len(schedule.scales)
    for epoch in range(epochs):
        active = schedule.active(epoch)
        mean = sum(p * schedule.scales[i].batch for i, p in active)
        square = sum(p * schedule.scales[i].batch ** 2 for i, p in active)
        updates += schedule.base_batch / mean
        batches += mean
        steps += _expected_steps(schedule, mean, square, samples or 0)
        for i, p in active:
            share = p * schedule.scales[i].batch / mean
            shares[i] += share / epochs
            flops += share * costs[i] / costs[schedule.base]
            area += share * schedule.scales[i].height * schedule.scales[i].width
    base_step = schedule.base_batch * costs[schedule.base]
    base_pixels = schedule.base_batch * base.height * base.width
    pixels = [scale.height * scale.width * scale.batch for scale in schedule.scales]
    return PlanCost(
        updates_ratio=updates / epochs,
        flops_ratio=flops / epochs,
        image_shares=tuple(shares),
        step_costs=tuple(s.batch * c / base_step for s, c in zip(schedule.scales, costs, strict=True)),
        pixel_shares=tuple(count / base_pixels for count in pixels),
        max_pixels=max(pixels),
        mean_batch=batches / epochs,
        steps=steps / epochs if samples else None,
        single_scale_steps=samples / schedule.base_batch if samples else None,
        mean_area=area / epochs,
    )


def _expected_steps(schedule: Schedule, mean: float, square: float, samples: int) -> float:
    """Return E[T]: renewal theory adds the mean overshoot E[b^2] / (2 E[b]) to the samples."""
    overshoot = square / (2 * mean)
    if schedule.last_batch == "drop":
        overshoot -= mean
    return max(0.0, (samples + overshoot) / mean)


def padding_fill(scales: Sequence[Scale], aspect_ratios: Sequence[float]) -> float:
    """Return the share of a step's pixels that images fill when they keep their aspect ratio.

    Each image is fitted into the box of the scale and padded to it, as in a batch that holds images of both
    orientations.

    Example:
        >>> padding_fill([Scale(512, 512, 16)], [4 / 3])
        0.75

    Args:
        scales: The scale table.
        aspect_ratios: Width over height of the images.
    """
    filled = [
        min(scale.width, scale.height * ratio)
        * min(scale.height, scale.width / ratio)
        / (scale.height * scale.width)
        for scale in scales
        for ratio in aspect_ratios
    ]
    return sum(filled) / len(filled)


def head_warning(cost: PlanCost, scales: Sequence[Scale], base: int, limit: float = 1.1) -> str | None:
    """Say where a step costs clearly more than at the base, because part of it is paid per image.

    Args:
        cost: Computed with the FLOPs of the whole model.
        scales: The scale table.
        base: Position of the base scale.
        limit: Share of the base step's cost that is still fine.

    Returns:
        A warning, or None.
    """
    worst = max(range(len(scales)), key=cost.step_costs.__getitem__)
    if cost.step_costs[worst] <= limit:
        return None
    scale = scales[worst]
    return (
        f"a step at {scale.height}x{scale.width} (batch {scale.batch}) costs {cost.step_costs[worst]:.2f} "
        "times a "
        f"base step and holds {scale.batch / scales[base].batch:.1f} times its regions of interest: heads "
        "are "
        "paid per image, not per pixel, so memory peaks at the smallest scale. Try one step there first, or "
        "take cost_model={'type': 'affine', ...}, which saves less."
    )
