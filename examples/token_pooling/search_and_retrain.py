"""Find how many tokens each block needs, then retrain with them: PoWER-BERT's procedure on handwritten
digits.

    python search_and_retrain.py --regularization 3e-4

Replace the digits by your own pairs of images and labels; `python -m graftwork_token_pooling.search` does the
first half for a folder of images.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from timm.models import VisionTransformer

import graftwork_token_pooling as tp
from graftwork.classify import ImageSet, evaluate, fit, load_digits
from graftwork_token_pooling.search import search_schedule

TOKENS, DEPTH = 64, 6


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--regularization", type=float, default=3e-4, help="higher leaves fewer tokens")
    parser.add_argument("--epochs", type=int, default=15, help="of the first training")
    parser.add_argument("--search-epochs", type=int, default=5)
    parser.add_argument("--retrain-epochs", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("schedule.json"))
    parser.add_argument("--quick", action="store_true", help="seconds that only prove it runs")
    options = parser.parse_args(arguments)

    train, test = load_digits(size=32)
    if options.quick:
        options.epochs = options.search_epochs = options.retrain_epochs = 1
        train = ImageSet(train.images[:128], train.labels[:128], train.classes)

    torch.manual_seed(0)
    base = VisionTransformer(
        img_size=32, patch_size=4, in_chans=1, num_classes=10, embed_dim=64, depth=DEPTH, num_heads=4
    )
    result = fit(base, train, test, epochs=options.epochs, lr=2e-3)
    print(f"all tokens: {result.accuracy:.1f} %, {1e3 * tp.cost_of(base).gmacs:.1f} MMACs")

    found = search_schedule(
        base,
        list(zip(train.images.split(64), train.labels.split(64))),
        regularization=options.regularization,
        epochs=options.search_epochs,
        lr=1e-4,
        lr_retention=2e-2,
    )
    path = found.schedule.save(options.out, TOKENS, regularization=options.regularization)
    print(f"tokens after each block: {found.counts}, written to {path}")

    searched = tp.apply(base, str(path))
    gmacs = tp.cost_of(searched).gmacs
    print(f"searched schedule: {1e3 * gmacs:.1f} MMACs")
    print(f"  without retraining {evaluate(searched, test):.1f} %")
    # the pooled model shares its parameters with the base, so this retrains both
    tuned = fit(searched, train, test, epochs=options.retrain_epochs, lr=2e-4)
    print(f"  retrained          {tuned.accuracy:.1f} %")


if __name__ == "__main__":
    main()
