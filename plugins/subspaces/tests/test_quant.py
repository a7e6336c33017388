"""The affine code, its gradient, and the ranges that activations follow."""

from __future__ import annotations

import pytest
import torch

from graftwork_subspaces import calibrate, wrap
from graftwork_subspaces.digits import DigitsNet
from graftwork_subspaces.quant import InputRange, affine_code, encode, fake_quantise
from graftwork_subspaces.switching import _fill

BITS = range(2, 9)


def half(bits):
    return torch.tensor(2.0 ** (bits - 1))


def rounded(x, bits, lowest=None, highest=None):
    lowest = x.min() if lowest is None else torch.tensor(lowest)
    highest = x.max() if highest is None else torch.tensor(highest)
    return fake_quantise(x, lowest, highest, half(bits))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("offset", [0.0, 0.7, -3.0])
def test_code_has_its_number_of_values_and_zero_among_them(bits, offset):
    x = torch.randn(5000) + offset
    values = rounded(x, bits).unique()
    assert len(values) <= 2**bits
    assert float(rounded(torch.cat([x, torch.zeros(1)]), bits)[-1]) == 0.0


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("offset", [0.0, 0.7, -3.0])
def test_error_is_half_a_step_inside_and_one_step_at_the_ends(bits, offset):
    x = torch.randn(5000) + offset
    scale, zero_point = affine_code(x.min(), x.max(), half(bits))
    inside = (x / scale + zero_point > -half(bits)) & (x / scale + zero_point < half(bits) - 1)
    error = (x - rounded(x, bits)).abs()
    assert float(error[inside].max()) <= float(scale) * 0.5001
    assert float(error.max()) <= float(scale) * 1.0001


@pytest.mark.parametrize("bits", BITS)
def test_rounding_twice_changes_nothing(bits):
    x = torch.randn(1000)
    lowest, highest = x.min(), x.max()
    once = fake_quantise(x, lowest, highest, half(bits))
    assert torch.equal(fake_quantise(once, lowest, highest, half(bits)), once)


def test_range_is_widened_to_contain_zero():
    x = torch.linspace(2.0, 3.0, 50)
    scale, zero_point = affine_code(x.min(), x.max(), half(4))
    assert float(scale) == pytest.approx(3.0 / 15)
    assert float(zero_point) == -8


def test_empty_range_gives_zeros():
    assert bool((rounded(torch.zeros(7), 4) == 0).all())
    assert bool(
        (encode(torch.zeros(3), *affine_code(torch.zeros(()), torch.zeros(()), half(3)), half(3)) == -4).all()
    )


def test_gradient_passes_straight_through_even_where_clipped():
    x = torch.randn(100, requires_grad=True)
    weight = torch.randn(100)
    (fake_quantise(x, torch.tensor(-0.5), torch.tensor(0.5), half(3)) * weight).sum().backward()
    assert torch.equal(x.grad, weight)


def test_input_range_follows_the_published_recurrence():
    ranges = InputRange()
    batches = [torch.randn(64) * factor for factor in (1.0, 3.0, 0.5, 2.0)]
    low, high = batches[0].min(), batches[0].max()
    ranges.observe(batches[0])
    assert torch.equal(ranges.lowest, low) and torch.equal(ranges.highest, high)
    for batch in batches[1:]:
        low, high = 0.9 * low + 0.1 * batch.min(), 0.9 * high + 0.1 * batch.max()
        ranges.observe(batch)
    torch.testing.assert_close(ranges.lowest, low)
    torch.testing.assert_close(ranges.highest, high)


def test_inputs_pass_unrounded_before_a_range_was_seen():
    ranges, x = InputRange(), torch.randn(20)
    assert torch.equal(ranges(x, half(3)), x)
    ranges.observe(x)
    assert not torch.equal(ranges(x, half(3)), x)


def net_for(subspace="line", **options):
    torch.manual_seed(0)
    return wrap(DigitsNet(), regime="quant", subspace=subspace, **options)


def test_stem_and_classifier_stay_float():
    net = net_for()
    net.eval()
    with torch.no_grad(), net.at(bits=3):
        for name, layer in net.named_layers().items():
            if layer.weight.ndim == 1:
                continue
            count = len(layer.tensors()[0].unique())
            assert (count > 100) if name in ("features.0", "head") else (count <= 8), name


def test_prepared_weights_equal_those_of_training():
    net = net_for()
    for bits in (2, 3, 8):
        level = net.make_level(0.4, bits)
        for layer in net.layers():
            if layer.weight.ndim > 1:
                out = torch.empty_like(layer.weight)
                with torch.no_grad():
                    _fill(out, layer, level, None)
                    expected = level.weight(layer, layer.on_line("weight", level.position))
                assert torch.equal(out, expected)


def test_ranges_move_in_observed_training_only():
    net = net_for().train()
    ranges = [layer.input_range for layer in net.layers() if layer.input_range is not None]
    x = torch.randn(4, 1, 8, 8)
    net(x)
    assert not any(bool(r.seen) for r in ranges), "without a level nothing is observed"
    with net.at(0.5):
        net(x)
    assert all(bool(r.seen) for r in ranges)
    before = [float(r.highest) for r in ranges]
    net.eval()
    with torch.no_grad(), net.at(0.5):
        net(10 * x)
    assert [float(r.highest) for r in ranges] == before


def test_calibration_observes_without_training():
    net = net_for().eval()
    calibrate(net, [torch.randn(4, 1, 8, 8) for _ in range(3)])
    assert all(bool(layer.input_range.seen) for layer in net.layers() if layer.input_range is not None)
    assert not any(layer.training for layer in net.layers())
    with pytest.raises(ValueError, match="regime='quant'"):
        calibrate(wrap(DigitsNet(), regime="sparse"), [])
