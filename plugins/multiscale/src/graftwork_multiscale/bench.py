"""``graftwork bench multiscale``: what planning costs, what a plan costs, two studies on real data."""

from __future__ import annotations

import itertools
import tracemalloc
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from graftwork.bench import Bench
from graftwork_multiscale.cost import ImageCost, area_cost, plan_cost
from graftwork_multiscale.plan import Schedule, make_schedule
from graftwork_multiscale.sampler import MultiScaleBatchSampler

SAMPLES, RANKS = 1_280_000, 8
CLASSIFICATION: dict[str, Any] = {"base_size": 224, "min_size": 128, "max_size": 320, "max_scales": 10}
DETECTION: dict[str, Any] = {"base_size": 1024, "min_size": 512, "max_size": 1280, "max_scales": 10}


def bench(bench: Bench) -> None:
    """Run the parts ``overhead``, ``cost``, ``classification`` and ``detection``.

    Args:
        bench: What to measure with.
    """
    if bench.wants("overhead"):
        overhead(bench)
    if bench.wants("cost"):
        costs(bench)
    if bench.wants("classification"):
        from graftwork_multiscale import classification_study

        if _has(bench, "timm", "torchmetrics"):
            classification_study.study(bench)
    if bench.wants("detection") and _has(bench, "mmdet", "mmcv", "mmcv._ext"):
        from graftwork_multiscale import detection_study

        detection_study.study(bench)


def _has(bench: Bench, *modules: str) -> bool:
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        bench.report.text(
            f"Skipped: {', '.join(missing)} not installed; the plugin's README has the command."
        )
    return not missing


def overhead(bench: Bench) -> None:
    """Measure planning, dealing out batches and memory, beside torch's and timm's samplers."""
    samples = SAMPLES // 100 if bench.quick else SAMPLES
    bench.report.heading("Overhead of the sampler")
    bench.report.text(f"{samples:,} samples, {RANKS} ranks, base 224 with 128 images per step, ten scales.")
    makers = _samplers(samples)
    epochs = itertools.count()

    def first_batch(make: Callable[[], Any]) -> Callable[[], object]:
        sampler = make()

        def call() -> object:
            sampler.set_epoch(next(epochs))
            return next(iter(sampler))

        return call

    def whole_epoch(make: Callable[[], Any]) -> Callable[[], object]:
        sampler = make()
        return lambda: sum(1 for _ in sampler)

    starts = bench.compare({name: first_batch(make) for name, make in makers.items()})
    wholes = bench.compare({name: whole_epoch(make) for name, make in makers.items()})
    rows = []
    for name, make in makers.items():
        batches = len(make())
        mean = (wholes[name].median - starts[name].median) / batches
        rows.append([name, batches, starts[name].median, 1000 * mean, wholes[name].median])
    bench.report.table(
        "Sampler overhead, measured",
        ["sampler", "batches", "s to the first batch", "ms per batch", "s per epoch"],
        rows,
    )
    _memory(bench, samples)


def _samplers(samples: int) -> dict[str, Callable[[], Any]]:
    from torch.utils.data import BatchSampler, DistributedSampler

    def shard() -> DistributedSampler[int]:
        return DistributedSampler(range(samples), num_replicas=RANKS, rank=3)

    class Plain(BatchSampler):
        def set_epoch(self, epoch: int) -> None:
            self.sampler.set_epoch(epoch)

    makers: dict[str, Callable[[], Any]] = {
        "ours": lambda: MultiScaleBatchSampler(
            range(samples),
            128,
            rank=3,
            world_size=RANKS,
            **CLASSIFICATION,
        ),
        "torch BatchSampler": lambda: Plain(shard(), 128, drop_last=False),
    }
    if find_spec("timm") is not None and find_spec("timm.data.scheduled_sampler") is not None:
        from timm.data.scheduled_sampler import ScheduledBatchSampler

        table = make_schedule(base_batch=128, **CLASSIFICATION).scales
        makers["timm ScheduledBatchSampler"] = lambda: ScheduledBatchSampler(
            shard(), [scale.batch for scale in table]
        )
    return makers


def _memory(bench: Bench, samples: int) -> None:
    sampler = MultiScaleBatchSampler(
        range(samples),
        128,
        rank=0,
        world_size=RANKS,
        **CLASSIFICATION,
    )
    held = []
    tracemalloc.start()
    for epoch in range(4 if bench.quick else 12):
        sampler.set_epoch(epoch)
        for _ in sampler:
            pass
        held.append(tracemalloc.get_traced_memory()[0] / 2**20)
    peak = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    bench.report.table(
        "Memory of the sampler, measured",
        ["after epoch", "MiB held"],
        [[epoch + 1, value] for epoch, value in enumerate(held) if epoch in (0, 1, len(held) - 1)],
    )
    bench.report.text(f"Peak {peak:.1f} MiB, the permutation included.")


def costs(bench: Bench) -> None:
    """Compute what the published tables cost under each convention; nothing is trained."""
    bench.report.heading("Cost of the published tables, computed")
    rows = []
    plain = make_schedule(base_batch=128, **CLASSIFICATION)
    grown = make_schedule(base_batch=128, mode="MSc-VBSWC", epochs=600, **CLASSIFICATION)
    if find_spec("torchvision") is not None:
        import torchvision

        from graftwork_multiscale.flops import model_flops

        for name in ("resnet50", "resnet101"):
            cost = model_flops(getattr(torchvision.models, name))
            for label, schedule in (("128-320", plain), ("128-320, curriculum", grown)):
                rows.append(_row(f"{name}, {label}", "forward FLOPs", schedule, cost))
    detection = make_schedule(base_batch=4, **DETECTION)
    rows.append(_row("detection, 512-1280", "pixels", detection, area_cost))
    rows.extend(_detector_rows(bench, detection))
    bench.report.table(
        "Cost relative to one scale, computed",
        ["model and table", "what is counted", "ratio", "saved %", "updates saved %"],
        rows,
    )
    bench.report.text(
        "FLOPs by torch.utils.flop_counter on meta tensors; ratios are closed forms over the scale table."
    )


def _detector_rows(bench: Bench, schedule: Schedule) -> list[list[str | float]]:
    if bench.quick or not _has(bench, "mmdet", "mmcv", "mmcv._ext"):
        return []
    from pathlib import Path

    import mmdet
    from mmengine.config import Config

    from graftwork_multiscale.flops import DetectorFlops

    folder = Path(mmdet.__file__).parent / ".mim" / "configs" / "mask_rcnn"
    rows = []
    for depth in (50, 101):
        parts = DetectorFlops(Config.fromfile(folder / f"mask-rcnn_r{depth}_fpn_1x_coco.py").model)
        name = f"mmdet's Mask R-CNN R-{depth}, 512-1280"
        rows.append(_row(name, "backbone and pyramid", schedule, parts.features))
        for positives in (parts.most_positives, 20):
            label = f"whole model, {parts.rois} regions per image, masks for {positives}"
            rows.append(_row(name, label, schedule, parts.whole(positives)))
    return rows


def _row(name: str, convention: str, schedule: Schedule, image_cost: ImageCost) -> list[str | float]:
    cost = plan_cost(schedule, image_cost=image_cost)
    return [
        name,
        convention,
        round(cost.flops_ratio, 4),
        100 * (1 - cost.flops_ratio),
        100 * (1 - cost.updates_ratio),
    ]
