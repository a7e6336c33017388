"""Butterfly layers: drop-in replacements for pointwise convolutions and linear layers."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, fx, nn

from graftwork_butterfly.dispatch import BACKENDS, butterfly
from graftwork_butterfly.functional import dense_matrix
from graftwork_butterfly.native import refusal
from graftwork_butterfly.structure import Residual, Structure, count_paper_macs, structure

Initialisation = Literal["paper", "code"]

# FX records one call instead of looking inside, whichever tracer is used; it patches the name where it is
# called
fx.wrap("butterfly")


class _Butterfly(nn.Module):
    """Weights and structure; subclasses say what an input looks like."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        base: int,
        residual: Residual,
        init: Initialisation,
        backend: str,
        bias: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        plan = structure(in_channels, out_channels, base, residual)
        if init not in ("paper", "code"):
            raise ValueError(f'init must be "paper" or "code", got {init!r}.')
        check_backend(backend, plan)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.base = base
        self.residual = residual
        self.init = init
        self.backend = backend
        self.layout = plan.layout
        # One flat vector for all stages: timm's optimizer factory exempts vectors from weight decay, which is
        # destructive here since an entry of the matrix is a product of weights; and a call passes one
        # pointer.
        self.weight = nn.Parameter(torch.empty(plan.weights, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(out_channels, device=device, dtype=dtype)) if bias else None
        self.reset_parameters()

    @torch.jit.unused
    @property
    def structure(self) -> Structure:
        """Stages, squares and sizes of the layer."""
        return structure(self.in_channels, self.out_channels, self.base, self.residual)

    @torch.jit.unused
    def reset_parameters(self) -> None:
        """Draw the weights so that E|B| equals that of a Xavier matrix (eq. 8-9)."""
        bound = initial_bound(self.structure, self.init)
        with torch.no_grad():
            self.weight.uniform_(-bound, bound)
            if self.bias is not None:
                self.bias.zero_()

    @torch.jit.unused
    def matrix(self) -> Tensor:
        """Return the (out, in) matrix the layer stands for, residual included; differentiable."""
        return dense_matrix(self.weight, self.layout)

    @torch.jit.unused
    def count_macs(self, convention: Literal["executed", "paper"] = "executed") -> int:
        """Count multiply-adds per pixel; the residual's additions are not counted.

        Args:
            convention: ``"executed"`` counts what the stages do, ``"paper"`` k n ceil(log_k n) per square,
                which is what the paper's tables contain. They differ where n is not a power of the base.
        """
        if convention == "paper":
            return count_paper_macs(self.in_channels, self.out_channels, self.base)
        return self.structure.weights

    def extra_repr(self) -> str:
        """Describe the layer in the printed module tree."""
        plan = self.structure
        radices = "x".join(map(str, plan.radices))
        return (
            f"{self.in_channels}, {self.out_channels}, base={self.base}, residual={self.residual!r}, "
            f"backend={self.backend!r}, squares={plan.copies} of {plan.padded}={radices}"
        )


class ButterflyConv1x1(_Butterfly):
    """Pointwise convolution whose matrix is a butterfly: O(n log n) weights and multiplications, not n².

    Every output sees every input through exactly one path. There is no activation or normalisation inside;
    put them after the layer, as after the convolution it replaces.

    Example:
        >>> layer = ButterflyConv1x1(64, 128)
        >>> layer(torch.randn(2, 64, 14, 14)).shape, layer.weight.numel(), 64 * 128
        (torch.Size([2, 128, 14, 14]), 1536, 8192)

    Args:
        in_channels: Channels read, at least 2.
        out_channels: Channels written, at least 2. Rectangular layers are several squares, see
            :class:`graftwork_butterfly.structure.Structure`.
        base: Radix k of the stages; 4 is the paper's best (fig. 5c). Orders that are no power of it get
            stages of mixed radix.
        residual: ``"first_last"`` adds the input to the output of every square, which the paper found best
            (table 3); ``"every_other"`` adds the input of each pair of stages; ``"none"``.
        init: Bound of the uniform initial weights: ``"paper"`` follows eq. 8-9, ``"code"`` the released code,
            which is 0.816 times the Xavier bound for square layers.
        backend: One of :data:`graftwork_butterfly.dispatch.BACKENDS`.
        bias: Add a learned bias, which the paper does not have.
        device: Where to create the weights.
        dtype: Of the weights.

    Raises:
        ValueError: Fewer than two channels, a base below 2, or an unknown option.
        Unavailable: On the first call, if ``backend="fused"`` and there is no native library.

    Note:
        The released code reads the wrong digit of the output index, so its matrices are butterflies with
        permuted rows, and ties weights by accident where n is no power of the base. Neither is reproduced;
        :mod:`graftwork_butterfly.convert` loads weights trained with it.

    References:
        Alizadeh Vahid et al., "Butterfly Transform", CVPR 2020, sec. 3.2 and eq. 3-9.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        base: int = 4,
        residual: Residual = "first_last",
        init: Initialisation = "paper",
        backend: str = "auto",
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_channels, out_channels, base, residual, init, backend, bias, device, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Mix the channels of every pixel.

        Args:
            x: (B, in, H, W); contiguous and channels-last memory are both served as they are.

        Returns:
            (B, out, H, W).
        """
        y = butterfly(x, self.weight, self.layout, self.backend)
        return y if self.bias is None else y + self.bias.view(-1, 1, 1)

    @torch.jit.unused
    def materialize(self) -> nn.Conv2d:
        """Return the ordinary 1x1 convolution that computes the same, for deployment or comparison."""
        like = {"device": self.weight.device, "dtype": self.weight.dtype}
        conv = nn.Conv2d(self.in_channels, self.out_channels, 1, bias=self.bias is not None, **like)
        with torch.no_grad():
            conv.weight.copy_(self.matrix()[:, :, None, None])
            if self.bias is not None and conv.bias is not None:
                conv.bias.copy_(self.bias)
        return conv.train(self.training)


class ButterflyLinear(_Butterfly):
    """Linear layer whose matrix is a butterfly; see :class:`ButterflyConv1x1` for the options.

    Example:
        >>> ButterflyLinear(300, 200)(torch.randn(4, 7, 300)).shape
        torch.Size([4, 7, 200])

    Args:
        in_features: Features read, at least 2.
        out_features: Features written, at least 2.
        base: Radix of the stages.
        residual: Where inputs are added.
        init: Bound of the initial weights.
        backend: Which implementation to use.
        bias: Add a learned bias, as ``nn.Linear`` does.
        device: Where to create the weights.
        dtype: Of the weights.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        base: int = 4,
        residual: Residual = "first_last",
        init: Initialisation = "paper",
        backend: str = "auto",
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, base, residual, init, backend, bias, device, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Mix the last axis.

        Args:
            x: (..., in).

        Returns:
            (..., out).
        """
        y = butterfly(x.reshape(-1, x.shape[-1]), self.weight, self.layout, self.backend)
        y = y.reshape(x.shape[:-1] + (self.out_channels,))  # noqa: RUF005  TorchScript has no star
        return y if self.bias is None else y + self.bias

    @torch.jit.unused
    def materialize(self) -> nn.Linear:
        """Return the ordinary linear layer that computes the same."""
        like = {"device": self.weight.device, "dtype": self.weight.dtype}
        linear = nn.Linear(self.in_channels, self.out_channels, bias=self.bias is not None, **like)
        with torch.no_grad():
            linear.weight.copy_(self.matrix())
            if self.bias is not None:
                linear.bias.copy_(self.bias)
        return linear.train(self.training)


def initial_bound(plan: Structure, init: Initialisation = "paper") -> float:
    """Return y such that weights uniform in (-y, y) give E|B| of a uniform(-x, x) matrix (eq. 9).

    The expected absolute value of an entry is (y / 2)^L for L stages; set to x / 2 it gives y = 2 (x /
    2)^(1/L).

    Args:
        plan: Structure of the layer.
        init: ``"paper"`` takes Xavier's x = sqrt(6 / (in + out)), ``"code"`` x = sqrt(2 / out).
    """
    fan = 2 / plan.out_channels if init == "code" else 6 / (plan.in_channels + plan.out_channels)
    return 2 * (math.sqrt(fan) / 2) ** (1 / len(plan.radices))


def check_backend(backend: str, plan: Structure) -> None:
    """Refuse a backend that could never serve a layer, before it is trained.

    Raises:
        ValueError: Unknown, or not able to express the layer.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}.")
    if backend == "two_factor" and plan.residual == "every_other":
        raise ValueError(
            'residual="every_other" has no two-factor form; use backend="auto", "staged" or "dense".'
        )
    reason = refusal(plan.layout, torch.float32) if backend == "fused" else ""
    if reason:
        raise ValueError(f'backend "fused" cannot serve this layer: {reason}. Use backend="auto".')
