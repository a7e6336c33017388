"""The transform in plain torch: the readable twin of the kernels, at any precision and scriptable.

Shapes: B images, C channels, P pixels, c squares ("copies"), N padded order of a square, and per stage
g groups, r radix, s stride. ``layout`` is :attr:`graftwork_butterfly.structure.Structure.layout`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def adds_input(layout: list[int]) -> bool:
    """Whether the residual is ``first_last`` (TorchScript reads no module constants, hence a function)."""
    return layout[5] == 1


def adds_every_other(layout: list[int]) -> bool:
    """Whether the residual is ``every_other``."""
    return layout[5] == 2


def split_stages(weight: Tensor, layout: list[int]) -> list[Tensor]:
    """View the flat weights as one tensor per stage.

    Args:
        weight: (W,) all weights of the layer, square by square, stage by stage.
        layout: Shape of the layer.

    Returns:
        Views of shape (c, g, r, s, r), last axis the input digit.
    """
    padded, copies, count = layout[1], layout[2], layout[6]
    flat = weight.view(copies, -1)
    stages: list[Tensor] = []
    groups, offset = 1, 0
    for t in range(count):
        radix = layout[7 + t]
        stride = padded // (groups * radix)
        stages.append(flat[:, offset : offset + radix * padded].view(copies, groups, radix, stride, radix))
        offset += radix * padded
        groups *= radix
    return stages


def apply_staged(x: Tensor, weight: Tensor, layout: list[int]) -> Tensor:
    """Evaluate the layer stage by stage (eq. 3-7 unrolled), one einsum each.

    Example:
        >>> from graftwork_butterfly.structure import structure
        >>> plan = structure(8, 8)
        >>> apply_staged(torch.randn(1, 8, 49), torch.randn(plan.weights), plan.layout).shape
        torch.Size([1, 8, 49])

    Args:
        x: (B, in, P).
        weight: (W,).
        layout: Shape of the layer.

    Returns:
        (B, out, P).
    """
    z = _squares(x, layout)
    return _join(_run(z, split_stages(weight, layout), adds_every_other(layout)), x, layout)


def dense_matrix(weight: Tensor, layout: list[int]) -> Tensor:
    """Multiply the layer out into the matrix it stands for, residual included.

    Args:
        weight: (W,).
        layout: Shape of the layer.

    Returns:
        (out, in).
    """
    order, padded, copies = layout[0], layout[1], layout[2]
    in_channels, out_channels = layout[3], layout[4]
    stages = split_stages(weight, layout)
    identity = torch.eye(padded, dtype=weight.dtype, device=weight.device)
    if adds_every_other(layout):
        squares = _run(identity.expand(1, copies, padded, padded), stages, True)[0]
    else:
        squares = _multiply_out(stages)[:, 0]
    squares = squares[:, :order, :order]
    if adds_input(layout):
        squares = squares + identity[:order, :order]
    if in_channels > out_channels:
        return squares.permute(1, 0, 2).reshape(order, copies * order)[:, :in_channels]
    return squares.reshape(copies * order, order)[:out_channels]


def two_factors(weight: Tensor, layout: list[int]) -> tuple[Tensor, Tensor]:
    """Regroup every square exactly into two block-diagonal factors of orders a and b, a * b = N.

    The stages before the cut never mix channels that differ in the low digits, those after it never mix
    channels that differ in the high digits, so each group of stages is a batch of small dense matrices.

    Args:
        weight: (W,).
        layout: Shape of the layer; residual not ``every_other``.

    Returns:
        First factor (c, b, a, a), one matrix per low digit, and second factor (c, a, b, b), one per high
        digit.
    """
    copies = layout[2]
    cut, high, low = _cut(layout)
    stages = split_stages(weight, layout)
    first: list[Tensor] = []
    for stage in stages[:cut]:
        _, groups, radix, stride, _ = stage.shape
        by_low = stage.reshape(copies, groups, radix, stride // low, low, radix).permute(0, 4, 1, 2, 3, 5)
        first.append(by_low.reshape(copies * low, groups, radix, stride // low, radix))
    return _multiply_out(first).view(copies, low, high, high), _multiply_out(stages[cut:])


def apply_two_factor(x: Tensor, weight: Tensor, layout: list[int]) -> Tensor:
    """Evaluate the layer as two batched matrix products; more multiplications than staged, far fewer passes.

    Args:
        x: (B, in, P).
        weight: (W,).
        layout: Shape of the layer; residual not ``every_other``.

    Returns:
        (B, out, P), equal to :func:`apply_staged` up to rounding.
    """
    if layout[6] == 1:
        return torch.matmul(dense_matrix(weight, layout), x)
    first, second = two_factors(weight, layout)
    _, low, high, _ = first.shape
    z = _squares(x, layout)
    batch, copies, _, pixels = z.shape
    z = torch.matmul(first, z.reshape(batch, copies, high, low, pixels).transpose(2, 3))
    z = torch.matmul(second, z.transpose(2, 3))
    return _join(z.reshape(batch, layout[2], layout[1], pixels), x, layout)


def count_two_factor_macs(layout: list[int]) -> int:
    """Multiplications per pixel of :func:`apply_two_factor`."""
    _, high, low = _cut(layout)
    return layout[1] * layout[2] * (high + low if layout[6] > 1 else high)


def _cut(layout: list[int]) -> tuple[int, int, int]:
    """Number of stages in the first factor and the orders (a, b); the cut that costs least."""
    padded, count = layout[1], layout[6]
    best, best_high, high = 1, layout[7], 1
    for t in range(count - 1):
        high *= layout[7 + t]
        if high + padded // high < best_high + padded // best_high:
            best, best_high = t + 1, high
    return best, best_high, padded // best_high


def _run(z: Tensor, stages: list[Tensor], every_other: bool) -> Tensor:
    """Apply the stages of all squares to z of shape (B, c, N, P), or (B, 1, N, P) for a common input."""
    batch, shared, padded, pixels = z.shape
    kept = z
    for t, stage in enumerate(stages):
        copies, groups, radix, stride, _ = stage.shape
        if t % 2 == 0:
            kept = z
        parts = z.reshape(batch, shared, groups, radix, stride, pixels).expand(-1, copies, -1, -1, -1, -1)
        z = torch.einsum("cgosi,bcgisp->bcgosp", stage, parts).reshape(batch, copies, padded, pixels)
        shared = copies
        if every_other and t % 2 == 1:
            z = z + kept
    return z


def _multiply_out(stages: list[Tensor]) -> Tensor:
    """Turn stages (c, g, r, s, r) into dense blocks (c, g of the first, n, n).

    An entry is the product of the weights on the one path between its input and its output, so every stage
    is a single broadcast multiplication, from the last to the first.
    """
    copies, groups, radix, stride, _ = stages[-1].shape
    blocks = torch.ones(
        copies, groups * radix, stride, stride, dtype=stages[0].dtype, device=stages[0].device
    )
    for t in range(len(stages) - 1, -1, -1):
        stage = stages[t]
        copies, groups, radix, stride, _ = stage.shape
        inner = blocks.view(copies, groups, radix, stride, 1, stride)
        outer = stage.permute(0, 1, 2, 4, 3).unsqueeze(3)
        blocks = (inner * outer).reshape(copies, groups, radix * stride, radix * stride)
    return blocks


def _squares(x: Tensor, layout: list[int]) -> Tensor:
    """Lay the input out as (B, c or 1, N, P): slices for wide inputs, zero rows for padding."""
    order, padded, copies, in_channels, out_channels = layout[0], layout[1], layout[2], layout[3], layout[4]
    batch, _, pixels = x.shape
    if in_channels > out_channels:
        missing = copies * order - in_channels
        x = functional.pad(x, [0, 0, 0, missing]) if missing > 0 else x
        z = x.reshape(batch, copies, order, pixels)
    else:
        z = x.unsqueeze(1)
    return functional.pad(z, [0, 0, 0, padded - order]) if padded > order else z


def _join(z: Tensor, x: Tensor, layout: list[int]) -> Tensor:
    """Drop padding, add the residual, then sum or concatenate the squares' outputs (B, c, N, P)."""
    order, copies, in_channels, out_channels = layout[0], layout[2], layout[3], layout[4]
    batch, pixels = x.shape[0], x.shape[2]
    z = z[:, :, :order]
    if adds_input(layout):
        z = z + _squares(x, layout)[:, :, :order]
    if in_channels > out_channels:
        return z.sum(1)
    return z.reshape(batch, copies * order, pixels)[:, :out_channels]
