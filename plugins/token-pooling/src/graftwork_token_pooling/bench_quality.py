"""The measured quality of Token Pooling: reconstruction error, and accuracy on real images."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import timm
import torch
from timm.models import VisionTransformer
from torch import Tensor

from graftwork.bench import Bench
from graftwork.classify import ImageSet, evaluate, fit, flip_and_shift, load_image_tree
from graftwork_token_pooling.baselines import random_choice
from graftwork_token_pooling.clustering import (
    inner_products,
    medoid_rounds,
    reconstruction_error,
    weighted_means,
)
from graftwork_token_pooling.low_pass import analyse_attention, plot_low_pass
from graftwork_token_pooling.patching import apply, cost_of
from graftwork_token_pooling.pooling import METHODS, token_pool
from graftwork_token_pooling.visualize import cluster_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = list[str | int | float | None]

SIZES: dict[str, Any] = {
    "img_size": 32,
    "patch_size": 4,
    "embed_dim": 96,
    "depth": 6,
    "num_heads": 3,
    "num_classes": 10,
}
BUDGETS = ("0.8x", "0.6x", "0.4x")
METHODS_COMPARED = tuple(method for method in METHODS if method != "k_means")
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def error(bench: Bench) -> None:
    """Compare the weighted reconstruction error of all methods on tokens of DeiT-S after three blocks."""
    torch.manual_seed(bench.seed)
    model = timm.create_model("deit_small_patch16_224").eval()
    with torch.no_grad():
        x = model._pos_embed(model.patch_embed(torch.randn(2 if bench.quick else 16, 3, 224, 224)))
        for block in model.blocks[:3]:
            x = block(x)
    features = x[:, model.num_prefix_tokens :]
    weights = torch.rand(features.shape[:2])
    bench.report.heading("Reconstruction error")
    bench.report.text(
        "Weighted squared error of nearest-neighbour reconstruction per image and channel, on the tokens "
        "that a "
        "DeiT-S with random weights has for noise images after block 3, with uniform random weights. The "
        "tokens "
        "have no structure: this is the worst case for clustering."
    )
    rows = error_rows(features, weights, (137, 98, 49))
    header = ["method", *(f"K = {k}" for k in (137, 98, 49))]
    bench.report.table("Reconstruction error on random tokens", header, rows)


def error_rows(features: Tensor, weights: Tensor, counts: tuple[int, ...]) -> list[Row]:
    """Measure the error per image and channel of every method, K by K."""

    def mean_error(centers: Tensor) -> float:
        return float(reconstruction_error(features, centers, weights).mean()) / features.shape[2]

    def pooled(k: int, method: str, output: str = "mean", init: str = "auto") -> Tensor:
        return token_pool(features, weights, k, 0, method, output, init=init)

    def from_random_seeds(k: int) -> Tensor:
        seeds = random_choice(weights, k)
        assignment, _ = medoid_rounds(inner_products(features, features), weights, seeds, 5)
        return weighted_means(features, assignment, k, weights)

    variants: dict[str, Callable[[int], Tensor]] = {
        method: partial(pooled, method=method) for method in METHODS
    }
    variants["wk_medoids, medoids as output"] = lambda k: pooled(k, "wk_medoids", output="medoid")
    variants["wk_medoids, seeds at equal steps"] = lambda k: pooled(k, "wk_medoids", init="stride")
    variants["wk_medoids, seeds far apart"] = lambda k: pooled(k, "wk_medoids", init="farthest")
    variants["wk_medoids, random seeds"] = from_random_seeds
    return [[label, *(mean_error(build(k)) for k in counts)] for label, build in variants.items()]


@dataclass(frozen=True)
class Training:
    """How long to train.

    Args:
        epochs: Of the base model.
        tuning: Of each pooled model, from the base's weights.
        seeds: Repetitions.
    """

    epochs: int = 30
    tuning: int = 2
    seeds: tuple[int, ...] = (0, 1, 2)


def accuracy(bench: Bench) -> None:
    """Train a small ViT on the CIFAR-10 subset and pool it by every method at three budgets."""
    folder = bench.data / "cifar10" if bench.data is not None else None
    if folder is None or not folder.is_dir():
        bench.report.text(
            "Skipped accuracy: there is no folder `cifar10` with train.tar.gz and test.tar.gz in the data."
        )
        return
    train, test = load_image_tree(folder / "train.tar.gz"), load_image_tree(folder / "test.tar.gz")
    training = Training(1, 1, (0,)) if bench.quick else Training()
    if bench.quick:
        train = ImageSet(train.images[::40], train.labels[::40], train.classes)
        test = ImageSet(test.images[::20], test.labels[::20], test.classes)
    results: dict[tuple[str, str, str], list[float]] = {}
    gmacs: dict[tuple[str, str], float] = {}
    for seed in training.seeds:
        base = _base(bench, train, test, training, seed)
        key = f"{SIZES}, {training.epochs}+{training.tuning} epochs, seed {seed}"
        found = bench.remember(f"base, {key}", partial(_base_accuracy, base, test))
        results.setdefault(("base", "1x", "zero-shot"), []).append(found["accuracy"])
        gmacs["base", "1x"] = cost_of(base).gmacs
        for method in METHODS_COMPARED:
            for budget in BUDGETS:
                found = bench.remember(
                    f"{method} at {budget}, {key}",
                    partial(_pooled_accuracy, bench, base, train, test, training, method, budget, seed),
                )
                gmacs[method, budget] = found["gmacs"]
                for stage in ("zero-shot", "fine-tuned"):
                    results.setdefault((method, budget, stage), []).append(found[stage])
        if seed == training.seeds[0]:
            _look_inside(bench, base, test)
    _report_accuracy(bench, results, gmacs, training, len(train), len(test))


def _base(bench: Bench, train: ImageSet, test: ImageSet, training: Training, seed: int) -> VisionTransformer:
    """Train the unpooled model, or read it from an earlier run in the same folder."""
    torch.manual_seed(seed)
    model = VisionTransformer(**SIZES)
    path = Path(bench.report.out / f"base-{training.epochs}-{seed}.pth")
    if path.exists() and not bench.quick:
        model.load_state_dict(torch.load(path, weights_only=True))
        return model.eval()
    fit(
        model,
        train,
        test,
        epochs=training.epochs,
        lr=1e-3,
        weight_decay=0.05,
        batch_size=64,
        augment=flip_and_shift(),
        label_smoothing=0.1,
        seed=seed,
        device=bench.device,
        progress=bench.progress,
        label=f"base, seed {seed}",
    )
    if not bench.quick:
        draft = path.with_suffix(".part")
        torch.save(model.state_dict(), draft)
        draft.replace(path)
    return model.eval()


def _base_accuracy(base: VisionTransformer, test: ImageSet) -> dict[str, float]:
    return {"accuracy": evaluate(base, test)}


def _pooled_accuracy(
    bench: Bench,
    base: VisionTransformer,
    train: ImageSet,
    test: ImageSet,
    training: Training,
    method: str,
    budget: str,
    seed: int,
) -> dict[str, float]:
    """Pool a copy of the base, test it, fine-tune it, test it again."""
    torch.manual_seed(seed)
    copy = VisionTransformer(**SIZES)
    copy.load_state_dict(base.state_dict())
    # at one position in the block, and without ToMe's attention bias where it was not trained with one
    model = apply(copy, budget, method).to(bench.device).eval()
    before = evaluate(model, test, device=bench.device)
    result = fit(
        model,
        train,
        test,
        epochs=training.tuning,
        lr=2e-4,
        weight_decay=0.05,
        batch_size=64,
        augment=flip_and_shift(),
        label_smoothing=0.1,
        seed=seed,
        device=bench.device,
    )
    return {"zero-shot": before, "fine-tuned": result.accuracy, "gmacs": cost_of(model).gmacs}


def _look_inside(bench: Bench, base: VisionTransformer, test: ImageSet) -> None:
    """Show clusters, error and smoothing of the trained model on real images."""
    with torch.no_grad():
        pooled = apply(base, "r50", iterations=5)
        images = test.images[:: max(1, len(test) // 64)][:64].to(bench.device)
        block: Any = pooled.blocks[pooled_sites(base)[0] - 1]
        x = base._pos_embed(base.patch_embed(images))
        for plain in base.blocks[: pooled_sites(base)[0] - 1]:
            x = plain(x)
        branch, scores, _ = block._attention_branch(x, None, False)
        x = x + branch
        features = (x + block._mlp_branch(x))[:, 1:]
    counts = (45, 32, 16)
    bench.report.heading("A ViT trained on the CIFAR-10 subset, looked into")
    bench.report.table(
        "Reconstruction error on trained tokens",
        ["method", *(f"K = {k} of 64" for k in counts)],
        error_rows(features.cpu(), scores.cpu(), counts),
    )
    picture = cluster_figure(pooled, images[:6], mean=MEAN, std=STD)
    bench.report.figure(picture, "clusters", "Patches that share a token, painted in their mean colour.")
    bench.report.figure(
        plot_low_pass(analyse_attention(base, images)),
        "low-pass",
        "Left: how strongly each block's attention passes spatial frequencies of its values. Right: how far "
        "keys "
        "and attention are from the constant norms and the Gaussian filter of the paper's argument.",
    )


def pooled_sites(model: VisionTransformer) -> list[int]:
    """Return the blocks after which a ratio schedule pools."""
    from graftwork_token_pooling.schedule import usual_blocks

    return list(usual_blocks(len(model.blocks)))


def _report_accuracy(
    bench: Bench,
    results: dict[tuple[str, str, str], list[float]],
    gmacs: dict[tuple[str, str], float],
    training: Training,
    trained: int,
    tested: int,
) -> None:
    def spread(values: list[float]) -> float | None:
        return statistics.stdev(values) if len(values) > 1 else None

    rows: list[Row] = []
    for method, budget in gmacs:
        before = results[method, budget, "zero-shot"]
        after = results.get((method, budget, "fine-tuned"), [])
        rows.append(
            [
                method,
                budget,
                1e3 * gmacs[method, budget],
                statistics.mean(before),
                spread(before),
                statistics.mean(after) if after else None,
                spread(after),
            ]
        )
    bench.report.heading("Accuracy on the CIFAR-10 subset")
    bench.report.text(
        f"ViT with {SIZES['depth']} blocks of {SIZES['embed_dim']} channels on 8 x 8 patches, trained for "
        f"{training.epochs} epochs on {trained:,} images, tested on {tested:,}; {len(training.seeds)} "
        f"seeds, mean and "
        f"standard deviation. Fine-tuned: {training.tuning} more epochs with pooling. Budgets include the "
        f"cost of "
        "pooling; ToMe merges between attention and MLP and uses proportional attention, as published."
    )
    header = ["method", "budget", "MMACs", "zero-shot %", "+-", "fine-tuned %", "+- "]
    bench.report.table("Accuracy", header, rows)
    bench.report.figure(
        _accuracy_figure(results, gmacs),
        "accuracy",
        "Accuracy against multiply-accumulates, mean over the seeds; the dashed line is the unpooled model.",
    )


def _accuracy_figure(
    results: dict[tuple[str, str, str], list[float]], gmacs: dict[tuple[str, str], float]
) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, stage in zip(panels, ("zero-shot", "fine-tuned")):
        for method in METHODS_COMPARED:
            cost = [1e3 * gmacs[method, budget] for budget in BUDGETS]
            values = [statistics.mean(results[method, budget, stage]) for budget in BUDGETS]
            ours = method in ("wk_medoids", "k_medoids", "wk_means")
            axes.plot(cost, values, marker="o", linewidth=2 if ours else 1, label=method)
        axes.axhline(statistics.mean(results["base", "1x", "zero-shot"]), color="grey", linestyle="--")
        axes.set(title=stage, xlabel="MMACs per image")
    panels[0].set_ylabel("accuracy, %")
    panels[1].legend(fontsize=8)
    return figure
