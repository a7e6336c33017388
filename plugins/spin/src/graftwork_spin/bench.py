"""The measured tables of SPIN: cost of sharing (``cost``) and accuracy at equal training (``accuracy``)."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import nn

from graftwork.bench import Bench
from graftwork.classify import ImageSet, fit, flip_and_shift, load_image_tree
from graftwork_spin.convmixer import SpinConvMixer
from graftwork_spin.fusion import collapse, fuse

PAPER_SIZE = {"dim": 768, "depth": 32, "kernel_size": 3, "patch_size": 14}
SMALL = {"dim": 64, "depth": 8, "kernel_size": 3, "patch_size": 4, "num_classes": 10}
EPOCHS = 5


def bench(bench: Bench) -> None:
    """Run the parts asked for: ``cost`` and ``accuracy``."""
    if bench.wants("cost"):
        cost(bench)
    if bench.wants("accuracy"):
        accuracy(bench)


def cost(bench: Bench) -> None:
    """Measure what sharing changes: parameters and file size, hardly time; and what online fusion costs."""
    size = {**PAPER_SIZE, "dim": 32, "depth": 4} if bench.quick else PAPER_SIZE
    torch.manual_seed(bench.seed)
    plain = SpinConvMixer(**size, rate=1).eval()
    online = fuse(plain, "channel_weighted_mean", rate=2).eval()
    models: dict[str, nn.Module] = {
        "unshared": plain,
        "shared r=2": SpinConvMixer(**size, rate=2).eval(),
        "shared r=2, strided": SpinConvMixer(**size, rate=2, mapping="strided").eval(),
        "shared r=4": SpinConvMixer(**size, rate=4).eval(),
        "fused online r=2 (training form)": online,
        "collapsed r=2": collapse(online).eval(),
    }
    bench.report.heading(
        "Cost of ConvMixer-{dim}/{depth}, patch {patch_size}, kernel {kernel_size}".format(**size)
    )
    rows: list[list[str | int | float | None]] = []
    for label, model in models.items():
        rows.append([label, count(model), checkpoint_bytes(model), count(model) / count(plain)])
    bench.report.table("Size", ["network", "parameters", "checkpoint bytes", "parameters, ratio"], rows)

    side = 28 if bench.quick else 224
    rows = []
    for threads in bench.threads:
        for batch in (1, 16):
            images = torch.randn(batch, 3, side, side)
            with bench.torch_threads(threads), torch.inference_mode():
                calls: dict[str, Callable[[], object]] = {
                    label: partial(model, images) for label, model in models.items()
                }
                timings = bench.compare(calls, seconds=3.0 if batch == 1 else 6.0, min_rounds=5)
            base = timings["unshared"].median
            rows += [
                [label, threads, batch, 1e3 * timing.median, timing.median / base]
                for label, timing in timings.items()
            ]
    header = ["network", "threads", "batch", "ms per forward", "ratio to unshared"]
    bench.report.table("Latency", header, rows)
    bench.report.text(
        "Sharing is no speed-up: every layer still computes. It saves parameters, download size and memory. "
        "Online fusion is for training; collapse it for inference."
    )


def count(model: nn.Module) -> int:
    """Count parameters; a shared tensor counts once."""
    return sum(parameter.numel() for parameter in model.parameters())


def checkpoint_bytes(model: nn.Module) -> int:
    """Write the state dict and return the size of the file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.pth"
        torch.save(model.state_dict(), path)
        return path.stat().st_size


def accuracy(bench: Bench) -> None:
    """Train a small ConvMixer unshared, shared and fused on the CIFAR-10 subset, three seeds each."""
    folder = bench.data / "cifar10" if bench.data is not None else None
    if folder is None or not folder.is_dir():
        bench.report.text(
            "Skipped accuracy: there is no folder `cifar10` with train.tar.gz and test.tar.gz in the data."
        )
        return
    train, test = load_image_tree(folder / "train.tar.gz"), load_image_tree(folder / "test.tar.gz")
    if bench.quick:
        train = ImageSet(train.images[:256], train.labels[:256], train.classes)
    epochs, seeds = (1, (0,)) if bench.quick else (EPOCHS, (0, 1, 2))
    results: dict[str, list[float]] = {}
    sizes: dict[str, int] = {}
    for seed in seeds:
        for label, run in _runs(bench, train, test, epochs, seed).items():
            found = bench.remember(f"{label}, {SMALL}, {epochs} epochs, seed {seed}", run)
            results.setdefault(label, []).append(found["accuracy"])
            sizes[label] = int(found["parameters"])
    rows: list[list[str | int | float | None]] = []
    for label, values in results.items():
        spread = statistics.stdev(values) if len(values) > 1 else None
        rows.append([label, sizes[label], statistics.mean(values), spread, len(values)])
    bench.report.heading("Accuracy at equal training on the CIFAR-10 subset")
    bench.report.text(
        "ConvMixer-{dim}/{depth}, patch {patch_size}, kernel {kernel_size}, 32x32 pixels; {n:,} training and "
        "{m:,} test images, AdamW 5e-3, flips and shifts. Fused: r=2 from the mean of the trained unshared "
        "weights, trained as long again, so that its honest peer is r=2 trained twice as long.".format(
            **SMALL, n=len(train), m=len(test)
        )
    )
    header = ["network", "parameters", "top-1 %, mean", "standard deviation", "seeds"]
    bench.report.table("Accuracy", header, rows)
    _plot(bench, results, sizes)


def _runs(
    bench: Bench, train: ImageSet, test: ImageSet, epochs: int, seed: int
) -> dict[str, Callable[[], dict[str, float]]]:
    def train_network(model: nn.Module, length: int, label: str) -> dict[str, float]:
        result = fit(
            model,
            train,
            test,
            epochs=length,
            lr=5e-3,
            augment=flip_and_shift(),
            seed=seed,
            device=bench.device,
            progress=bench.progress,
            label=f"{label}, seed {seed}",
        )
        return {"accuracy": result.accuracy, "parameters": count(model), "seconds": result.seconds}

    def network(rate: int) -> SpinConvMixer:
        torch.manual_seed(seed)
        return SpinConvMixer(**SMALL, rate=rate, pw_residual=False)

    weights = bench.report.out / f"unshared-{epochs}-{seed}.pth"

    def unshared() -> dict[str, float]:
        model = network(1)
        found = train_network(model, epochs, "unshared")
        torch.save(model.state_dict(), weights)
        return found

    def fused() -> dict[str, float]:
        if not weights.exists():  # somebody cleared the folder but kept finished.json
            unshared()
        plain = network(1)
        plain.load_state_dict(torch.load(weights, weights_only=True))
        return train_network(fuse(plain, "mean", rate=2), epochs, "fused r=2")

    return {
        f"unshared, {epochs} epochs": unshared,
        f"r=2, {epochs} epochs": lambda: train_network(network(2), epochs, "r=2"),
        f"r=4, {epochs} epochs": lambda: train_network(network(4), epochs, "r=4"),
        f"fused r=2, {epochs} + {epochs} epochs": fused,
        f"r=2, {2 * epochs} epochs": lambda: train_network(network(2), 2 * epochs, "r=2, twice"),
    }


def _plot(bench: Bench, results: dict[str, list[float]], sizes: dict[str, int]) -> None:
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 4))
    for label, values in results.items():
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        axis.errorbar(sizes[label] / 1e3, statistics.mean(values), spread, fmt="o", capsize=4, label=label)
    axis.set_xlabel("parameters (thousands)")
    axis.set_ylabel("top-1 on the test images (%)")
    axis.grid(alpha=0.3)
    axis.legend()
    bench.report.figure(figure, "accuracy", "Mean and standard deviation over the seeds.")
