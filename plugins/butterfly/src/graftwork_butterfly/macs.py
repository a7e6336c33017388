"""Multiply-adds of a network, counted as the paper counts them."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from graftwork_butterfly.layers import ButterflyConv1x1, ButterflyLinear


@dataclass(frozen=True)
class Macs:
    """Multiply-adds of one image, by kind of layer.

    Args:
        pointwise: Channel fusion: 1x1 convolutions, dense or butterfly.
        depthwise: Convolutions with one input channel per group.
        convolution: Other convolutions, such as the stem.
        linear: Linear layers.
    """

    pointwise: int
    depthwise: int
    convolution: int
    linear: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.pointwise + self.depthwise + self.convolution + self.linear


def count_macs(
    model: nn.Module,
    input_size: tuple[int, int, int] = (3, 224, 224),
    *,
    convention: Literal["executed", "paper"] = "executed",
) -> Macs:
    """Count the multiply-adds of one image.

    As in the paper, one multiply-add is one FLOP; normalisation, activations, biases and the additions of the
    residual are not counted.

    Example:
        >>> from graftwork_butterfly.models import mobilenetv1_100_bft
        >>> count_macs(mobilenetv1_100_bft(), convention="paper").total
        70191616

    Args:
        model: Counted on a copy without memory; nothing is computed.
        input_size: Channels, height, width.
        convention: ``"executed"`` or ``"paper"``, see :meth:`ButterflyConv1x1.count_macs`.

    Returns:
        The counts.
    """
    counts = dict.fromkeys(("pointwise", "depthwise", "convolution", "linear"), 0)

    def count(module: nn.Module, _: tuple[Any, ...], output: Tensor) -> None:
        if isinstance(module, ButterflyConv1x1):
            counts["pointwise"] += output[0, 0].numel() * module.count_macs(convention)
        elif isinstance(module, ButterflyLinear):
            counts["linear"] += output[..., 0].numel() * module.count_macs(convention)
        elif isinstance(module, nn.Linear):
            counts["linear"] += output[..., 0].numel() * module.weight.numel()
        elif isinstance(module, nn.Conv2d):
            depthwise = module.groups > 1 and module.groups == module.in_channels
            pointwise = tuple(module.kernel_size) == (1, 1) and module.groups == 1
            kind = "depthwise" if depthwise else "pointwise" if pointwise else "convolution"
            counts[kind] += output[0, 0].numel() * module.weight.numel()

    empty = copy.deepcopy(model).to("meta").eval()
    for module in empty.modules():
        module.register_forward_hook(count)
    with torch.no_grad():
        empty(torch.empty(1, *input_size, device="meta"))
    return Macs(**counts)
