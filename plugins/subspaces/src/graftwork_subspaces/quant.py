"""Quantisation: a signed affine code of 2 to 8 bits for weights and for what enters a layer.

Scale and zero point stay on the device as tensors; no value is read back to Python.
Notation: `half` = 2 ** (bits - 1), so codes run from -half to half - 1.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from graftwork_subspaces.levels import Level, in_backward

if TYPE_CHECKING:
    from graftwork_subspaces.layers import OnSubspace

EMA_MOMENTUM = 0.1


def affine_code(lowest: Tensor, highest: Tensor, half: Tensor) -> tuple[Tensor, Tensor]:
    """Return scale and zero point of the code for a range.

    The range is first widened to contain 0, so that zero is coded exactly.

    Args:
        lowest: Smallest value, 0-dimensional.
        highest: Largest value.
        half: 2 ** (bits - 1).

    Returns:
        Scale, 0 for an empty range, and zero point, both float and 0-dimensional.
    """
    lowest, highest = lowest.clamp_max(0), highest.clamp_min(0)
    scale = (highest - lowest) / (2 * half - 1)
    safe = torch.where(scale > 0, scale, torch.ones_like(scale))
    zero_point = (-half - lowest / safe).round()
    return scale, torch.minimum(torch.maximum(zero_point, -half), half - 1)


def encode(x: Tensor, scale: Tensor, zero_point: Tensor, half: Tensor) -> Tensor:
    """Return the codes of a tensor, as floats holding whole numbers; all at the zero point for scale 0."""
    safe = torch.where(scale > 0, scale, torch.ones_like(scale))
    codes = (x / safe).round() + zero_point
    codes = torch.minimum(torch.maximum(codes, -half), half - 1)
    return torch.where(scale > 0, codes, zero_point)


class _StraightThrough(torch.autograd.Function):
    """Round in the forward pass, do nothing in the backward pass, also where the value was clipped."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, lowest: Tensor, highest: Tensor, half: Tensor) -> Tensor:
        scale, zero_point = affine_code(lowest, highest, half)
        return (encode(x.float(), scale, zero_point, half) - zero_point).mul(scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        return grads[0], None, None, None


def fake_quantise(x: Tensor, lowest: Tensor, highest: Tensor, half: Tensor) -> Tensor:
    """Round a tensor to the values its code can express; the gradient passes straight through.

    Example:
        >>> x = torch.linspace(-1, 1, 101)
        >>> len(fake_quantise(x, x.min(), x.max(), torch.tensor(4.0)).unique())
        8

    Args:
        x: Any shape.
        lowest: Lower end of the range, 0-dimensional.
        highest: Upper end.
        half: 2 ** (bits - 1), 0-dimensional.

    Returns:
        Tensor like x. Source: the quantised-training scheme that section 4 of the paper builds on.
    """
    rounded: Tensor = _StraightThrough.apply(x, lowest.float(), highest.float(), half.float())
    return rounded


class InputRange(nn.Module):
    """Moving average of the range of what enters a layer, shared by every bit width.

    The first batch is copied; later ones enter with momentum 0.1.
    """

    lowest: Tensor
    highest: Tensor
    seen: Tensor

    def __init__(self, device: torch.device | None = None) -> None:
        super().__init__()
        self.register_buffer("lowest", torch.zeros((), device=device))
        self.register_buffer("highest", torch.zeros((), device=device))
        self.register_buffer("seen", torch.zeros((), dtype=torch.bool, device=device))

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """Take a batch into the average."""
        lowest, highest = (value.to(self.lowest) for value in x.detach().aminmax())
        momentum = torch.where(self.seen, EMA_MOMENTUM, 1.0).to(self.lowest)
        self.lowest.lerp_(lowest, momentum)
        self.highest.lerp_(highest, momentum)
        self.seen.fill_(True)

    def forward(self, x: Tensor, half: Tensor) -> Tensor:
        """Round a batch to the codes of the range; before any batch was seen it passes unchanged."""
        return torch.where(self.seen, fake_quantise(x, self.lowest, self.highest, half), x)


@dataclass(frozen=True, eq=False)
class QuantLevel(Level):
    """A bit width, one for the network or one per layer.

    Args:
        halves: 2 ** (bits - 1) by layer index, as a float tensor for compiled graphs.
        bits: Bits by layer index.
        inputs_too: What enters a layer is quantised as well: always in evaluation, in training after the
            delay.
        observe: In training, ranges follow what enters.
    """

    halves: Tensor = field(default_factory=lambda: torch.zeros(0))
    bits: tuple[int, ...] = ()
    inputs_too: bool = True
    observe: bool = False

    def weight(self, layer: OnSubspace, weight: Tensor) -> Tensor:
        """Round a layer's weights to their code; the range is that of the weights as they are now."""
        if layer.role != "block":
            return weight
        lowest, highest = weight.detach().aminmax()
        return fake_quantise(weight, lowest, highest, self.halves[layer.index].to(weight.device))

    def inputs(self, layer: OnSubspace, x: Tensor) -> Tensor:
        """Round what enters a layer; in training its range is followed first."""
        if layer.role != "block" or layer.input_range is None or not self.inputs_too:
            return x
        if layer.training and self.observe and (torch.compiler.is_compiling() or not in_backward()):
            layer.input_range.observe(x)
        return layer.input_range(x, self.halves[layer.index].to(x.device))
