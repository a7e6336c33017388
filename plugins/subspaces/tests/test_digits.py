"""Accuracy against level on real scans: the gates that show the method does what it is for."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from graftwork_subspaces import Fixed, wrap
from graftwork_subspaces.digits import GRIDS, DigitsNet, accuracy, curve, fit

pytest.importorskip("sklearn", reason="scikit-learn, whose digits are used, is not installed")
from graftwork.classify import load_digits

SIZE = {"input_size": (1, 8, 8), "multiple": 1}
RATES = {"sparse": 0.1, "width": 0.1, "quant": 0.025}
EPOCHS = {"sparse": 40, "width": 15, "quant": 30}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@cache
def trained(regime, subspace, seed, epochs, plain=False):
    """Return the curve of a network; a plain one was trained uncompressed and is compressed afterwards."""
    train, test = load_digits(seed=seed)
    torch.manual_seed(seed)
    options = {"sampler": Fixed((1.0,)), "levels": {"lo": GRIDS[regime][0], "hi": 1.0}} if plain else {}
    net = wrap(DigitsNet(), regime=regime, subspace=subspace, **SIZE, **options)
    fit(net, train, epochs=epochs, lr=RATES[regime], seed=seed)
    return curve(net, test)


def slack(values, points):
    """The curve does not fall by more than some points when the compression is relaxed."""
    worst = max(max(values[: i + 1]) - value for i, value in enumerate(values))
    return worst <= points / 100


def gate_sparse(seed, epochs):
    line = trained("sparse", "line", seed, epochs)
    plain = trained("sparse", "point", seed, epochs, plain=True)
    assert line[0] >= 0.65, f"2.5 % of the weights: {line[0]:.3f}"
    assert slack(line, 2.0), line
    assert abs(line[-1] - plain[-1]) <= 0.04, (line[-1], plain[-1])
    return line, plain


def gate_width(seed, epochs):
    line, point = (trained("width", subspace, seed, epochs) for subspace in ("line", "point"))
    plain = trained("width", "point", seed, epochs, plain=True)
    for ours in (line, point):
        assert ours[0] - plain[0] >= 0.5, f"width 1/4: {ours[0]:.3f}, plain {plain[0]:.3f}"
        assert slack(ours, 2.0), ours
        assert abs(ours[-1] - plain[-1]) <= 0.04, (ours[-1], plain[-1])


def test_one_width_network_serves_every_width():
    """The fast version of the gate: one seed, few epochs."""
    ours = trained("width", "point", 0, 6)
    plain = trained("width", "point", 0, 6, plain=True)
    assert ours[0] - plain[0] >= 0.5, f"width 1/4: {ours[0]:.3f}, plain {plain[0]:.3f}"
    assert ours[-1] >= 0.9 and slack(ours, 2.0), ours


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_sparse_line_holds_accuracy_where_few_weights_are_left(seed):
    line, plain = gate_sparse(seed, EPOCHS["sparse"])
    point = trained("sparse", "point", seed, EPOCHS["sparse"])
    assert line[0] > point[0] and line[0] > plain[0] + 0.3


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_width_networks_keep_their_accuracy_when_sliced(seed):
    gate_width(seed, EPOCHS["width"])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("subspace", ["line", "point"])
def test_quantised_networks_are_nearly_flat_in_bits(seed, subspace):
    """Not gated to be monotone: neighbouring bit widths differ by less than the noise of 450 test images."""
    values = trained("quant", subspace, seed, EPOCHS["quant"])
    assert min(values) >= 0.9 and max(values) - min(values) <= 0.06, values


def test_accuracy_counts_right_answers():
    class Constant(torch.nn.Module):
        def forward(self, x):
            return torch.nn.functional.one_hot(torch.zeros(len(x), dtype=torch.long), 10).float()

    _, test = load_digits()
    assert accuracy(Constant(), test) == pytest.approx(float((test.labels == 0).float().mean()))
