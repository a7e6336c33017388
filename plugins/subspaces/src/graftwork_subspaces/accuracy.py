"""The benchmark's part "accuracy": curves on a CIFAR-10 subset, three seeds, resumable run by run."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from graftwork.bench import Bench
from graftwork.classify import ImageSet, flip_and_shift, load_image_tree
from graftwork_subspaces import networks
from graftwork_subspaces.baselines import recalibrate, slimmable
from graftwork_subspaces.digits import GRIDS, accuracy, curve, fit
from graftwork_subspaces.net import CompressibleNet
from graftwork_subspaces.samplers import Fixed
from graftwork_subspaces.wrap import wrap

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Recipe:
    """How every network of the part is trained.

    Args:
        images: Training images, evenly from the classes.
        test_images: Test images.
        side: Side in pixels to which images are reduced.
        channels: Planes of the three stages.
        epochs: Passes of a run with one level per step.
        width_epochs: Passes of a run with four levels per step, which cost about twice.
        batch_size: Images per step.
    """

    images: int = 4000
    test_images: int = 2000
    side: int = 16
    channels: tuple[int, int, int] = (8, 16, 32)
    epochs: int = 30
    width_epochs: int = 16
    batch_size: int = 64


QUICK = Recipe(images=200, test_images=100, channels=(4, 4, 8), epochs=1, width_epochs=1)
ROWS = (
    ("sparse", "line"),
    ("sparse", "point"),
    ("sparse", "plain"),
    ("quant", "line"),
    ("quant", "point"),
    ("width", "line"),
    ("width", "point"),
    ("width", "plain"),
    ("width", "slimmable"),
    ("width", "slimmable, recalibrated"),
)
TITLES = {"sparse": "kept weights", "quant": "bits", "width": "width"}


def measure_accuracy(bench: Bench) -> None:
    """Train every kind of network with three seeds and draw accuracy against level, or say what is missing.

    Args:
        bench: Where to report, and where the data is.
    """
    bench.report.heading("Accuracy on a CIFAR-10 subset")
    folder = None if bench.data is None else bench.data / "cifar10"
    if folder is None or not (folder / "train.tar.gz").is_file():
        bench.report.text(
            "Skipped: no CIFAR-10 subset. It is expected as `cifar10/train.tar.gz` and "
            "`cifar10/test.tar.gz`, one "
            "folder of images per class inside, under the folder named by `--data`."
        )
        return
    recipe = QUICK if bench.quick else Recipe()
    train = _even(load_image_tree(folder / "train.tar.gz", size=32), recipe.images, recipe.side)
    test = _even(load_image_tree(folder / "test.tar.gz", size=32), recipe.test_images, recipe.side)
    seeds = range(1 if bench.quick else 3)
    bench.report.text(
        f"cPreResNet-20 with {'/'.join(map(str, recipe.channels))} planes, {len(train):,} training and "
        f"{len(test):,} "
        f"test images reduced to {recipe.side} x {recipe.side}, {recipe.epochs} epochs "
        f"({recipe.width_epochs} for "
        f"widths, whose steps visit four levels), {len(seeds)} seeds. *plain* is the same network with the "
        "same norm "
        "trained uncompressed and compressed afterwards. A small training on few images: the curves compare "
        "methods, "
        "the level of accuracy is not CIFAR-10's."
    )
    store = bench.report.out / "accuracy-runs.json"
    results = _run_all(bench, recipe, train, test, seeds, store)
    _report(bench, results, seeds)


def _even(data: ImageSet, count: int, side: int) -> ImageSet:
    """Take the first images of every class and reduce them."""
    per_class = count // len(data.classes)
    chosen = torch.cat([(data.labels == k).nonzero().flatten()[:per_class] for k in range(len(data.classes))])
    images = functional.interpolate(data.images[chosen], size=(side, side), mode="area")
    return ImageSet(images, data.labels[chosen], data.classes)


def _run_all(
    bench: Bench, recipe: Recipe, train: ImageSet, test: ImageSet, seeds: Sequence[int], store: Path
) -> dict[str, Any]:
    """Train what the store does not hold yet; an interrupted benchmark goes on where it stopped."""
    setting = json.loads(json.dumps(asdict(recipe)))
    known = json.loads(store.read_text(encoding="utf-8")) if store.is_file() else {}
    runs: dict[str, Any] = known.get("runs", {}) if known.get("recipe") == setting else {}
    wanted = [(seed, *row) for seed in seeds for row in ROWS if "recalibrated" not in row[1]]
    missing = [item for item in wanted if _key(*item) not in runs]
    before = torch.get_num_threads()
    torch.set_num_threads(max(bench.threads))
    try:
        for number in bench.progress(range(len(missing)), "accuracy runs"):
            seed, regime, kind = missing[number]
            started = time.perf_counter()
            found = _run(recipe, train, test, regime, kind, seed)
            for name, values in found.items():
                runs[_key(seed, regime, name)] = {"curve": values, "seconds": time.perf_counter() - started}
            _write(store, {"recipe": setting, "runs": runs})
    finally:
        torch.set_num_threads(before)
    return runs


def _key(seed: int, regime: str, kind: str) -> str:
    return f"{regime} {kind} {seed}"


def _write(path: Path, content: dict[str, Any]) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
    temporary.replace(path)


def _run(
    recipe: Recipe, train: ImageSet, test: ImageSet, regime: str, kind: str, seed: int
) -> dict[str, list[float]]:
    torch.manual_seed(seed)
    model = networks.cpreresnet20(
        recipe.channels, num_classes=len(train.classes), in_chans=3, global_pool="avg", drop_rate=0.0
    )
    grid = GRIDS[regime]
    options: dict[str, Any] = {"input_size": (3, recipe.side, recipe.side), "multiple": 1}
    net: CompressibleNet
    if kind == "slimmable":
        net = slimmable(model, **options)
    else:
        net = wrap(
            model,
            regime=regime,  # type: ignore[arg-type]
            subspace="line" if kind == "line" else "point",
            levels={"lo": grid[0], "hi": grid[-1]},
            sampler=Fixed((1.0,)) if kind == "plain" else None,
            **options,
        )
    four_levels = regime == "width" and kind != "plain"
    fit(
        net,
        train,
        epochs=recipe.width_epochs if four_levels else recipe.epochs,
        batch_size=recipe.batch_size,
        lr=0.025 if regime == "quant" else 0.1,
        augment=flip_and_shift(2),
        seed=seed,
    )
    found = {kind: curve(net, test)}
    if kind == "slimmable":
        batches = list(train.images[torch.randperm(len(train))].split(256))
        found["slimmable, recalibrated"] = [
            accuracy(recalibrate(net, batches, width), test) for width in grid
        ]
    return found


def _report(bench: Bench, runs: dict[str, Any], seeds: Sequence[int]) -> None:
    means: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for regime, kind in ROWS:
        curves = [runs[_key(seed, regime, kind)]["curve"] for seed in seeds]
        means[regime, kind] = [_mean_and_spread(values) for values in zip(*curves)]
    for regime in TITLES:
        header = [TITLES[regime], *(f"{value:g}" for value in GRIDS[regime])]
        rows = [
            [kind, *(f"{100 * mean:.1f} ± {100 * spread:.1f}" for mean, spread in values)]
            for (owner, kind), values in means.items()
            if owner == regime
        ]
        bench.report.table(f"CIFAR-10 subset, accuracy in % by {TITLES[regime]}", header, rows)
    minutes = sum(run["seconds"] for name, run in runs.items() if "recalibrated" not in name) / 60
    bench.report.text(
        f"Mean ± standard deviation over {len(seeds)} seeds; {minutes:.0f} minutes of training."
    )
    bench.report.figure(
        _figure(means),
        "accuracy-cifar10",
        "Accuracy against level, mean and standard deviation over the seeds.",
    )


def _mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else math.nan


def _figure(means: dict[tuple[str, str], list[tuple[float, float]]]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4), layout="constrained")
    for axes, regime in zip(figure.subplots(1, 3, sharey=True), TITLES):
        for (owner, kind), values in means.items():
            if owner == regime:
                axes.errorbar(
                    GRIDS[regime],
                    [100 * mean for mean, _ in values],
                    [0.0 if math.isnan(spread) else 100 * spread for _, spread in values],
                    marker="o",
                    ms=3,
                    capsize=2,
                    label=kind,
                )
        axes.set(xlabel=TITLES[regime], title=f"regime '{regime}'")
        axes.set_xscale("log" if regime == "sparse" else "linear")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    figure.axes[0].set_ylabel("test accuracy %")
    return figure
