"""Integer inference on a CPU: 8-bit activations times 8-bit weights through oneDNN's kernels.

Codes of 3 to 7 bits fit into 8, so every level runs in the same kernel and the latency does not depend on
the bits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from graftwork_subspaces.quant import InputRange, affine_code, encode


class Int8Unavailable(RuntimeError):
    """Integer kernels cannot be used here; the message says why and what to do."""


@torch.library.custom_op("graftwork_subspaces::int8_conv", mutates_args=())
def int8_conv(
    codes: Tensor,
    input_scale: float,
    input_zero: int,
    packed: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    out_channels: int,
    kernel: list[int],
) -> Tensor:
    """Convolve unsigned codes with a packed int8 weight into float32, with oneDNN.

    Args:
        codes: (B, C, H, W) uint8.
        input_scale: Of the codes.
        input_zero: Code of zero.
        packed: Weight as oneDNN packed it.
        weight_scale: (1,) float.
        bias: (C',) or None.
        stride: Two numbers.
        padding: Two numbers.
        dilation: Two numbers.
        groups: Of the convolution.
        out_channels: C'.
        kernel: Height and width.

    Returns:
        (B, C', H', W') float32.
    """
    zero = torch.zeros(1, dtype=torch.int32)
    return torch.ops.onednn.qconv_pointwise(
        codes, input_scale, input_zero, packed, weight_scale, zero, bias, stride, padding, dilation, groups,
        1.0, 0, torch.float32, "none", [], "",
    ).contiguous()  # fmt: skip


@int8_conv.register_fake
def _(
    codes: Tensor,
    input_scale: float,
    input_zero: int,
    packed: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    out_channels: int,
    kernel: list[int],
) -> Tensor:
    size = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, p, d, k, s in zip(codes.shape[2:], padding, dilation, kernel, stride)
    ]
    return codes.new_empty(codes.shape[0], out_channels, *size, dtype=torch.float32)


class Int8Conv2d(nn.Module):
    """Convolution whose input and weight are integer codes and whose output is float.

    The weight's zero point is not zero; its share, the zero point times the sum of the inputs under the
    kernel, is taken off with a second, single-channel convolution per group.

    Args:
        conv: Ordinary convolution with rounded weights.
        code: Scale and zero point of the weights.
        ranges: Range of the inputs.
        half: 2 ** (bits - 1).
    """

    def __init__(self, conv: Any, code: tuple[Tensor, Tensor], ranges: InputRange, half: Tensor) -> None:
        super().__init__()
        weight_scale, weight_zero = code
        input_scale, input_zero = affine_code(ranges.lowest.float(), ranges.highest.float(), half)
        self.kernel_size, self.stride = list(conv.kernel_size), list(conv.stride)
        self.padding, self.dilation, self.groups = list(conv.padding), list(conv.dilation), conv.groups
        self.in_channels, self.out_channels = conv.in_channels, conv.out_channels
        self.input_scale, self.input_zero = float(input_scale) or 1.0, int(input_zero)
        self.limit = float(half)
        self.weight_zero, self.scale = float(weight_zero), float(weight_scale) or 1.0
        codes = encode(conv.weight.detach(), *code, half).to(torch.int8)
        shape = [1, self.in_channels, 32, 32]
        packed = torch.ops.onednn.qconv_prepack(
            codes, weight_scale.view(1), self.input_scale, self.input_zero + 128,
            self.stride, self.padding, self.dilation, self.groups, shape,
        )  # fmt: skip
        self.packed = packed  # a oneDNN tensor; it cannot be stored in a state dict
        self.register_buffer("codes", codes)
        self.register_buffer("weight_scale", torch.full((1,), self.scale))
        self.bias: Tensor | None
        self.register_buffer("bias", None if conv.bias is None else conv.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (B, C, H, W) float32."""
        codes = (x / self.input_scale).round().add(self.input_zero).clamp(-self.limit, self.limit - 1)
        y = int8_conv(
            (codes + 128).to(torch.uint8),
            self.input_scale,
            self.input_zero + 128,
            self.packed,
            self.weight_scale,
            self.bias,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            self.out_channels,
            self.kernel_size,
        )
        if self.weight_zero == 0:
            return y
        return y - self._share_of_zero_point(codes - self.input_zero)

    def _share_of_zero_point(self, centred: Tensor) -> Tensor:
        batch, channels, height, width = centred.shape
        summed = centred.view(batch, self.groups, channels // self.groups, height, width).sum(2)
        window = centred.new_ones(1, 1, *self.kernel_size)
        flat = summed.view(batch * self.groups, 1, height, width)
        under = torch.conv2d(flat, window, None, self.stride, self.padding, self.dilation)
        share = under * (self.weight_zero * self.scale * self.input_scale)
        return share.view(batch, self.groups, *share.shape[-2:]).repeat_interleave(
            self.out_channels // self.groups, 1
        )


class Int8Linear(nn.Module):
    """Linear layer as a 1x1 convolution on integer codes.

    Args:
        linear: Ordinary layer with rounded weights.
        code: Scale and zero point of the weights.
        ranges: Range of the inputs.
        half: 2 ** (bits - 1).
    """

    def __init__(
        self, linear: nn.Linear, code: tuple[Tensor, Tensor], ranges: InputRange, half: Tensor
    ) -> None:
        super().__init__()
        conv = nn.Conv2d(linear.in_features, linear.out_features, 1, bias=linear.bias is not None)
        conv.weight, conv.bias = nn.Parameter(linear.weight[..., None, None]), linear.bias
        self.conv = Int8Conv2d(conv, code, ranges, half)
        self.in_features, self.out_features = linear.in_features, linear.out_features

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., C) to (..., C')."""
        y = self.conv(x.reshape(-1, self.in_features, 1, 1))
        return y.reshape(*x.shape[:-1], self.out_features)


def to_int8(plain: nn.Module, code: tuple[Tensor, Tensor], ranges: InputRange, half: Tensor) -> nn.Module:
    """Return the integer twin of an ordinary layer with rounded weights.

    Raises:
        Int8Unavailable: No integer kernels for this device or processor, or input ranges were never observed.
    """
    if half.device.type != "cpu" or not hasattr(torch.ops.onednn, "qconv_pointwise"):
        raise Int8Unavailable(
            "format='int8' runs oneDNN's CPU kernels, and the network is on "
            f"{half.device} or this torch has none. Move it with .cpu(), or export format='dense' to a "
            "runtime of "
            "your own."
        )
    if float(half) > 64 and not torch.cpu._is_vnni_supported():
        raise Int8Unavailable(
            "this processor has no VNNI instructions; sums of 8-bit products would overflow 16 bits there. "
            "Use at "
            "most 7 bits, or format='dense'."
        )
    if not bool(ranges.seen):
        raise Int8Unavailable(
            "the ranges of the layer inputs were never observed, so inputs cannot be coded. Train past the "
            "warm-up, "
            "or run batches through the network with graftwork_subspaces.calibrate(net, batches)."
        )
    if isinstance(plain, nn.Linear):
        return Int8Linear(plain, code, ranges, half)
    if type(plain) is not nn.Conv2d or plain.padding_mode != "zeros" or isinstance(plain.padding, str):
        raise Int8Unavailable(
            f"{type(plain).__name__} with its kind of padding has no integer kernel; skip it when wrapping."
        )
    return Int8Conv2d(plain, code, ranges, half)
