"""Demonstration: a small vision transformer on handwritten digits, with all of its tokens and with fewer."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from timm.models import VisionTransformer

from graftwork.bench import Bench
from graftwork.classify import ImageSet, evaluate, fit, load_digits
from graftwork.demo import Stage
from graftwork_token_pooling.patching import apply, cost_of, schedule_of
from graftwork_token_pooling.visualize import cluster_figure

SIZES: dict[str, Any] = {
    "img_size": 32,
    "patch_size": 4,
    "in_chans": 1,
    "num_classes": 10,
    "embed_dim": 64,
    "depth": 6,
    "num_heads": 4,
}
METHODS = {
    "wk_medoids": "Token Pooling, weighted K-Medoids",
    "wk_means": "Token Pooling, weighted K-Means",
    "power_bert": "most attended tokens (PoWER-BERT)",
    "random": "random tokens",
    "grid": "average pooling on the grid",
    "tome": "Token Merging",
}
SCHEDULES = ("r70", "r50", "r25")


def scene(stage: Stage) -> None:
    """Train once, pool by every method without further training, and show tables and clusters.

    Args:
        stage: Where to report, and whether to be quick.
    """
    train, test = load_digits(size=SIZES["img_size"], seed=stage.seed)
    epochs = 1 if stage.quick else 15
    if stage.quick:
        train = ImageSet(train.images[:256], train.labels[:256], train.classes)
    report = stage.report
    report.heading("Token Pooling: the same transformer with fewer tokens")
    torch.manual_seed(stage.seed)
    base = VisionTransformer(**SIZES)
    result = fit(
        base,
        train,
        test,
        epochs=epochs,
        lr=2e-3,
        weight_decay=0.05,
        label_smoothing=0.1,
        seed=stage.seed,
        device=stage.device,
        progress=stage.progress,
        label="training the transformer",
    )
    base.eval()
    report.text(
        f"A vision transformer of {SIZES['depth']} blocks on 8 x 8 patches, trained for {epochs} epochs on "
        f"{len(train):,} scanned digits in {result.seconds:.0f} s, recognises {result.accuracy:.1f} % of "
        f"{len(test):,} others. Below it is pooled **without any further training**: `apply(model, schedule, "
        "method)` and nothing else. At `r50` half of the tokens are left after each of three blocks."
    )
    rows: list[list[str | int | float | None]] = []
    for schedule in SCHEDULES:
        for method, label in METHODS.items():
            pooled = apply(base, schedule, method)
            left = schedule_of(pooled).per_block(64, SIZES["depth"])[-1]
            rows.append(
                [
                    schedule,
                    label,
                    left,
                    1e3 * cost_of(pooled).gmacs,
                    evaluate(pooled, test, device=stage.device),
                ]
            )
    rows.insert(0, ["-", "all tokens", 64, 1e3 * cost_of(base).gmacs, result.accuracy])
    report.table("Accuracy", ["schedule", "method", "tokens at the end", "MMACs", "test accuracy %"], rows)
    _speed(stage, base, test)
    pooled = apply(base, "r50")
    picks = [int((test.labels == digit).nonzero()[0]) for digit in range(0, 10, 2)]
    # load_digits subtracts 0.305 and divides by 0.376
    picture = cluster_figure(pooled, test.images[picks].to(stage.device), mean=(0.305,), std=(0.376,))
    report.figure(
        picture,
        "clusters",
        "Patches that ended in the same token, painted in their mean colour: background first, strokes last.",
    )


def _speed(stage: Stage, base: VisionTransformer, test: ImageSet) -> None:
    """Time the pooled models beside the base, in interleaved rounds."""
    images = test.images[:64].to(stage.device)
    models = {"all tokens": base, **{f"Token Pooling {name}": apply(base, name) for name in SCHEDULES}}
    bench = Bench(stage.report, quick=stage.quick, device=stage.device)
    with torch.inference_mode():
        timings = bench.compare(
            {label: partial(model, images) for label, model in models.items()}, seconds=0.5
        )
    plain = timings["all tokens"].median
    rows: list[list[str | int | float | None]] = [
        [label, len(images) / timing.median, plain / timing.median] for label, timing in timings.items()
    ]
    stage.report.table("Speed, batch of 64", ["model", "images/s", "speed-up"], rows)
