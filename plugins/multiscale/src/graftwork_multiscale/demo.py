"""The demonstration: a small Mask R-CNN learns generated shapes with the variable-batch sampler."""

from __future__ import annotations

from collections import Counter
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from graftwork.demo import Stage
from graftwork_multiscale.cost import plan_cost
from graftwork_multiscale.picture import draw_schedule
from graftwork_multiscale.plan import make_schedule

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def scene(stage: Stage) -> None:
    """Lay out a schedule, train with it, and show masks.

    Args:
        stage: Where to report.
    """
    epochs = 1 if stage.quick else 16
    schedule = make_schedule(base_size=224, base_batch=128, min_size=128, max_size=320, max_scales=10)
    cost = plan_cost(schedule)
    stage.report.heading("The scale table of ImageNet classification")
    stage.report.table(
        "Seven scales, one pixel budget",
        ["side", "images per step", "% of images seen"],
        [
            [scale.height, scale.batch, 100 * share]
            for scale, share in zip(schedule.scales, cost.image_shares, strict=True)
        ],
    )
    stage.report.text(
        f"Computed, not measured: {100 * (1 - cost.flops_ratio):.1f} % fewer pixels and "
        f"{100 * (1 - cost.updates_ratio):.1f} % fewer updates per epoch than with 224 pixels alone."
    )
    stage.report.figure(
        draw_schedule(schedule, 160146, 1), "schedule", "Image size and batch of the first steps of an epoch."
    )
    if find_spec("mmdet") is None or find_spec("mmcv") is None or find_spec("mmcv._ext") is None:
        stage.report.text(
            "Mask R-CNN was skipped: it needs mmdet, mmcv-lite and graftwork-mmcv-ops "
            "(or full mmcv); the plugin's README has the command."
        )
        return
    _train_shapes(stage, epochs)


def _train_shapes(stage: Stage, epochs: int) -> None:
    from graftwork_multiscale.detector_run import average_precision, small_config, train
    from graftwork_multiscale.synthetic import write_shapes

    stage.report.heading("Mask R-CNN on generated shapes")
    folder = stage.report.out / "shapes"
    data = write_shapes(folder / "data", train=8 if stage.quick else 96, val=6, seed=stage.seed)
    config = small_config(
        "vbs", data, folder / "run", epochs=epochs, seed=stage.seed, changes={"resume": False}
    )
    runner, steps = train(config)
    precision = average_precision(runner, "val")
    seen = Counter((step.side, step.images) for step in steps)
    stage.report.table(
        "Steps by size, measured",
        ["side", "images per step", "steps", "ms per image"],
        [
            [
                side,
                images,
                count,
                1000
                * sum(s.seconds for s in steps if (s.side, s.images) == (side, images))
                / (count * images),
            ]
            for (side, images), count in sorted(seen.items())
        ],
    )
    stage.report.text(
        f"After {len(steps)} updates in {sum(step.seconds for step in steps):.0f} s: box AP "
        f"{precision['bbox_mAP']:.1f} (AP50 {precision['bbox_mAP_50']:.1f}), mask AP "
        f"{precision['segm_mAP']:.1f} "
        f"(AP50 {precision['segm_mAP_50']:.1f}) on six images it has not seen."
    )
    stage.report.figure(
        draw_predictions(runner),
        "masks",
        "Predicted masks on validation images; outlines are the ground truth.",
    )


def draw_predictions(runner: Any, images: int = 6, threshold: float = 0.5) -> Figure:
    """Draw predicted masks over validation images.

    Args:
        runner: With the trained model.
        images: How many.
        threshold: Score from which a prediction is drawn.
    """
    import numpy as np
    import torch
    from matplotlib.figure import Figure

    from graftwork_multiscale.detector_run import Runner

    loader = Runner.build_dataloader({**runner.cfg.test_dataloader, "batch_size": images})
    batch = next(iter(loader))
    with torch.no_grad():
        predictions = runner.model.eval().test_step(batch)
    figure = Figure(figsize=(3 * images, 3.2), layout="constrained")
    for panel, image, sample in zip(figure.subplots(1, images), batch["inputs"], predictions, strict=False):
        height, width = sample.ori_shape
        pixels = torch.nn.functional.interpolate(image[None].float(), (height, width))[0]
        panel.imshow(pixels.flip(0).permute(1, 2, 0).byte().numpy())
        found = sample.pred_instances[sample.pred_instances.scores > threshold]
        for i, mask in enumerate(found.masks.numpy()):
            colour = np.array([[0.9, 0.1, 0.2], [0.1, 0.8, 0.3], [0.2, 0.4, 1.0], [1.0, 0.8, 0.1]])[i % 4]
            panel.imshow(np.dstack([np.broadcast_to(colour, (*mask.shape, 3)), 0.55 * mask]))
        for polygon in sample.gt_instances.masks.masks if hasattr(sample.gt_instances, "masks") else ():
            panel.contour(polygon, levels=[0.5], colors="white", linewidths=1)
        panel.set_title(f"{len(found)} found")
        panel.axis("off")
    return figure
