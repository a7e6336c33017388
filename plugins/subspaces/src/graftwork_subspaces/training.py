"""Training: which levels a step visits, and one step of it with the memory of a single level."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from graftwork_subspaces.levels import Level
from graftwork_subspaces.net import CompressibleNet
from graftwork_subspaces.samplers import Fixed, step_generator

Criterion = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class StepLosses:
    """What a step found.

    Args:
        losses: Loss at each level, detached, in the order of `levels`.
        regulariser: beta times the squared cosine between the ends, detached; None for a point.
        levels: Levels that were visited.
    """

    losses: tuple[Tensor, ...]
    regulariser: Tensor | None
    levels: tuple[Level, ...]

    @property
    def total(self) -> Tensor:
        """Sum of the losses and the regulariser: what was minimised, up to the chosen reduction."""
        total = torch.stack(self.losses).sum()
        return total if self.regulariser is None else total + self.regulariser


def warmup_steps(warmup: float, total_steps: int) -> int:
    """Return T_w, the steps before the final compression: the share of the training, rounded up."""
    return math.ceil(warmup * total_steps - 1e-9)


def step_levels(
    net: CompressibleNet, step: int, total_steps: int, *, seed: int = 0, rank: int = 0
) -> list[Level]:
    """Return the levels of a training step; the same for equal (seed, step, rank).

    Args:
        net: The network.
        step: Optimiser step, from 0.
        total_steps: Of the whole training.
        seed: Of the run.
        rank: Leave at 0 so that all processes visit the same levels.

    Returns:
        One level, or several for widths. Source: sections 4.1 to 4.3; section 4.4 of our reading of the code.
    """
    settings, generator = net.settings, step_generator(seed, step, rank)
    end = warmup_steps(settings.warmup, total_steps)
    rest = max(1 - step / end, 0.0) if end else 0.0
    alphas = [settings.map.spread(unit) for unit in settings.sampler.draw(generator)]
    values = [settings.map.value(alpha) for alpha in alphas]
    if settings.regime == "sparse":
        if settings.subspace == "line" or settings.ramp:
            values = [value + (1 - value) * rest for value in values]
        elif step < end:
            values = [settings.map.hi] * len(values)
        return [net.make_level(alpha, value) for alpha, value in zip(alphas, values)]
    if settings.regime == "width":
        return [net.make_level(alpha, value) for alpha, value in zip(alphas, values)]
    after = step >= end
    if settings.subspace == "line" or isinstance(settings.sampler, Fixed):
        return [net.make_level(a, v, inputs_too=after, observe=after) for a, v in zip(alphas, values)]
    if not after:
        return [net.make_level(1.0, settings.map.hi, inputs_too=False)]
    bits = None
    if settings.bits_per == "layer":
        slots = 1 + max(layer.index for layer in net.layers())
        draws = [settings.sampler.draw(generator)[0] for _ in range(slots)]
        bits = tuple(int(settings.map.value(settings.map.spread(unit))) for unit in draws)
    return [net.make_level(a, v, bits=bits, observe=True) for a, v in zip(alphas, values)]


def loss_step(
    net: nn.Module,
    x: Tensor,
    y: Tensor,
    criterion: Criterion = functional.cross_entropy,
    *,
    step: int,
    total_steps: int,
    seed: int = 0,
    per_rank: bool = False,
    scaler: torch.amp.GradScaler | None = None,
    amp_dtype: torch.dtype | None = None,
    accumulate: int = 1,
    micro: int = 0,
    reduction: Literal["sum", "mean"] = "sum",
) -> StepLosses:
    """Add the gradients of one training step; the optimiser's step is the caller's.

    Every level is run forward and backward on its own, so the memory is that of one level, whatever the
    number.

    Example:
        >>> for step, (x, y) in enumerate(loader):  # doctest: +SKIP
        ...     optimizer.zero_grad()
        ...     loss_step(net, x, y, step=step, total_steps=len(loader))
        ...     optimizer.step()

    Args:
        net: Compressible network, also inside DistributedDataParallel or ``torch.compile``.
        x: Batch of inputs.
        y: Their targets.
        criterion: Maps (outputs, targets) to a scalar.
        step: Optimiser step, from 0; decides the levels.
        total_steps: Of the whole training.
        seed: Of the run.
        per_rank: Let every process draw its own levels; their gradients are averaged.
        scaler: For float16; unscale, clip and step with it as usual.
        amp_dtype: Run the forward pass under autocast with this type.
        accumulate: Micro-batches per optimiser step; all of them visit the same levels.
        micro: Which of them this is, from 0.
        reduction: ``"sum"`` or ``"mean"`` over the levels of a step. The published recipes assume the sum.

    Returns:
        The losses.

    Raises:
        ValueError: The network is in evaluation mode, or a number is out of range.
    """
    core = unwrap(net)
    if not core.training:
        raise ValueError(
            "the network is in evaluation mode, where weights are prepared; call net.train() first."
        )
    if not 0 <= micro < accumulate:
        raise ValueError(f"micro counts from 0 to accumulate - 1 = {accumulate - 1}, got {micro}.")
    if not 0 <= step < total_steps:
        raise ValueError(f"step counts from 0 to total_steps - 1 = {total_steps - 1}, got {step}.")
    if reduction not in ("sum", "mean"):
        raise ValueError(f"reduction must be 'sum' or 'mean', got {reduction!r}.")
    rank = torch.distributed.get_rank() if per_rank and torch.distributed.is_initialized() else 0
    levels = step_levels(core, step, total_steps, seed=seed, rank=rank)
    share = 1 / accumulate / (len(levels) if reduction == "mean" else 1)
    losses, penalty = [], None
    for number, level in enumerate(levels):
        last = number == len(levels) - 1
        with _communication(net, last and micro == accumulate - 1), core.context.enter(level):
            with _autocast(x.device.type, amp_dtype):
                loss = criterion(net(x), y)
            losses.append(loss.detach())
            loss = loss * share
            if last:
                penalty = core.regulariser()
                loss = loss if penalty is None else loss + penalty / accumulate
            scaled = loss if scaler is None else cast("Tensor", scaler.scale(loss))
            scaled.backward()  # type: ignore[no-untyped-call]
    return StepLosses(tuple(losses), None if penalty is None else penalty.detach(), tuple(levels))


def unwrap(net: nn.Module) -> CompressibleNet:
    """Return the compressible network inside DistributedDataParallel or a compiled module."""
    inner: Any = net
    while not isinstance(inner, CompressibleNet):
        if isinstance(inner, nn.parallel.DistributedDataParallel):
            inner = inner.module
        elif hasattr(inner, "_orig_mod"):
            inner = inner._orig_mod
        else:
            raise TypeError(
                f"expected a network made by graftwork_subspaces.wrap, got {type(inner).__name__}; wrap the "
                "model "
                "first, then DistributedDataParallel or torch.compile around it."
            )
    return inner


def _communication(net: nn.Module, synchronise: bool) -> AbstractContextManager[Any]:
    inner: Any = net
    while not hasattr(inner, "no_sync") and hasattr(inner, "_orig_mod"):
        inner = inner._orig_mod
    return nullcontext() if synchronise or not hasattr(type(inner), "no_sync") else inner.no_sync()


def _autocast(device: str, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    return nullcontext() if dtype is None else torch.autocast(device, dtype)


def calibrate(net: CompressibleNet, batches: Iterable[Tensor]) -> None:
    """Let the input ranges of a quantised network follow some batches, without training.

    Args:
        net: Quantised network.
        batches: Inputs, without targets.
    """
    observed = [layer for layer in net.layers() if layer.input_range is not None]
    if not observed:
        raise ValueError("only a network wrapped with regime='quant' has input ranges to calibrate.")
    modes = [layer.training for layer in observed]
    alpha = net.settings.map.spread(1.0)
    level = net.make_level(alpha, net.settings.map.value(alpha), inputs_too=True, observe=True)
    try:
        for layer in observed:
            layer.training = True
        with torch.no_grad(), net.context.enter(level):
            for x in batches:
                net.model(x)
    finally:
        for layer, mode in zip(observed, modes):
            layer.training = mode


def learning_rate(epoch: int, epochs: int, peak: float, warmup_epochs: int = 5) -> float:
    """Return the learning rate of an epoch in the paper's recipe: linear warm-up, then half a cosine.

    Args:
        epoch: From 0.
        epochs: Of the training.
        peak: 0.1 in the paper, 0.025 for quantisation.
        warmup_epochs: Length of the warm-up.
    """
    if epoch < warmup_epochs:
        return peak * (epoch + 1) / warmup_epochs
    return peak * 0.5 * (1 + math.cos(math.pi * (epoch - warmup_epochs) / max(1, epochs - warmup_epochs)))
