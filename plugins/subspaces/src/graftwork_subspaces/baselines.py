"""What the subspaces are compared with: networks for one level, slimmable networks, network slimming."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from graftwork_subspaces.levels import DEFAULT_RANGES, VALUE_NAMES
from graftwork_subspaces.net import CompressibleNet
from graftwork_subspaces.samplers import Fixed, Sandwich
from graftwork_subspaces.wrap import wrap


def fixed_level(
    model: nn.Module, regime: Literal["sparse", "width", "quant"], value: float, **options: Any
) -> CompressibleNet:
    """Make a network trained for one level only: batch norm, and for sparsity a linear ramp to the level.

    Example:
        >>> import timm
        >>> net = fixed_level(timm.create_model("resnet18"), "quant", 6)

    Args:
        model: Model to compress; taken over.
        regime: ``"sparse"``, ``"width"`` or ``"quant"``.
        value: Kept fraction, width or bits.
        options: Further arguments of :func:`graftwork_subspaces.wrap`.

    Returns:
        A point whose only level is `value`.
    """
    options = {"norm": "batch", "sampler": Fixed((1.0,)), "ramp": regime == "sparse", **options}
    return wrap(model, regime=regime, subspace="point", levels={"lo": value, "hi": value}, **options)


def slimmable(
    model: nn.Module, widths: Sequence[float] | None = None, *, lo: float | None = None, **options: Any
) -> CompressibleNet:
    """Make a slimmable network: a width point that keeps batch norm, its statistics shared by all widths.

    It differs from the width point in the norm only. Evaluate it as it is, and with :func:`recalibrate`,
    which is what its authors do.

    Args:
        model: Model to compress; taken over.
        widths: Trained widths, all of them in every step (slimmable); the sandwich rule over a range when
            None (universally slimmable).
        lo: Smallest width of the range.
        options: Further arguments of :func:`graftwork_subspaces.wrap`.
    """
    smallest = min(widths) if widths else (DEFAULT_RANGES["width"][0] if lo is None else lo)
    span = 1 - smallest
    sampler = Fixed([(w - smallest) / span if span else 1.0 for w in widths]) if widths else Sandwich(4)
    options = {"norm": "batch", "sampler": sampler, **options}
    return wrap(model, regime="width", subspace="point", levels={"lo": smallest, "hi": 1.0}, **options)


@torch.no_grad()
def recalibrate(net: CompressibleNet, batches: Iterable[Tensor], value: float) -> nn.Module:
    """Return one level as an ordinary model whose batch statistics were estimated anew.

    This is the step that subspaces with norms without statistics do without.

    Args:
        net: Network with batch norm.
        batches: Training images.
        value: Kept fraction, width or bits.

    Raises:
        ValueError: The network has no batch norm.
    """
    model = net.materialize(**{VALUE_NAMES[net.settings.regime]: value})
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    if not norms:
        raise ValueError("this network has no batch norm, so there is nothing to recalibrate.")
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # plain average over the batches
        norm.train()
    for x in batches:
        model(x)
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum
    return model.eval()


def slimming_penalty(model: nn.Module, factor: float = 1e-5) -> Tensor:
    """Return the L1 norm of all batch-norm scales times a factor: the loss term of network slimming."""
    scales = [m.weight.abs().sum() for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    if not scales:
        raise ValueError("network slimming needs batch norm, and this model has none.")
    return factor * torch.stack(scales).sum()


@dataclass(frozen=True)
class Slimmed:
    """A network-slimming result.

    Args:
        model: Copy whose weakest channels are silent.
        kept: Channels left, over all batch norms.
        total: Channels of all batch norms.
    """

    model: nn.Module
    kept: int
    total: int


@torch.no_grad()
def slim(model: nn.Module, fraction: float) -> Slimmed:
    """Silence the channels with the smallest batch-norm scales, by one threshold and without tuning.

    Args:
        model: Ordinary model, trained with :func:`slimming_penalty`.
        fraction: Share of the channels to keep, in (0, 1].
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must lie in (0, 1], got {fraction}.")
    model = copy.deepcopy(model)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    scales = torch.cat([norm.weight.abs() for norm in norms])
    silent = round((1 - fraction) * scales.numel())
    threshold = float(scales.sort().values[silent - 1]) if silent else -1.0
    kept = 0
    for norm in norms:
        mask = norm.weight.abs() > threshold
        norm.weight.mul_(mask)
        norm.bias.mul_(mask)
        kept += int(mask.sum())
    return Slimmed(model, kept, scales.numel())
