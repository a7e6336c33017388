"""The line between two sets of weights and the regulariser that keeps its ends apart."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from graftwork_subspaces import wrap
from graftwork_subspaces.digits import DigitsNet
from graftwork_subspaces.subspace import SUFFIX, cosine_squared, interpolate

LINES = [("sparse", {}), ("quant", {}), ("width", {"line_scope": "all"})]


def digits(regime, subspace="line", **options):
    torch.manual_seed(0)
    return wrap(DigitsNet(), regime=regime, subspace=subspace, input_size=(1, 8, 8), **options)


@pytest.mark.parametrize("seed", range(3))
def test_line_meets_both_ends_bit_for_bit(seed):
    generator = torch.Generator().manual_seed(seed)
    compressed, accurate = (torch.randn(257, 33, generator=generator) * 10**seed for _ in range(2))
    assert torch.equal(interpolate(compressed, accurate, torch.tensor(0.0)), compressed)
    assert torch.equal(interpolate(compressed, accurate, torch.tensor(1.0)), accurate)


def test_middle_of_the_line_is_the_mean_within_one_rounding():
    compressed, accurate = torch.randn(1000), torch.randn(1000)
    middle = interpolate(compressed, accurate, torch.tensor(0.5))
    mean = ((compressed.double() + accurate.double()) / 2).float()
    one_ulp = torch.finfo(torch.float32).eps * torch.maximum(compressed.abs(), accurate.abs())
    assert bool(((middle - mean).abs() <= one_ulp).all())


@pytest.mark.parametrize(("regime", "options"), LINES)
def test_layers_give_their_ends_at_the_ends_of_the_line(regime, options):
    net = digits(regime, **options)
    moved = 0
    for layer in net.layers():
        for alpha, suffix in ((0.0, SUFFIX), (1.0, "")):
            here = layer.on_line("weight", torch.tensor(alpha))
            other = getattr(layer, "weight" + suffix)
            assert torch.equal(here, other)
        moved += not torch.equal(layer.weight, getattr(layer, "weight" + SUFFIX))
    assert moved >= 5, "the ends of convolutions and classifier must be independent draws"


@pytest.mark.parametrize("regime", ["sparse", "width", "quant"])
def test_point_has_one_set_of_parameters_at_every_position(regime):
    net = digits(regime, "point")
    plain = sum(parameter.numel() for parameter in DigitsNet().parameters())
    assert sum(parameter.numel() for parameter in net.parameters()) == plain
    for layer in net.layers():
        assert torch.equal(layer.on_line("weight", torch.tensor(0.1)), layer.weight)


def test_width_line_adds_norm_parameters_only():
    net = digits("width")
    extra = [name for name, _ in net.named_parameters() if name.endswith(SUFFIX)]
    norms = [name for name, layer in net.named_layers().items() if layer.weight.ndim == 1]
    assert sorted(extra) == sorted(f"model.{n}.{p}{SUFFIX}" for n in norms for p in ("weight", "bias"))


def test_regulariser_equals_the_cosine_of_the_concatenated_ends():
    pairs = [(torch.randn(shape), torch.randn(shape)) for shape in ((8, 3, 3, 3), (16, 8), (5,))]
    a, b = (torch.cat([pair[i].flatten() for pair in pairs]).double() for i in range(2))
    expected = (a @ b) ** 2 / (a @ a) / (b @ b)
    torch.testing.assert_close(cosine_squared(pairs).double(), expected)


@pytest.mark.parametrize(
    ("regime", "options", "kind"),
    [("sparse", {}, 4), ("quant", {}, 4), ("width", {}, 1), ("width", {"line_scope": "all"}, 4)],
)
def test_regulariser_takes_weights_or_norm_scales_and_never_biases(regime, options, kind):
    net = digits(regime, beta=3.0, **options)
    taken = {id(tensor) for pair in net.ends() for tensor in pair}
    named = dict(net.named_parameters())
    expected = {
        id(parameter)
        for name, parameter in named.items()
        if "bias" not in name and ((parameter.ndim == 1) if kind == 1 else (parameter.ndim > 1))
    }
    assert taken == expected
    a = torch.cat([pair[0].flatten() for pair in net.ends()])
    b = torch.cat([pair[1].flatten() for pair in net.ends()])
    torch.testing.assert_close(net.regulariser(), 3 * torch.cosine_similarity(a, b, 0) ** 2)


def test_regulariser_has_no_gradient_where_the_ends_are_parallel():
    a = torch.randn(50, requires_grad=True)
    b = (2 * a.detach()).requires_grad_()
    value = cosine_squared([(a, b)])
    value.backward()
    torch.testing.assert_close(value.detach(), torch.tensor(1.0))
    assert a.grad.abs().max() < 1e-6 and b.grad.abs().max() < 1e-6


def test_regulariser_pushes_the_ends_apart():
    a, b = nn.Parameter(torch.tensor([1.0, 0.0])), nn.Parameter(torch.tensor([1.0, 0.2]))
    optimizer = torch.optim.SGD([a, b], 0.1)
    before = float(cosine_squared([(a, b)]).detach())
    for _ in range(50):
        optimizer.zero_grad()
        cosine_squared([(a, b)]).backward()
        optimizer.step()
    assert float(cosine_squared([(a, b)]).detach()) < 0.5 * before


@pytest.mark.parametrize("regime", ["sparse", "width", "quant"])
def test_point_or_beta_zero_has_no_regulariser(regime):
    assert digits(regime, "point").regulariser() is None
    assert digits(regime, beta=0.0).regulariser() is None
    with pytest.raises(ValueError, match="at least one pair"):
        cosine_squared([])


def test_upstream_initialisation_is_reproduced():
    net = digits("sparse", init="upstream")
    layers = net.named_layers()
    conv = layers["features.9"]
    fan_in, fan_out = 32 * 9, 32 * 9
    assert float(conv.weight_compressed.std()) == pytest.approx((2 / fan_in) ** 0.5, rel=0.05)
    assert float(conv.weight.std()) == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)
    norm = layers["features.1"]
    assert bool((norm.weight == 0.5).all()) and bool((norm.weight_compressed == 1).all())
    assert bool((norm.bias == 0).all()) and bool((norm.bias_compressed == 0).all())


def test_near_initialisation_starts_beside_the_trained_weights():
    model = DigitsNet()
    before = model.head.weight.detach().clone()
    net = wrap(model, regime="sparse", init="near")
    head = net.named_layers()["head"]
    assert torch.equal(head.weight, before)
    ratio = float((head.weight_compressed - before).detach().std() / before.std())
    assert 0.005 < ratio < 0.02
