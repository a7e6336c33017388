"""Exact counts, nested supports and gradients of top-k sparsity."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch.nn import functional

from graftwork_subspaces import wrap
from graftwork_subspaces.digits import DigitsNet
from graftwork_subspaces.sparse import keep_largest, keep_largest_traced, zero_count
from graftwork_subspaces.switching import _fill

GRID = (0.025, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)


def digits(subspace="line", **options):
    torch.manual_seed(0)
    return wrap(DigitsNet(), regime="sparse", subspace=subspace, **options)


def finished(net, layer, **level):
    """The weight that a layer computes with in evaluation."""
    net.eval()
    with torch.no_grad(), net.at(**level):
        return layer.tensors()[0].clone()


def test_count_survives_the_rounding_of_products():
    assert (1 - 0.9) * 10 < 1
    assert zero_count(0.9, 10) == 1
    assert zero_count(0.9, 2_359_296) == 235_929
    assert zero_count(1.0, 7) == 0
    assert zero_count(0.025, 9216) == math.floor(0.975 * 9216)


@pytest.mark.parametrize("size", [1, 7, 1000, 4097])
def test_mask_zeroes_exactly_the_smallest(size):
    weight = torch.randn(size)
    for zeros in {0, 1, size // 3, size - 1, size}:
        mask = keep_largest(weight, zeros)
        assert int((mask == 0).sum()) == zeros
        if 0 < zeros < size:
            assert weight[mask == 0].abs().max() <= weight[mask == 1].abs().min()


def test_ties_are_broken_by_position():
    weight = torch.tensor([2.0, -1.0, 1.0, 1.0, -1.0, 3.0])
    assert keep_largest(weight, 2).tolist() == [1, 0, 0, 1, 1, 1]
    assert keep_largest(torch.ones(5), 3).tolist() == [0, 0, 0, 1, 1]


@pytest.mark.parametrize("values", [torch.randn(300), torch.randint(-2, 3, (300,)).float(), torch.zeros(300)])
def test_traced_mask_equals_the_eager_one(values):
    for zeros in (0, 1, 150, 299, 300):
        assert torch.equal(keep_largest_traced(values, torch.tensor(zeros)), keep_largest(values, zeros))


@pytest.mark.parametrize("subspace", ["line", "point"])
def test_every_layer_has_exactly_the_zeros_of_its_level(subspace):
    net = digits(subspace)
    for kept in GRID:
        for name, layer in net.named_layers().items():
            if layer.weight.ndim == 1:
                continue
            weight = finished(net, layer, kept=kept)
            expected = 0 if name in ("features.0", "head") else zero_count(kept, weight.numel())
            assert int((weight == 0).sum()) == expected, f"{name} at {kept}"


def test_survivors_keep_their_value():
    net = digits()
    for layer in net.layers():
        if layer.role == "block":
            alpha = net.settings.map.alpha(0.3)
            whole = layer.on_line("weight", torch.tensor(alpha))
            cut = finished(net, layer, kept=0.3)
            assert torch.equal(cut[cut != 0], whole[cut != 0])


def test_supports_are_nested_for_fixed_weights():
    net = digits("point")
    for layer in net.layers():
        if layer.role == "block":
            supports = [finished(net, layer, kept=kept) != 0 for kept in GRID]
            for small, large in pairwise(supports):
                assert not bool((small & ~large).any())


def test_supports_are_not_nested_along_a_line():
    """The weights themselves move, so a sparser level may keep a weight that a denser one drops."""
    net = digits("line")
    layer = next(layer for layer in net.layers() if layer.role == "block")
    assert bool(((finished(net, layer, kept=0.1) != 0) & (finished(net, layer, kept=0.5) == 0)).any())


def test_masked_weights_get_no_gradient_from_the_data():
    net = digits("point")
    level = net.make_level(0.3, 0.3)
    with net.context.enter(level):
        net(torch.randn(8, 1, 8, 8)).square().sum().backward()
    for layer in net.layers():
        if layer.role == "block":
            mask = keep_largest(layer.weight, level.zeros[layer.index])
            assert bool((layer.weight.grad[mask == 0] == 0).all())
            assert float(layer.weight.grad[mask == 1].abs().max()) > 0


def test_weight_decay_still_acts_on_masked_weights():
    net = digits("point")
    layer = next(layer for layer in net.layers() if layer.role == "block")
    before = layer.weight.detach().clone()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, weight_decay=0.5)
    level = net.make_level(0.1, 0.1)
    with net.context.enter(level):
        functional.cross_entropy(net(torch.randn(4, 1, 8, 8)), torch.arange(4)).backward()
    optimizer.step()
    masked = keep_largest(before, level.zeros[layer.index]) == 0
    torch.testing.assert_close(layer.weight.detach()[masked], before[masked] * 0.95)


def test_gradient_of_survivors_agrees_with_finite_differences():
    torch.manual_seed(0)
    net = digits("line").double()
    x = torch.randn(2, 1, 8, 8, dtype=torch.float64)
    layer = [layer for layer in net.layers() if layer.role == "block"][1]
    level = net.make_level(0.4, 0.4)

    def loss():
        with net.context.enter(level):
            return net(x).square().mean()

    loss().backward()
    gradient, step = layer.weight.grad, 1e-6
    line = layer.on_line("weight", level.position).detach()
    survivors = keep_largest(line, level.zeros[layer.index]).flatten().nonzero().flatten()
    for index in survivors[:: len(survivors) // 6].tolist():
        flat = layer.weight.data.view(-1)
        before = float(flat[index])
        values = []
        for sign in (1, -1):
            flat[index] = before + sign * step
            values.append(float(loss().detach()))
        flat[index] = before
        numeric = (values[0] - values[1]) / (2 * step)
        assert float(gradient.view(-1)[index]) == pytest.approx(numeric, rel=1e-4, abs=1e-9)


def test_prepared_weights_equal_those_of_training():
    net = digits("line")
    level = net.make_level(0.37, 0.2)
    for layer in net.layers():
        if layer.weight.ndim > 1:
            out = torch.empty_like(layer.weight)
            with torch.no_grad():
                _fill(out, layer, level, None)
                expected = level.weight(layer, layer.on_line("weight", level.position))
            assert torch.equal(out, expected)
