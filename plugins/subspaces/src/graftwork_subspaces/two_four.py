"""The 2:4 pattern: of every four neighbouring weights along the input two remain."""

from __future__ import annotations

import torch
from torch import Tensor


def two_of_four(weight: Tensor) -> Tensor:
    """Zero the two weights of smallest magnitude in every four along the input of a layer.

    Layers whose input is no multiple of four, such as depthwise convolutions, stay as they are.

    Example:
        >>> two_of_four(torch.tensor([[4.0, 1.0, -3.0, 2.0]]))
        tensor([[ 4.,  0., -3.,  0.]])

    Args:
        weight: (outputs, inputs) or (outputs, inputs, height, width).

    Returns:
        Tensor of the same shape.

    Note:
        This is an export of a trained sparse network, not a regime of its own: it adds zeros where a level
        keeps more than half of four weights, and none where it keeps at most two of each four. No dense
        kernel is faster for it; ``torch.sparse.to_sparse_semi_structured`` uses it on GPUs of compute
        capability 8 and up.
    """
    if weight.shape[1] % 4:
        return weight
    last = weight.movedim(1, -1)
    fours = last.reshape(-1, 4)
    smallest = fours.abs().argsort(dim=1, stable=True)[:, :2]
    kept = fours.scatter(1, smallest, torch.zeros_like(fours))
    return kept.view(last.shape).movedim(-1, 1).contiguous()
