"""Sparse matrices for inference: a convolution as one product of a CSR matrix with unfolded patches.

It pays on a CPU where few weights are left; measure it (``net.stats``, ``graftwork bench subspaces``).
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from timm.layers.padding import pad_same
from torch import Tensor, nn
from torch.nn import functional


@torch.library.custom_op("graftwork_subspaces::csr_matmul", mutates_args=())
def csr_matmul(rows: Tensor, columns: Tensor, values: Tensor, dense: Tensor) -> Tensor:
    """Multiply a CSR matrix by a dense one; opaque to compilers, so that exported graphs hold it.

    Args:
        rows: (M + 1,) int32 row starts.
        columns: (nnz,) int32.
        values: (nnz,) float.
        dense: (K, N) float, K columns of the matrix.

    Returns:
        (M, N).
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # "sparse CSR support is in beta"
        matrix = torch.sparse_csr_tensor(rows, columns, values, (rows.numel() - 1, dense.shape[0]))
        return matrix @ dense


@csr_matmul.register_fake
def _(rows: Tensor, columns: Tensor, values: Tensor, dense: Tensor) -> Tensor:
    return dense.new_empty(rows.numel() - 1, dense.shape[1])


class _Csr(nn.Module):
    rows: Tensor
    columns: Tensor
    values: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            matrix = weight.detach().flatten(1).to_sparse_csr()
        self.register_buffer("rows", matrix.crow_indices().int())
        self.register_buffer("columns", matrix.col_indices().int())
        self.register_buffer("values", matrix.values())
        self.register_buffer("bias", None if bias is None else bias.detach().clone())


class CsrLinear(_Csr):
    """Linear layer with a CSR weight.

    Args:
        linear: Layer whose zeros are dropped.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.weight, linear.bias)
        self.in_features, self.out_features = linear.in_features, linear.out_features

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., C) to (..., C')."""
        flat = x.reshape(-1, self.in_features)
        y = csr_matmul(self.rows, self.columns, self.values, flat.t().contiguous()).t()
        y = y if self.bias is None else y + self.bias
        return y.reshape(*x.shape[:-1], self.out_features)


class CsrConv2d(_Csr):
    """Convolution with a CSR weight over unfolded patches; one group.

    Args:
        conv: Convolution whose zeros are dropped.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__(conv.weight, conv.bias)
        self.kernel_size, self.stride, self.dilation = conv.kernel_size, conv.stride, conv.dilation
        self.padding: Any = conv.padding
        self.out_channels = conv.out_channels
        self.same = type(conv) is not nn.Conv2d

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (B, C, H, W)."""
        if self.same:
            x = pad_same(x, list(self.kernel_size), self.stride, self.dilation)
        batch, _, height, width = x.shape
        reach = [d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel_size)]
        out = [
            (size + 2 * p - r) // s + 1
            for size, p, r, s in zip((height, width), self.padding, reach, self.stride)
        ]
        if self.kernel_size == (1, 1) and self.padding == (0, 0):
            patches = x[:, :, :: self.stride[0], :: self.stride[1]].flatten(2)
        else:
            patches = functional.unfold(x, self.kernel_size, self.dilation, self.padding, self.stride)
        columns = patches.transpose(0, 1).reshape(patches.shape[1], -1)
        y = csr_matmul(self.rows, self.columns, self.values, columns)
        y = y if self.bias is None else y + self.bias[:, None]
        return y.view(self.out_channels, batch, out[0], out[1]).transpose(0, 1).contiguous()


def to_csr(plain: nn.Module) -> nn.Module:
    """Return the CSR twin of an ordinary layer; grouped and oddly padded convolutions stay dense."""
    if isinstance(plain, nn.Linear):
        return CsrLinear(plain)
    assert isinstance(plain, nn.Conv2d)
    if plain.groups > 1 or plain.padding_mode != "zeros" or isinstance(plain.padding, str):
        return plain
    return CsrConv2d(plain)
