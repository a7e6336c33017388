"""Real data: ten thousand CIFAR-10 images, one scale against many, three seeds, at equal epochs."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from graftwork.bench import Bench
from graftwork.classify import ImageSet, flip_and_shift, load_image_tree
from graftwork_multiscale.cost import plan_cost
from graftwork_multiscale.data import resize_batch
from graftwork_multiscale.evaluate import SideResult, evaluate_sides, mean_over_sides, plot_sides
from graftwork_multiscale.flops import model_flops
from graftwork_multiscale.plan import Schedule, make_schedule
from graftwork_multiscale.sampler import MultiScaleBatchSampler
from graftwork_multiscale.study import MODES, cost_by_side, draw_losses, remembered, spread

EPOCHS = 16
SEEDS = (0, 1, 2)
BASE, BATCH = 32, 64
TEST_SIDES = (16, 20, 24, 28, 32, 36, 40, 44, 48, 56)
SIZES: dict[str, Any] = {"base_size": BASE, "min_size": 16, "max_size": 48, "max_scales": 5, "divisor": 8}


def study(bench: Bench) -> None:
    """Train in the three modes with three seeds, test at ten sides, and report.

    Args:
        bench: Its data folder must hold ``cifar10``.
    """
    bench.report.heading("Classification of a CIFAR-10 subset")
    if bench.data is None or not (bench.data / "cifar10").is_dir():
        bench.report.text("Skipped: no `cifar10` in the data folder (`--data`, or `GRAFTWORK_DATA`).")
        return
    epochs = 1 if bench.quick else EPOCHS
    seeds = SEEDS[:1] if bench.quick else SEEDS
    folder = bench.report.out / f"classification-{epochs}"
    folder.mkdir(parents=True, exist_ok=True)
    train = load_image_tree(bench.data / "cifar10" / "train.tar.gz", size=BASE)
    test = load_image_tree(bench.data / "cifar10" / "test.tar.gz", size=BASE)
    if bench.quick:
        train, test = (ImageSet(s.images[::20], s.labels[::20], s.classes) for s in (train, test))
    threads = max(bench.threads)
    bench.report.text(
        f"{len(train)} training and {len(test)} test images, a residual network of 0.2 million parameters, "
        f"{epochs} epochs, base {BASE} with {BATCH} images per step, seeds {', '.join(map(str, seeds))}, "
        f"{threads} threads. Images lie in memory; they are resized as a batch, so nothing is decoded."
    )
    results: dict[str, list[dict[str, Any]]] = {mode: [] for mode in MODES}
    for seed in seeds:  # modes take turns, so that a disturbance of the machine hits all of them
        for mode in MODES:
            with bench.torch_threads(threads):
                result = remembered(
                    folder / f"{mode}-{seed}.json",
                    lambda mode=mode, seed=seed: run(mode, train, test, epochs, seed),
                )
            results[mode].append(result)
            bench.report.text(
                f"{MODES[mode]}, seed {seed}: {_at_base(result).accuracy:.1f} % in {result['seconds']:.0f} s"
            )
    report_runs(bench, results, epochs, len(train))


def network(classes: int = 10) -> nn.Module:
    """Return a narrow residual network whose stem halves the image."""
    from timm.models.resnet import BasicBlock, ResNet

    model = ResNet(BasicBlock, (1, 1, 1, 1), num_classes=classes, channels=(24, 48, 96, 96))
    model.conv1 = nn.Conv2d(3, 64, 3, stride=2, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model


def schedule_of(mode: str, epochs: int, seed: int = 0) -> Schedule:
    """Return the schedule of a mode."""
    curriculum: dict[str, Any] = {"curriculum": "grow_max", "epochs": epochs} if mode == "vbswc" else {}
    return make_schedule(base_batch=BATCH, mode=MODES[mode], seed=seed, **SIZES, **curriculum)


def run(mode: str, train: ImageSet, test: ImageSet, epochs: int, seed: int) -> dict[str, Any]:
    """Train once and test at all sides."""
    torch.manual_seed(seed)
    model = network(len(train.classes))
    curriculum: dict[str, Any] = {"curriculum": "grow_max", "epochs": epochs} if mode == "vbswc" else {}
    sampler = MultiScaleBatchSampler(
        train.labels, BATCH, mode=MODES[mode], seed=seed, last_batch="refit", **SIZES, **curriculum
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    augment, generator = flip_and_shift(), torch.Generator().manual_seed(seed)
    warm_up = 0.15
    steps: list[tuple[int, int, float]] = []
    losses: list[float] = []
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        total = images = 0.0
        count = len(sampler)
        for number, batch in enumerate(sampler):
            started = time.perf_counter()
            # by share of the training, not by iteration: multi-scale epochs have fewer steps
            share = (epoch + number / count) / epochs
            rate = share / warm_up if share < warm_up else 0.5 + 0.5 * math.cos(math.pi * share)
            for group in optimizer.param_groups:
                group["lr"] = 0.1 * max(rate, 1e-3)
            index = torch.tensor([i for _, i in batch])
            inputs = resize_batch(augment(train.images[index], generator), batch[0].size)
            loss = functional.cross_entropy(model(inputs), train.labels[index])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total += float(loss.detach()) * len(batch)
            images += len(batch)
            steps.append((batch[0].size[0], len(batch), time.perf_counter() - started))
        losses.append(total / images)
    results = evaluate_sides(model, lambda side: _batches(test, side), TEST_SIDES)
    return {
        "seconds": sum(seconds for _, _, seconds in steps),
        "images": sum(images for _, images, _ in steps),
        "steps": steps,
        "losses": losses,
        "sides": [vars(result) for result in results],
    }


def _batches(data: ImageSet, side: int) -> Iterable[tuple[Tensor, Tensor]]:
    for start in range(0, len(data), 250):
        part = slice(start, start + 250)
        yield resize_batch(data.images[part], (side, side)), data.labels[part]


def _sides(result: dict[str, Any]) -> list[SideResult]:
    return [SideResult(**side) for side in result["sides"]]


def _at_base(result: dict[str, Any]) -> SideResult:
    return next(side for side in _sides(result) if side.side == BASE)


def report_runs(bench: Bench, results: dict[str, list[dict[str, Any]]], epochs: int, samples: int) -> None:
    """Tabulate and draw what the runs gave."""
    rows = []
    for mode, runs in results.items():
        seconds = [result["seconds"] for result in runs]
        rows.append(
            [
                MODES[mode],
                spread([_at_base(result).accuracy for result in runs]),
                spread([mean_over_sides(_sides(result), exclude=BASE) for result in runs]),
                spread([100 * _at_base(result).ece for result in runs]),
                spread(seconds),
                statistics.mean(result["images"] / result["seconds"] for result in runs),
                statistics.mean(len(result["steps"]) for result in runs),
            ]
        )
    bench.report.table(
        "CIFAR-10 subset, measured",
        [
            "mode",
            f"top-1 at {BASE}, %",
            "top-1 at other sides, %",
            f"ECE at {BASE}, %",
            "seconds",
            "images/s",
            "updates",
        ],
        rows,
    )
    flops = model_flops(network)
    ratios = []
    for mode, runs in results.items():
        cost = plan_cost(schedule_of(mode, epochs), image_cost=flops)
        pairs = list(zip(runs, results["ssc"], strict=True))
        wall = [run["seconds"] / single["seconds"] for run, single in pairs]
        per_image = [
            run["seconds"] / run["images"] / (single["seconds"] / single["images"]) for run, single in pairs
        ]
        ratios.append([MODES[mode], spread(wall), spread(per_image), cost.flops_ratio, cost.updates_ratio])
    bench.report.table(
        "CIFAR-10 subset, cost relative to one scale",
        [
            "mode",
            "wall clock, measured",
            "seconds per image, measured",
            "FLOPs, computed",
            "updates, computed",
        ],
        ratios,
    )
    records = [tuple(step) for result in results["vbs"] for step in result["steps"]]
    bench.report.table(
        "CIFAR-10 subset, cost of an image by side",
        ["side", "batch", "ms per image, measured", "relative, measured", "relative, FLOPs computed"],
        cost_by_side(records, BASE, lambda side: flops(side, side)),
    )
    curves = {MODES[mode]: _mean_curve([_sides(result) for result in runs]) for mode, runs in results.items()}
    bench.report.figure(
        plot_sides(curves, BASE),
        "cifar10-sides",
        "Accuracy and calibration over test sides, mean over seeds.",
    )
    losses = {
        MODES[mode]: [
            (epoch + 1, statistics.mean(result["losses"][epoch] for result in runs))
            for epoch in range(epochs)
        ]
        for mode, runs in results.items()
    }
    bench.report.figure(draw_losses(losses), "cifar10-losses", "Training loss, mean over seeds.")


def _mean_curve(curves: list[list[SideResult]]) -> list[SideResult]:
    return [
        SideResult(
            points[0].side,
            statistics.mean(point.accuracy for point in points),
            statistics.mean(point.ece for point in points),
            points[0].samples,
        )
        for points in zip(*curves, strict=True)
    ]
