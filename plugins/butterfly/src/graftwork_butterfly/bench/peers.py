"""What a butterfly layer is timed against: other ways to compute the same function."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from graftwork_butterfly.layers import ButterflyConv1x1
from graftwork_butterfly.structure import structure


class ReleasedCost(nn.Module):
    """The arithmetic of the released layer: multiply the matrix out of gathered weights, then convolve.

    Its index table says for every stage and every entry of the matrix which weight lies on the path. The table
    here is filled at random: it costs the same to use, and only the cost matters.

    Args:
        channels: Order n.
        base: Radix k.
    """  # noqa: E501

    index: Tensor

    def __init__(self, channels: int, base: int = 4) -> None:
        super().__init__()
        stages = 1
        while base**stages < channels:
            stages += 1
        self.weight = nn.Parameter(torch.randn(base * channels * stages) / base**0.5)
        of_stage = torch.arange(stages).view(-1, 1, 1) * base * channels
        self.register_buffer("index", of_stage + torch.randint(base * channels, (stages, channels, channels)))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, n, H, W) to the same shape."""
        matrix = self.weight[self.index].prod(0)
        return nn.functional.conv2d(x, matrix[:, :, None, None]) + x


class StackedRadix2(nn.Module):
    """Radix-2 stages one after the other, each a broadcast product and a sum, as plain-PyTorch libraries do.

    Args:
        channels: Order n, a power of two.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.stages = structure(channels, channels, 2).stages
        self.weight = nn.Parameter(torch.randn(sum(stage.size for stage in self.stages)) / 2**0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, n, H, W) to the same shape."""
        z = x.flatten(2)
        for stage in self.stages:
            weight = self.weight[stage.offset : stage.offset + stage.size]
            parts = z.view(len(x), stage.groups, 1, 2, stage.stride, -1)
            twiddle = weight.view(1, stage.groups, 2, stage.stride, 2, 1).transpose(3, 4)
            z = (twiddle * parts).sum(3).view(z.shape)
        return z.view_as(x) + x


def competitors(channels: int, *, few: bool) -> dict[str, nn.Module]:
    """Return layers of one size by the name of their column; the first is what the others are compared with.

    Args:
        channels: Order n.
        few: Leave out the forms that take long or much memory.
    """
    layers: dict[str, nn.Module] = {"dense": nn.Conv2d(channels, channels, 1, bias=False)}
    if not few:
        layers["released"] = ReleasedCost(channels)
        layers["radix-2 stack"] = StackedRadix2(channels)
        layers["staged"] = ButterflyConv1x1(channels, channels, backend="staged")
    layers["two_factor"] = ButterflyConv1x1(channels, channels, backend="two_factor")
    layers["fused"] = ButterflyConv1x1(channels, channels, backend="fused")
    return layers


def training_step(layer: nn.Module, x: Tensor, grad: Tensor) -> Callable[[], None]:
    """Return a forward and backward pass through one layer, gradients of weights and input included."""

    def step() -> None:
        layer(x).backward(grad)
        x.grad = None
        for parameter in layer.parameters():
            parameter.grad = None

    return step
