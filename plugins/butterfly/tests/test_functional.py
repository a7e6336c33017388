"""The transform in plain torch: the defining properties of a butterfly, and its regroupings."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from graftwork_butterfly.functional import (
    apply_staged,
    apply_two_factor,
    count_two_factor_macs,
    dense_matrix,
    split_stages,
    two_factors,
)
from graftwork_butterfly.structure import Residual, structure

SHAPES = [
    (16, 16, 4),
    (16, 16, 2),
    (24, 24, 4),
    (58, 58, 4),
    (32, 80, 4),
    (80, 32, 4),
    (58, 100, 4),
    (27, 9, 3),
]


def recursive_butterfly(n: int, base: int, diagonals: Tensor) -> Tensor:
    """Build B(n, k) literally from its recursive definition (eq. 3-7), taking weights stage by stage.

    diagonals[t][block][o, i] is D_oi of that block at depth t, a vector of n / k^(t+1) numbers.
    """

    def build(depth: int, block: int, order: int) -> Tensor:
        if order == 1:
            return torch.ones(1, 1, dtype=torch.float64)
        part = order // base
        rows = []
        for o in range(base):
            inner = build(depth + 1, block * base + o, part)
            rows.append(
                torch.cat([inner @ torch.diag(diagonals[depth][block][o, :, i]) for i in range(base)], 1)
            )
        return torch.cat(rows, 0)

    return build(0, 0, n)


@pytest.mark.parametrize(("n", "base"), [(8, 2), (16, 2), (16, 4), (27, 3), (64, 4)])
def test_matrix_equals_the_recursive_definition(n: int, base: int) -> None:
    plan = structure(n, n, base, "none")
    weight = torch.randn(plan.weights, dtype=torch.float64)
    # a stage (groups, out digit, stride, in digit) read as blocks of D[o, :, i]
    stages = [stage[0] for stage in split_stages(weight, plan.layout)]
    assert torch.allclose(recursive_butterfly(n, base, stages), dense_matrix(weight, plan.layout))


@pytest.mark.parametrize("n", [16, 24, 64, 120])
def test_there_is_exactly_one_path_from_each_input_to_each_output(n: int) -> None:
    plan = structure(n, n, 4, "none")
    ones = dense_matrix(torch.ones(plan.weights, dtype=torch.float64), plan.layout)
    assert torch.equal(ones, torch.ones(n, n, dtype=torch.float64))  # an entry sums over paths
    random = dense_matrix(torch.randn(plan.weights, dtype=torch.float64), plan.layout)
    assert (random != 0).all()
    assert torch.linalg.matrix_rank(random) == n  # the bottleneck of the graph is n


@pytest.mark.parametrize(("n", "base"), [(16, 2), (16, 4), (24, 4), (64, 4)])
def test_blocks_of_equal_leading_outputs_and_trailing_inputs_have_rank_one(n: int, base: int) -> None:
    plan = structure(n, n, base, "none")
    matrix = dense_matrix(torch.randn(plan.weights, dtype=torch.float64), plan.layout)
    high = 1
    for radix in plan.radices[:-1]:
        high *= radix
        low = n // high
        blocks = matrix.view(high, low, high, low)  # output digits (high, low), input digits (high, low)
        for o, i in itertools.product(range(high), range(low)):
            values = torch.linalg.svdvals(blocks[o, :, :, i])
            assert values[0] > 0
            assert (values[1:] <= 1e-12 * values[0]).all()


@pytest.mark.parametrize("levels", [1, 3, 6])
def test_hadamard_matrices_are_butterflies(levels: int) -> None:
    n = 2**levels
    plan = structure(n, n, 2, "none")
    two = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    weight = torch.cat(
        [two.view(1, 2, 1, 2).expand(s.groups, 2, s.stride, 2).reshape(-1) for s in plan.stages]
    )
    hadamard = torch.ones(1, 1, dtype=torch.float64)
    for _ in range(levels):
        hadamard = torch.kron(two, hadamard)
    assert torch.equal(dense_matrix(weight, plan.layout), hadamard)


@pytest.mark.parametrize("residual", ["none", "first_last", "every_other"])
@pytest.mark.parametrize(("inputs", "outputs", "base"), SHAPES)
def test_staged_evaluation_equals_the_matrix(
    inputs: int, outputs: int, base: int, residual: Residual
) -> None:
    plan = structure(inputs, outputs, base, residual)
    weight = torch.randn(plan.weights, dtype=torch.float64)
    x = torch.randn(2, inputs, 5, dtype=torch.float64)
    matrix = dense_matrix(weight, plan.layout)
    assert matrix.shape == (outputs, inputs)
    assert torch.allclose(apply_staged(x, weight, plan.layout), matrix @ x, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("residual", ["none", "first_last"])
@pytest.mark.parametrize(("inputs", "outputs", "base"), [*SHAPES, (7, 7, 8)])
def test_two_factors_are_an_exact_regrouping(
    inputs: int, outputs: int, base: int, residual: Residual
) -> None:
    plan = structure(inputs, outputs, base, residual)
    weight = torch.randn(plan.weights, dtype=torch.float64, requires_grad=True)
    x = torch.randn(2, inputs, 5, dtype=torch.float64, requires_grad=True)
    staged, grouped = apply_staged(x, weight, plan.layout), apply_two_factor(x, weight, plan.layout)
    assert torch.allclose(grouped, staged, rtol=1e-12, atol=1e-12)
    probe = torch.randn_like(staged)
    for one, other in zip(
        torch.autograd.grad(staged, (x, weight), probe), torch.autograd.grad(grouped, (x, weight), probe)
    ):
        assert torch.allclose(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("n", "orders", "macs"), [(256, (16, 16), 8192), (1024, (64, 16), 81920)])
def test_two_factors_are_cut_where_they_cost_least(n: int, orders: tuple[int, int], macs: int) -> None:
    plan = structure(n, n)
    first, second = two_factors(torch.randn(plan.weights), plan.layout)
    assert sorted((first.shape[-1], second.shape[-1]), reverse=True) == sorted(orders, reverse=True)
    assert first.numel() + second.numel() == macs == count_two_factor_macs(plan.layout)


def test_first_to_last_residual_adds_the_input_of_every_square() -> None:
    for inputs, outputs in ((16, 16), (16, 40), (40, 16)):
        plain, added = (structure(inputs, outputs, 4, kind) for kind in ("none", "first_last"))
        weight = torch.randn(plain.weights, dtype=torch.float64)
        difference = dense_matrix(weight, added.layout) - dense_matrix(weight, plain.layout)
        identity = torch.zeros(outputs, inputs, dtype=torch.float64)
        for o, i in itertools.product(range(outputs), range(inputs)):
            identity[o, i] = float(o % 16 == i % 16)
        assert torch.allclose(difference, identity)


def test_every_other_residual_adds_the_input_of_each_pair_of_stages() -> None:
    plan = structure(8, 8, 2, "every_other")  # three stages: one pair, one left alone
    weight = torch.randn(plan.weights, dtype=torch.float64)
    matrices = []
    for stage, flat in zip(plan.stages, weight.split([s.size for s in plan.stages])):
        matrix = torch.zeros(8, 8, dtype=torch.float64)
        for g, o, p, i in itertools.product(*map(range, stage.shape)):
            row, column = (g * stage.radix * stage.stride + digit * stage.stride + p for digit in (o, i))
            matrix[row, column] = flat.view(stage.shape)[g, o, p, i]
        matrices.append(matrix)
    expected = matrices[2] @ (matrices[1] @ matrices[0] + torch.eye(8, dtype=torch.float64))
    assert torch.allclose(dense_matrix(weight, plan.layout), expected)


def test_gradients_are_right_to_second_order() -> None:
    plan = structure(6, 10, 2)
    weight = torch.randn(plan.weights, dtype=torch.float64, requires_grad=True)
    x = torch.randn(1, 6, 2, dtype=torch.float64, requires_grad=True)

    def run(x: Tensor, w: Tensor) -> Tensor:
        return apply_two_factor(x, w, plan.layout)

    assert torch.autograd.gradcheck(run, (x, weight))
    assert torch.autograd.gradgradcheck(run, (x, weight))
