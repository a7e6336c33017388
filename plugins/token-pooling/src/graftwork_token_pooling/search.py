r"""Search for the number of tokens after every block, by PoWER-BERT's procedure (arXiv 2001.08950).

Every block gets one retention weight per rank of significance, between 0 and 1, that scales the token of
that rank. Trained with a penalty that grows with the depth, unneeded ranks go to zero; the sum of a
block's weights is its number of tokens. The paper takes the K of all methods it compares from this search.

As a command, for a folder of images with one sub-folder per class::

    python -m graftwork_token_pooling.search --model deit_tiny_patch16_224 --pretrained \
        --data imagenet/train --regularization 1e-3 --out schedule.json
    # then retrain with hard pooling, by timm's own script
    graftwork run train.py --model deit_tiny_patch16_224_tp_r70 --pretrained \
        --model-kwargs schedule=schedule.json --data-dir imagenet
"""

from __future__ import annotations

import argparse
import copy
import math
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from timm.models import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional

from graftwork_token_pooling.blocks import (
    PoolingBlock,
    PoolingBlockMixin,
    PoolingOptions,
    PoolingResPostBlock,
)
from graftwork_token_pooling.grafting import pooling_block, recast
from graftwork_token_pooling.patching import remove
from graftwork_token_pooling.schedule import Schedule
from graftwork_token_pooling.vit import TokenPoolingMixin

Loss = Callable[[Tensor, Tensor], Tensor]


class _SoftExtract(PoolingBlockMixin):
    """A block that scales its patch tokens, between attention and MLP, by their rank of significance."""

    retention: nn.Parameter

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Run the block on all tokens: (B, P + N, M) to (B, P + N, M)."""
        branch, scores, _ = self._attention_branch(x, attn_mask, is_causal)
        assert scores is not None  # the options ask for them
        x = x + branch
        prefix = self.num_prefix_tokens
        order = torch.argsort(scores, dim=1, descending=True, stable=True)
        gain = self.retention[torch.argsort(order, dim=1)].to(x.dtype)
        x = torch.cat([x[:, :prefix], x[:, prefix:] * gain.unsqueeze(2)], dim=1)
        return x + self._mlp_branch(x)


class SoftExtractBlock(_SoftExtract, PoolingBlock):
    """timm's pre-norm block with soft extract."""


class SoftExtractResPostBlock(_SoftExtract, PoolingResPostBlock):
    """timm's post-norm block with soft extract."""


_SOFT: dict[type[nn.Module], type[_SoftExtract]] = {
    PoolingBlock: SoftExtractBlock,
    PoolingResPostBlock: SoftExtractResPostBlock,
}


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Args:
        schedule: The tokens after every block.
        counts: K_1, K_2, ..., of which the schedule is made.
        retention: The weights by block and rank, (L, N), float32, on the CPU.
        losses: Mean loss of every epoch, without the penalty.
    """

    schedule: Schedule
    counts: tuple[int, ...]
    retention: Tensor
    losses: tuple[float, ...]


def soft_extract(model: nn.Module) -> VisionTransformer:
    """Return a copy of a vision transformer with retention weights, all one, in every block.

    Args:
        model: A model of timm's ``VisionTransformer`` class; pooling that it has is left out of the copy.

    Returns:
        An independent model. ``blocks.<i>.retention`` holds the weights, (N,).

    Raises:
        TypeError: It is none, or has blocks whose attention scores are unknown.
    """
    plain = remove(model) if isinstance(model, TokenPoolingMixin) else model
    if not isinstance(plain, VisionTransformer):
        raise TypeError(f"the search works on timm's VisionTransformer, got {type(model).__name__}.")
    soft = copy.deepcopy(plain)
    tokens = soft.patch_embed.num_patches
    for index, block in enumerate(soft.blocks):
        pooling = pooling_block(
            block, Fraction(1), Fraction(1), soft.num_prefix_tokens, PoolingOptions("power_bert")
        )
        extracting = recast(pooling, _SOFT[type(pooling)])
        weight = next(block.parameters())
        extracting.retention = nn.Parameter(torch.ones(tokens, dtype=torch.float32, device=weight.device))
        soft.blocks[index] = extracting
    return soft


def search_schedule(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    regularization: float,
    epochs: int = 3,
    lr: float = 2e-5,
    lr_retention: float = 3e-3,
    weight_decay: float = 0.0,
    loss: Loss = functional.cross_entropy,
    progress: Callable[[Iterable[int], str], Iterable[int]] | None = None,
) -> SearchResult:
    """Learn how many tokens each block needs on a data set.

    Example:
        >>> result = search_schedule(model, loader, regularization=1e-3)  # doctest: +SKIP
        >>> result.schedule.save("schedule.json", tokens=196)  # doctest: +SKIP
        >>> pooled = apply(model, "schedule.json")  # doctest: +SKIP

    Args:
        model: A trained vision transformer of timm; it stays as it is.
        batches: Pairs of images and targets of the loss, gone through once per epoch; a list or a data
        loader.
        regularization: Weight of the penalty, sum over blocks l = 1.. of l times the sum of their
            retention. Higher values leave fewer tokens; 1e-4 to 1e-2 are a good range.
        epochs: Passes over the batches.
        lr: Learning rate of the model's own parameters.
        lr_retention: Learning rate of the retention weights.
        weight_decay: AdamW's decay of the model's own parameters.
        loss: Of output and target.
        progress: Wraps the epochs, as tqdm does.

    Returns:
        The schedule, the weights behind it and the losses.

    Raises:
        TypeError: Not a vision transformer of timm.
        ValueError: There were no batches, or `regularization` is negative.

    Note:
        Token Pooling's paper takes over the procedure without its settings. The class and other prefix
        tokens have no rank here, and the learning rates are this package's choice.
    """
    if regularization < 0:
        raise ValueError(f"regularization must not be negative, got {regularization}.")
    soft = soft_extract(model).train()
    retention = [block.retention for block in soft.blocks]
    known = {id(weights) for weights in retention}
    own = [p for p in soft.parameters() if id(p) not in known and p.requires_grad]
    optimizer = torch.optim.AdamW(
        [
            {"params": own, "lr": lr, "weight_decay": weight_decay},
            {"params": retention, "lr": lr_retention, "weight_decay": 0.0},
        ]
    )
    device = retention[0].device
    losses = []
    rounds: Iterable[int] = range(epochs)
    for _ in progress(rounds, "searching tokens per block") if progress else rounds:
        total, steps = torch.zeros((), device=device), 0
        for images, targets in batches:
            task = loss(soft(images.to(device)), targets.to(device))
            penalty = sum(depth * weights.sum() for depth, weights in enumerate(retention, start=1))
            optimizer.zero_grad(set_to_none=True)
            (task + regularization * penalty).backward()
            optimizer.step()
            with torch.no_grad():
                for weights in retention:
                    weights.clamp_(0, 1)
            total += task.detach()
            steps += 1
        if steps == 0:
            raise ValueError("batches gave nothing; pass a list or a data loader, not an exhausted iterator.")
        losses.append(float(total) / steps)
    stacked = torch.stack([weights.detach().cpu() for weights in retention])
    counts = counts_of(stacked)
    return SearchResult(Schedule.from_counts(counts, stacked.shape[1]), counts, stacked, tuple(losses))


def counts_of(retention: Tensor) -> tuple[int, ...]:
    """Turn retention weights into numbers of tokens: their sums, rounded down, at least 1, never increasing.

    Example:
        >>> counts_of(torch.tensor([[1.0, 1.0, 0.7], [1.0, 0.2, 0.0], [1.0, 1.0, 0.0]]))
        (2, 1, 1)

    Args:
        retention: (L, N).

    Returns:
        K_1, ..., K_L.
    """
    counts: list[int] = []
    for row in retention.double().sum(1).tolist():
        limit = counts[-1] if counts else retention.shape[1]
        counts.append(min(limit, max(1, math.floor(row + 1e-6))))
    return tuple(counts)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    import timm
    from timm.data import create_dataset, create_loader, resolve_data_config

    parser = argparse.ArgumentParser(
        prog="python -m graftwork_token_pooling.search", description="Search the tokens per block."
    )
    parser.add_argument("--model", required=True, help="timm name of a vision transformer")
    parser.add_argument("--pretrained", action="store_true", help="start from published weights")
    parser.add_argument("--checkpoint", type=Path, help="start from this checkpoint")
    parser.add_argument("--data", required=True, help="folder with one sub-folder of images per class")
    parser.add_argument("--regularization", type=float, default=1e-3, help="higher leaves fewer tokens")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=2e-5)
    parser.add_argument("--lr-retention", type=float, default=3e-3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path("schedule.json"))
    options = parser.parse_args(arguments)

    data = create_dataset("", root=options.data, is_training=True)
    classes = len(data.reader.class_to_idx)
    overrides: dict[str, Any] = {} if options.pretrained else {"num_classes": classes}
    model = timm.create_model(
        options.model,
        pretrained=options.pretrained,
        checkpoint_path=str(options.checkpoint) if options.checkpoint else "",
        **overrides,
    ).to(options.device)
    if model.num_classes != classes:
        print(
            f"{options.model} has {model.num_classes} classes, {options.data} has {classes}; fine-tune "
            "it on these classes first and pass --checkpoint without --pretrained.",
            file=sys.stderr,
        )
        return 2
    config = resolve_data_config({}, model=model)
    loader = create_loader(
        data,
        config["input_size"],
        options.batch_size,
        is_training=True,
        mean=config["mean"],
        std=config["std"],
        interpolation=config["interpolation"],
        num_workers=options.workers,
        persistent_workers=options.workers > 0,
        use_prefetcher=False,
        device=torch.device(options.device),
    )
    settings = {
        "regularization": options.regularization,
        "epochs": options.epochs,
        "lr": options.lr,
        "lr_retention": options.lr_retention,
    }
    result = search_schedule(model, loader, **settings)
    tokens = model.patch_embed.num_patches
    path = result.schedule.save(options.out, tokens, model=options.model, losses=result.losses, **settings)
    print(f"tokens after each block: {' '.join(map(str, result.counts))} of {tokens}")
    print(f"schedule: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
