"""Unstructured sparsity: keep the weights of largest magnitude, layer by layer.

Exact counts, ties broken by position, the mask a constant in the backward pass: weights that are cut now get
no gradient from the data and may return when the level changes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from graftwork_subspaces.levels import Level

if TYPE_CHECKING:
    from graftwork_subspaces.layers import OnSubspace


def zero_count(kept: float, size: int) -> int:
    """Return how many of `size` weights are zeroed: floor((1 - kept) * size).

    The product is taken with a slack of 1e-6, because 0.9 * 2359296 is a whole number short by one rounding.

    Args:
        kept: Fraction of the weights that stays.
        size: Weights of the layer.
    """
    return math.floor((1 - kept) * size + 1e-6)


def keep_largest(weight: Tensor, zeros: int) -> Tensor:
    """Return the 0/1 mask that zeroes exactly the `zeros` weights of smallest magnitude.

    Of equal magnitudes those that come first in memory order are zeroed first.

    Args:
        weight: Any shape.
        zeros: How many to zero.

    Returns:
        Mask of the weight's shape and dtype, without gradient.
    """
    with torch.no_grad():
        magnitude = weight.detach().abs().float()
        if zeros <= 0:
            return torch.ones_like(weight)
        if zeros >= magnitude.numel():
            return torch.zeros_like(weight)
        threshold = magnitude.flatten().kthvalue(zeros).values
        mask = magnitude > threshold
        # a count decides on the CPU; on a GPU reading it would wait for the device, so ties are always
        # resolved
        if magnitude.is_cuda or magnitude.numel() - int(mask.sum()) != zeros:
            equal = (magnitude == threshold).flatten()
            surplus = zeros - (magnitude < threshold).sum()
            mask = mask | (equal & (equal.cumsum(0) > surplus)).view_as(mask)
        return mask.to(weight.dtype)


def keep_largest_traced(weight: Tensor, zeros: Tensor) -> Tensor:
    """Return the same mask as :func:`keep_largest` with the count as a tensor.

    A compiled graph then serves every level. It sorts, so evaluation uses prepared weights instead.

    Args:
        weight: Any shape.
        zeros: 0-dimensional int64.
    """
    with torch.no_grad():
        order = weight.detach().abs().float().flatten().argsort(stable=True)
        ranks = torch.empty_like(order).scatter_(0, order, torch.arange(order.numel(), device=order.device))
        return (ranks >= zeros).view_as(weight).to(weight.dtype)


@dataclass(frozen=True, eq=False)
class SparseLevel(Level):
    """A kept fraction, with the number of zeros of every layer.

    Args:
        zeros: By layer index; 0 for layers that stay dense.
        zeros_tensor: The same as int64 tensor, for compiled graphs.
        dense: No layer has any zero.
    """

    zeros: tuple[int, ...] = ()
    zeros_tensor: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    dense: bool = False

    def weight(self, layer: OnSubspace, weight: Tensor) -> Tensor:
        """Zero the smallest weights of a layer. Source: section 4.1, f(omega, gamma) of top-k sparsity."""
        if self.dense or layer.role != "block":
            return weight
        if torch.compiler.is_compiling():
            zeros = self.zeros_tensor[layer.index].to(weight.device)
            return weight * keep_largest_traced(weight, zeros)
        zeros_here = self.zeros[layer.index]
        return weight * keep_largest(weight, zeros_here) if zeros_here else weight
