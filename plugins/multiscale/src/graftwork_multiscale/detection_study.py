"""Real data: Mask R-CNN from scratch on two hundred COCO images, one scale against many, at equal epochs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from graftwork.bench import Bench
from graftwork_multiscale.configs import config_path
from graftwork_multiscale.cost import plan_cost
from graftwork_multiscale.detector_run import StepRecord, average_precision, read_steps, small_config, train
from graftwork_multiscale.flops import DetectorFlops
from graftwork_multiscale.plan import Schedule, make_schedule
from graftwork_multiscale.study import MODES, cost_by_side, draw_losses, remembered

EPOCHS = 60


def study(bench: Bench) -> None:
    """Train in the three modes, test on training and validation images, and report.

    Args:
        bench: Its data folder must hold ``coco200``.
    """
    bench.report.heading("Mask R-CNN on 200 COCO images")
    if bench.data is None or not (bench.data / "coco200").is_dir():
        bench.report.text("Skipped: no `coco200` in the data folder (`--data`, or `GRAFTWORK_DATA`).")
        return
    epochs = 2 if bench.quick else EPOCHS
    images = 12 if bench.quick else None
    folder = bench.report.out / f"detection-{epochs}"
    annotations = prepare(bench.data / "coco200", folder / "annotations", images)
    threads = max(bench.threads)
    bench.report.text(
        "All categories are taken as one, for a network of this size learns nothing of eighty classes from a "
        f"hundred images. ResNet-18 with a quarter of the channels, from scratch, {epochs} epochs, base 128, "
        f"tested at 128, {threads} threads, seed {bench.seed}. Equal epochs: the multi-scale runs make "
        "fewer updates."
    )
    results = {}
    for mode in MODES:
        with bench.torch_threads(threads):
            results[mode] = remembered(
                folder / f"{mode}.json",
                lambda mode=mode: run(
                    mode, bench.data / "coco200", annotations, folder / mode, epochs, bench.seed
                ),
            )
    steps = {mode: read_steps(folder / mode / "steps.jsonl") for mode in MODES}
    report_runs(bench, results, steps, epochs)


def prepare(source: Path, folder: Path, images: int | None) -> Path:
    """Write the annotations with one category, once.

    Args:
        source: Folder with ``instances_train.json`` and ``instances_val.json``.
        folder: Gets ``train.json`` and ``val.json``.
        images: How many of each split; all when None.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "val"):
        content = json.loads((source / f"instances_{split}.json").read_text(encoding="utf-8"))
        content["images"] = content["images"][:images]
        known = {image["id"] for image in content["images"]}
        content["annotations"] = [
            {**annotation, "category_id": 1}
            for annotation in content["annotations"]
            if annotation["image_id"] in known
        ]
        content["categories"] = [{"id": 1, "name": "object", "supercategory": "object"}]
        (folder / f"{split}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def run(mode: str, images: Path, annotations: Path, folder: Path, epochs: int, seed: int) -> dict[str, Any]:
    """Train in one mode and test on both splits; goes on where it was interrupted."""
    config = small_config(
        mode,
        images,
        folder,
        epochs=epochs,
        seed=seed,
        annotations=annotations,
        changes={"log_level": "ERROR"},
    )
    pipeline = config.train_dataloader.dataset.dataset.pipeline
    pipeline[1].poly2mask = True  # run-length masks, as this data set has them, can be read as bitmaps only
    runner, steps = train(config)
    return {
        "seconds": sum(step.seconds for step in steps),
        "data_seconds": sum(step.data_seconds for step in steps),
        "images": sum(step.images for step in steps),
        "updates": len(steps),
        "train": average_precision(runner, "train"),
        "val": average_precision(runner, "val"),
    }


def report_runs(
    bench: Bench, results: dict[str, dict[str, Any]], steps: dict[str, list[StepRecord]], epochs: int
) -> None:
    """Tabulate and draw what the three runs gave."""
    single = results["ssc"]
    rows = [
        [
            MODES[mode],
            result["updates"],
            result["seconds"],
            result["images"] / result["seconds"],
            100 * result["data_seconds"] / result["seconds"],
            *(result[split][f"segm_{name}"] for split in ("train", "val") for name in ("mAP", "mAP_50")),
        ]
        for mode, result in results.items()
    ]
    header = ["mode", "updates", "seconds", "images/s", "% waiting for data"]
    header += [f"mask {name}, {split}" for split in ("train", "val") for name in ("AP", "AP50")]
    bench.report.table("Mask R-CNN, measured", header, rows)
    parts = DetectorFlops(_model())
    whole = parts.whole(parts.most_positives)
    ratios = []
    for mode, result in results.items():
        cost = plan_cost(_schedule(mode, epochs), image_cost=whole)
        per_image = result["seconds"] / result["images"]
        ratios.append(
            [
                MODES[mode],
                result["seconds"] / single["seconds"],
                per_image / (single["seconds"] / single["images"]),
                cost.flops_ratio,
                result["updates"] / single["updates"],
            ]
        )
    bench.report.table(
        "Mask R-CNN, cost relative to one scale",
        [
            "mode",
            "wall clock, measured",
            "seconds per image, measured",
            "FLOPs, computed",
            "updates, measured",
        ],
        ratios,
    )
    records = [(step.side, step.images, step.seconds) for step in steps["vbs"]]
    bench.report.table(
        "Mask R-CNN, cost of an image by side",
        ["side", "batch", "ms per image, measured", "relative, measured", "relative, FLOPs computed"],
        cost_by_side(records, 128, lambda side: whole(side, side)),
    )
    curves = {MODES[mode]: _losses(steps[mode], epochs) for mode in results}
    bench.report.figure(
        draw_losses(curves, "sum of losses"),
        "mask-rcnn-losses",
        "Training loss of Mask R-CNN, mean per epoch.",
    )


def _losses(steps: Sequence[StepRecord], epochs: int) -> list[tuple[float, float]]:
    """Average losses over as many equal parts as there are epochs, weighted by images."""
    total = sum(step.images for step in steps)
    sums: dict[int, list[float]] = {}
    seen = 0
    for step in steps:
        part = sums.setdefault(seen * epochs // total, [0.0, 0.0])
        part[0] += step.loss * step.images
        part[1] += step.images
        seen += step.images
    return [(part + 1, loss / images) for part, (loss, images) in sorted(sums.items())]


def _model() -> Any:
    from mmengine.config import Config

    return Config.fromfile(config_path("mask_rcnn_small_vbs")).model


def _schedule(mode: str, epochs: int) -> Schedule:
    from mmengine.config import Config

    config = Config.fromfile(config_path(f"mask_rcnn_small_{mode}"))
    options = {key: value for key, value in config.train_dataloader.batch_sampler.items() if key != "type"}
    options = options | ({"epochs": epochs} if "epochs" in options else {})
    return make_schedule(base_batch=config.train_dataloader.batch_size, **options)
