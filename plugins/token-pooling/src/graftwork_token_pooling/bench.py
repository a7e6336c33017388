"""The measured tables of Token Pooling: speed, score computation, reconstruction error, accuracy.

Parts: ``speed``, ``scores``, ``error`` and ``accuracy``.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from functools import partial
from typing import Any

import timm
import torch
from timm.models import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional

from graftwork.bench import Bench
from graftwork_token_pooling import blocks
from graftwork_token_pooling.bench_quality import accuracy, error
from graftwork_token_pooling.cost import Shape, within_budget
from graftwork_token_pooling.patching import apply, cost_of
from graftwork_token_pooling.schedule import Schedule
from graftwork_token_pooling.scores import attend_with_scores, column_scores

Row = list[str | int | float | None]


def bench(bench: Bench) -> None:
    """Run the parts asked for."""
    for part in (speed, scores, error, accuracy):
        if bench.wants(part.__name__):
            part(bench)


def speed(bench: Bench) -> None:
    """Measure images per second of DeiT-S, pooled and not, beside ToMe at equal cost."""
    torch.manual_seed(bench.seed)
    size: dict[str, Any] = {"depth": 4, "embed_dim": 48, "num_heads": 3} if bench.quick else {}
    base = timm.create_model("deit_small_patch16_224", **size).eval().to(bench.device)
    models = contestants(base, bench.quick)
    if bench.device.startswith("cuda"):
        for label, model in list(models.items()):
            compiled: Any = torch.compile(model, mode="reduce-overhead", dynamic=False)
            models[f"{label}, compiled with CUDA graphs"] = compiled
    bench.report.heading("Speed of DeiT-S at 224 pixels, float32, random weights")
    bench.report.text(
        "All models of one block of rows were timed in interleaved rounds. GMACs are counted, clustering "
        "included. The share of the clustering is measured inside the forward pass: distances, iterations, "
        "means "
        "and what else happens between the blocks."
    )
    rows: list[Row] = []
    for threads in bench.threads if bench.device == "cpu" else (1,):
        for batch in (2, 3) if bench.quick else (8, 32):
            images = torch.randn(batch, 3, 224, 224, device=bench.device)
            with bench.torch_threads(threads), torch.inference_mode():
                calls: dict[str, Callable[[], object]] = {
                    label: partial(model, images) for label, model in models.items()
                }
                timings = bench.compare(calls, seconds=0.0, min_rounds=7, warmup=1)
                plain = timings["timm, fused attention"].median
                for label, timing in timings.items():
                    pooled = not (label.startswith("timm") or "compiled" in label)
                    share = pooling_share(models[label], images, 2 if bench.quick else 5) if pooled else None
                    gmacs = cost_of(getattr(models[label], "_orig_mod", models[label])).gmacs
                    rate = batch / timing.median
                    rows.append([label, gmacs, threads, batch, rate, plain / timing.median, share])
    header = ["model", "GMACs", "threads", "batch", "images/s", "speed-up", "share of pooling, %"]
    bench.report.table("Speed", header, rows)


def contestants(base: VisionTransformer, quick: bool) -> dict[str, nn.Module]:
    """Build the models to compare: the base, pooled ones, and for each pooled one ToMe at the same cost."""
    unfused = copy.deepcopy(base)
    for block in unfused.blocks:
        block.attn.fused_attn = False
    models: dict[str, nn.Module] = {"timm, fused attention": base, "timm, unfused attention": unfused}
    shape = Shape.of(base)
    for name in ("r70",) if quick else ("r70", "r50", "d13"):
        models[f"Token Pooling {name}"] = pooled = apply(base, name)
        schedule = tome_schedule(shape, cost_of(pooled).gmacs)
        models[f"ToMe at the cost of {name}"] = apply(base, schedule, "tome")
    return models


def tome_schedule(shape: Shape, gmacs: float) -> Schedule:
    """Find the constant decrement, ToMe's own kind of schedule, that comes closest to a cost from below.

    Where even the largest decrement costs more, three sites with a constant ratio meet the cost.
    """
    highest = 10 * (shape.tokens - 1) // shape.depth

    def cost(schedule: Schedule) -> float:
        return shape.cost(schedule, "tome", position="pre_mlp").gmacs

    def decrement(number: int) -> Schedule:
        step = Fraction(highest - number, 10)
        counts = [shape.tokens - int(step * block) for block in range(1, shape.depth + 1)]
        return Schedule.from_counts(counts, shape.tokens)

    def ratio(number: int) -> Schedule:
        sites = tuple(shape.depth * quarter // 4 for quarter in (1, 2, 3))
        return Schedule.ratio(Fraction(number, 1000), sites)

    candidate = decrement if cost(decrement(0)) <= gmacs else ratio
    return within_budget(gmacs, candidate, highest if candidate is decrement else 1000, cost)


def pooling_share(model: nn.Module, images: Tensor, rounds: int) -> float:
    """Measure which share of a forward pass is spent in pooling, in percent: the median over some rounds."""
    synchronize = torch.cuda.synchronize if images.is_cuda else (lambda: None)
    shares = []
    for _ in range(rounds):
        with _stopwatch(synchronize) as spent:
            synchronize()
            started = time.perf_counter()
            model(images)
            synchronize()
            total = time.perf_counter() - started
        shares.append(100 * spent[0] / total)
    return statistics.median(shares)


@contextmanager
def _stopwatch(synchronize: Callable[[], None]) -> Iterator[list[float]]:
    """Add up the seconds that blocks spend in ``pool_block``."""
    spent = [0.0]
    original = blocks.pool_block

    def timed(*args: Any) -> Any:
        synchronize()
        started = time.perf_counter()
        result = original(*args)
        synchronize()
        spent[0] += time.perf_counter() - started
        return result

    blocks.pool_block = timed  # type: ignore[assignment]
    try:
        yield spent
    finally:
        blocks.pool_block = original


def scores(bench: Bench) -> None:
    """Measure the ways to get attention's column sums beside its output."""
    batch, heads, tokens, width = (2, 3, 50, 16) if bench.quick else (8, 6, 197, 64)
    scale = width**-0.5
    q, k, v = torch.randn(3, batch, tokens, heads, width).transpose(2, 3).unbind(0)
    calls: dict[str, Callable[[], Any]] = {
        "fused attention, no scores": lambda: functional.scaled_dot_product_attention(q, k, v),
        "full matrix": lambda: attend_with_scores(q, k, v, scale, fused=False),
        "blocks of the matrix (used for inference)": lambda: attend_with_scores(q, k, v, scale),
        "fused, and blocks for the scores (used in training)": lambda: (
            functional.scaled_dot_product_attention(q, k, v),
            column_scores(q, k, scale),
        ),
        "fused, and log-sum-exp": lambda: from_log_sum_exp(q, k, v, scale),
        "fused, and fused with queries and keys exchanged": lambda: from_exchanged_roles(q, k, v),
    }
    _, expected = calls["full matrix"]()
    rows: list[Row] = []
    for threads in bench.threads:
        with bench.torch_threads(threads), torch.inference_mode():
            timings = bench.compare(calls, seconds=1.0)
            plain = timings["fused attention, no scores"].median
            for label, timing in timings.items():
                error = None if "no scores" in label else float((calls[label]()[1] - expected).abs().max())
                rows.append([label, threads, 1e3 * timing.median, timing.median / plain, error])
    bench.report.heading(f"Attention with scores: batch {batch}, {heads} heads, {tokens} tokens, float32")
    header = ["how", "threads", "ms", "time, ratio", "largest difference of a score"]
    bench.report.table("Scores", header, rows)


def from_log_sum_exp(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Attend by the fused CPU kernel and sum exp(q k - lse) head by head: output and scores (B, N)."""
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)
    total = torch.zeros(q.shape[0], q.shape[2])
    for head in range(q.shape[1]):
        logits = torch.baddbmm(
            -lse[:, head].unsqueeze(2), q[:, head], k[:, head].transpose(1, 2), alpha=scale
        )
        total += logits.exp_().sum(1)
    return out, total


def from_exchanged_roles(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Attend by the fused CPU kernel twice: for keys that query the queries, lse is the log of the score."""
    attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    out, lse = attend(q, k, v)
    batch, heads, tokens, _ = q.shape
    _, received = attend(k, q, v, attn_mask=-lse.unsqueeze(2).expand(batch, heads, tokens, tokens))
    return out, received.exp().sum(1)
