"""Layers made from weights of the released code, against a brute-force reading of what that code computes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from graftwork_butterfly.convert import convert_layer, released_weights


def released_matrix(weight: Tensor, n: int, k: int) -> Tensor:
    """Multiply the weights along the path from every input i to every output j, as the released code does.

    In every stage t the slot is the lowest digit of j, and the node has the t high digits of j and the other
    digits of i.
    """
    stages = 0
    while k**stages < n:
        stages += 1
    slots = weight.view(stages, k, n)
    matrix = torch.ones(n, n, dtype=weight.dtype)
    for j in range(n):
        for i in range(n):
            for t in range(stages):
                below = k ** (stages - t)
                matrix[j, i] *= slots[t, j % k, j // below * below + i % below]
    return matrix


@pytest.mark.parametrize(("n", "k"), [(8, 2), (16, 4), (16, 2), (64, 4), (64, 8)])
@pytest.mark.parametrize("residual", [True, False])
def test_square_layers_compute_what_the_released_code_computes(n: int, k: int, residual: bool) -> None:
    stages = {8: 3, 16: 4 if k == 2 else 2, 64: 3 if k == 4 else 2}[n]
    weight = torch.randn(k * n * stages, dtype=torch.float64)
    layer = convert_layer([weight], n, n, k, residual=residual).double()
    with torch.no_grad():
        layer.butterfly.weight.copy_(convert_layer([weight], n, n, k).butterfly.weight)
    x = torch.randn(2, n, 3, 2, dtype=torch.float64)
    matrix = released_matrix(weight, n, k) + (torch.eye(n) if residual else 0)
    expected = torch.einsum("ji,bihw->bjhw", matrix, x)
    assert float((layer(x) - expected).norm() / expected.norm()) < 1e-6  # weights are stored in float32


@pytest.mark.parametrize("outputs", [32, 40])
def test_wide_layers_concatenate_squares(outputs: int) -> None:
    weights = [torch.randn(4 * 16 * 2) for _ in range(-(-outputs // 16))]
    layer = convert_layer(weights, 16, outputs, 4)
    x = torch.randn(1, 16, 2, 2)
    squares = [
        torch.einsum("ji,bihw->bjhw", released_matrix(w.double(), 16, 4), x.double()) + x for w in weights
    ]
    assert torch.allclose(layer(x).double(), torch.cat(squares, 1)[:, :outputs], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("inputs", [32, 40])
def test_narrow_layers_sum_squares_of_slices(inputs: int) -> None:
    weights = [torch.randn(4 * 16 * 2) for _ in range(-(-inputs // 16))]
    layer = convert_layer(weights, inputs, 16, 4)
    x = torch.randn(1, inputs, 2, 2)
    padded = torch.nn.functional.pad(x, [0, 0, 0, 0, 0, len(weights) * 16 - inputs]).double()
    expected = sum(
        torch.einsum("ji,bihw->bjhw", released_matrix(w.double(), 16, 4), part) + part
        for w, part in zip(weights, padded.split(16, dim=1))
    )
    assert torch.allclose(layer(x).double(), expected, rtol=1e-4, atol=1e-4)


def test_weights_are_found_in_a_checkpoint() -> None:
    state = {
        "conv.weight": torch.zeros(32, 16, 1, 1),  # the unused dense weight of the released layer
        "conv.parts.0.weight1": torch.ones(128),
        "conv.parts.1.weight1": torch.full((128,), 2.0),
        "other.weight1": torch.zeros(3),
    }
    assert [float(w[0]) for w in released_weights(state, "conv")] == [1.0, 2.0]
    with pytest.raises(KeyError, match="no weight1 below 'stem'"):
        released_weights(state, "stem")


def test_what_cannot_be_converted_is_refused() -> None:
    with pytest.raises(ValueError, match="ties weights by accident"):
        convert_layer([torch.randn(4 * 24 * 3)], 24, 24, 4)
    with pytest.raises(ValueError, match="has 2 squares, got the weights of 1"):
        convert_layer([torch.randn(128)], 16, 32, 4)
    with pytest.raises(ValueError, match=r"has 128 weights if .*, got 100"):
        convert_layer([torch.randn(100)], 16, 16, 4)
