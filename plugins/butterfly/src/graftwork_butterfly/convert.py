"""Weights trained with the released code, whose butterflies have their output rows permuted.

The released layer takes the slot of every stage from the lowest base-k digit of the output index where the
digit of that stage is meant (operator precedence). Its matrix is still a butterfly B, with rows in another
order: ``W[j] = B[j']`` with ``j' = j_0 n / k + floor(j / k)``, j_0 the lowest digit of j; the residual is
not permuted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from graftwork_butterfly.layers import ButterflyConv1x1
from graftwork_butterfly.structure import structure


class RotatedButterflyConv1x1(nn.Module):
    """A layer that computes what the released code computes, on the implementations of this package.

    Args:
        in_channels: Channels read.
        out_channels: Channels written.
        base: Radix k, of which the smaller number of channels must be a power.
        residual: Add the unpermuted input to every square, as the released layer does by default.
        backend: Which implementation to use.
    """

    order: Tensor

    def __init__(
        self, in_channels: int, out_channels: int, base: int, residual: bool = True, backend: str = "auto"
    ) -> None:
        super().__init__()
        self.butterfly = ButterflyConv1x1(in_channels, out_channels, base, "none", backend=backend)
        self.residual = residual
        plan = self.butterfly.structure
        if set(plan.radices) != {base} or plan.padded != plan.order:
            raise ValueError(
                "the released code makes a butterfly only where the order is a power of the base; got "
                f"squares of order {plan.order} and base {base}. Elsewhere it ties weights by accident, "
                "which cannot be converted."
            )
        self.copies, self.square, self.sums = plan.copies, plan.order, plan.sums_copies
        j = torch.arange(plan.order)
        rotated = j % base * (plan.order // base) + j // base
        if not plan.sums_copies:
            # a last square that is cut keeps its first rows, which lie anywhere in B: compute all of it
            self.butterfly = ButterflyConv1x1(
                in_channels, plan.copies * plan.order, base, "none", backend=backend
            )
            rotated = torch.cat([rotated + c * plan.order for c in range(plan.copies)])[:out_channels]
        self.register_buffer("order", rotated, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in, H, W) to (B, out, H, W)."""
        y = self.butterfly(x).index_select(1, self.order)
        if not self.residual:
            return y
        if self.sums:
            missing = self.copies * self.square - x.shape[1]
            padded = nn.functional.pad(x, [0, 0, 0, 0, 0, missing])
            return y + padded.unflatten(1, (self.copies, self.square)).sum(1)
        return y + x.repeat(1, self.copies, 1, 1)[:, : y.shape[1]]


def stage_weights(weight: Tensor, order: int, base: int) -> Tensor:
    """Sort the weights of one released square into stages in the paper's order.

    Args:
        weight: (k n L,) the parameter ``weight1``, laid out [stage][slot][node].
        order: Channels n of the square, a power of the base.
        base: Radix k.

    Returns:
        (k n L,) weights of a square butterfly of this package.

    Raises:
        ValueError: The number of weights does not fit.
    """
    plan = structure(order, order, base)
    if set(plan.radices) != {base} or weight.numel() != plan.weights:
        raise ValueError(
            f"a square of order {order} and base {base} has {plan.weights} weights if the order is a power "
            f"of the base, got {weight.numel()}."
        )
    stages = len(plan.radices)
    slots = weight.reshape(stages, base, order)
    sorted_stages = []
    for t in range(stages):
        rest = base ** (stages - t - 1)
        if t == 0:  # the slot is the new digit itself: [o][i, p] -> [o][p][i]
            stage = slots[0].view(base, base, rest).transpose(1, 2)
        else:  # [j_0][high digits, o, i, p] -> [j_0, high digits][o][p][i]
            stage = slots[t].view(base, base ** (t - 1), base, base, rest).transpose(3, 4)
        sorted_stages.append(stage.reshape(-1))
    return torch.cat(sorted_stages)


def convert_layer(
    weights: Sequence[Tensor],
    in_channels: int,
    out_channels: int,
    base: int,
    *,
    residual: bool = True,
    backend: str = "auto",
) -> RotatedButterflyConv1x1:
    """Make a layer from the weights of a released one.

    Example:
        >>> layer = convert_layer([torch.randn(4 * 64 * 3)], 64, 64, 4)
        >>> layer(torch.randn(1, 64, 7, 7)).shape
        torch.Size([1, 64, 7, 7])

    Args:
        weights: ``weight1`` of every square of the layer, in order; one for equal channel counts, otherwise
            as many as the larger count is of the smaller, rounded up.
        in_channels: Channels read.
        out_channels: Channels written.
        base: Radix k it was trained with (``butterfly_K``).
        residual: Whether it was trained with its residual connection.
        backend: Which implementation to use.

    Returns:
        The layer, with the same function.

    Raises:
        ValueError: Numbers do not fit, or the order is no power of the base.
    """
    layer = RotatedButterflyConv1x1(in_channels, out_channels, base, residual, backend)
    if len(weights) != layer.copies:
        raise ValueError(
            f"a layer of {in_channels} to {out_channels} channels has {layer.copies} squares, got the "
            f"weights of {len(weights)}."
        )
    with torch.no_grad():
        flat = torch.cat([stage_weights(weight, layer.square, base) for weight in weights])
        layer.butterfly.weight.copy_(flat)
    return layer


def released_weights(state: Mapping[str, Tensor], prefix: str) -> list[Tensor]:
    """Collect ``weight1`` of all squares of one layer from a checkpoint of the released code.

    The layer's unused dense ``weight`` is left behind.

    Args:
        state: State dict.
        prefix: Name of the layer in it.

    Returns:
        The weights, in the order of the state dict.

    Raises:
        KeyError: There are none.
    """
    found = [
        value
        for name, value in state.items()
        if name.startswith(f"{prefix}.") and name.rpartition(".")[2] == "weight1"
    ]
    if not found:
        layers = sorted({name.rpartition(".")[0] for name in state if name.endswith("weight1")})
        raise KeyError(
            f"no weight1 below {prefix!r}; the state dict has some below {', '.join(layers) or 'none'}."
        )
    return found
