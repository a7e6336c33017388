"""A level as an ordinary model: same answers, no trace of the subspace, ready for export."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from graftwork_subspaces import Int8Unavailable, calibrate, wrap
from graftwork_subspaces.digits import DigitsNet
from graftwork_subspaces.int8 import Int8Conv2d
from graftwork_subspaces.layers import OnSubspace
from graftwork_subspaces.two_four import two_of_four

FORMS = [("sparse", "dense"), ("sparse", "csr"), ("width", "sliced"), ("quant", "dense"), ("quant", "int8")]
LEVELS = {"sparse": {"kept": 0.1}, "width": {"width": 0.5}, "quant": {"bits": 5}}


def digits(regime, subspace="line", model=None, **options):
    torch.manual_seed(0)
    size = options.pop("input_size", (1, 8, 8))
    net = wrap(model or DigitsNet(), regime=regime, subspace=subspace, input_size=size, **options).eval()
    if regime == "quant":
        calibrate(net, [torch.randn(8, *size) for _ in range(3)])
    return net


@pytest.mark.parametrize("subspace", ["line", "point"])
@pytest.mark.parametrize(("regime", "form"), FORMS)
def test_answers_are_those_of_the_level(regime, form, subspace):
    net = digits(regime, subspace)
    x = torch.randn(3, 1, 8, 8)
    plain = net.materialize(format=form, **LEVELS[regime])
    with torch.no_grad(), net.at(**LEVELS[regime]):
        tolerance = {"rtol": 1e-4, "atol": 1e-5} if form in ("csr", "int8") else {"rtol": 1e-5, "atol": 1e-6}
        torch.testing.assert_close(plain(x), net(x), **tolerance)


@pytest.mark.parametrize(("regime", "form"), FORMS)
def test_nothing_of_the_subspace_is_left(regime, form):
    net = digits(regime)
    plain = net.materialize(format=form, **LEVELS[regime])
    assert type(plain) is DigitsNet
    assert not any(isinstance(module, OnSubspace) for module in plain.modules())
    assert not any(key.endswith("_compressed") or "extra_state" in key for key in plain.state_dict())
    weights = {id(t) for t in net.parameters()}
    assert not any(id(t) in weights for t in plain.parameters()), "the model must own its tensors"


@pytest.mark.parametrize(("regime", "form"), FORMS)
def test_model_can_be_exported(regime, form):
    plain = digits(regime).materialize(format=form, **LEVELS[regime])
    x = torch.randn(3, 1, 8, 8)
    program = torch.export.export(plain, (x,))
    with torch.no_grad():
        torch.testing.assert_close(program.module()(x), plain(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("regime", "form"), FORMS)
def test_model_can_be_compiled_in_one_graph(regime, form):
    torch._dynamo.reset()
    plain = digits(regime).materialize(format=form, **LEVELS[regime])
    x = torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        compiled = torch.compile(plain, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), plain(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("regime", "form"), [pair for pair in FORMS if pair[1] != "int8"])
def test_state_dict_of_the_model_is_ordinary(regime, form):
    plain = digits(regime).materialize(format=form, **LEVELS[regime])
    other = digits(regime).materialize(format=form, **LEVELS[regime])
    other.load_state_dict(plain.state_dict())
    x = torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(other(x), plain(x))


@pytest.mark.parametrize("name", ["mobilenetv3_small_100", "deit_tiny_patch16_224"])
@pytest.mark.parametrize("regime", ["sparse", "quant"])
def test_families_of_timm_materialise(name, regime):
    options = {"img_size": 64, "depth": 2} if "deit" in name else {}
    net = digits(regime, model=timm.create_model(name, num_classes=5, **options), input_size=(3, 64, 64))
    x = torch.randn(2, 3, 64, 64)
    for form in ("dense", "csr") if regime == "sparse" else ("dense", "int8"):
        plain = net.materialize(format=form, **LEVELS[regime])
        with torch.no_grad(), net.at(**LEVELS[regime]):
            if form == "int8":  # a code may flip where float32 sums differ in the last bit
                difference = (plain(x) - net(x)).norm() / net(x).norm()
                assert float(difference) < 0.02
            else:
                torch.testing.assert_close(plain(x), net(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"groups": 4}, {"dilation": 2, "padding": 2}])
def test_integer_convolution_equals_the_rounded_one(bits, options):
    torch.manual_seed(bits)
    conv = nn.Conv2d(8, 12, 3, **{"padding": 1, **options})
    with torch.no_grad():
        conv.weight.add_(0.05)  # an asymmetric range, so that the zero point of the weights is not zero
    model = nn.Sequential(nn.Conv2d(3, 8, 1), conv, nn.Flatten(), nn.LazyLinear(4))
    model(torch.zeros(1, 3, 9, 9))
    net = digits("quant", model=model, input_size=(3, 9, 9), levels={"lo": 2})
    integer, rounded = net.materialize(format="int8", bits=bits), net.materialize(format="dense", bits=bits)
    x = torch.randn(2, 3, 9, 9)
    with torch.no_grad():
        inside = model[0](x)
        assert isinstance(integer[1], Int8Conv2d)
        torch.testing.assert_close(integer[1](inside), rounded[1](inside), rtol=1e-4, atol=1e-4)


def test_integer_form_needs_observed_ranges():
    net = wrap(DigitsNet(), regime="quant").eval()
    with pytest.raises(Int8Unavailable, match="calibrate"):
        net.materialize(format="int8", bits=4)


def test_integer_form_refuses_eight_bits_without_vnni(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    net = digits("quant")
    with pytest.raises(Int8Unavailable, match="at most 7 bits"):
        net.materialize(format="int8", bits=8)
    net.materialize(format="int8", bits=7)


@pytest.mark.parametrize(
    ("regime", "form"), [("width", "dense"), ("sparse", "sliced"), ("quant", "csr"), ("sparse", "onnx")]
)
def test_form_of_another_regime_is_refused(regime, form):
    with pytest.raises(ValueError, match="has the forms"):
        digits(regime).materialize(0.5, format=form)


def test_two_of_every_four_remain():
    weight = torch.randn(6, 8, 3, 3)
    cut = two_of_four(weight)
    fours = cut.movedim(1, -1).reshape(-1, 4)
    assert bool(((fours != 0).sum(1) == 2).all())
    assert torch.equal(cut[cut != 0], weight[cut != 0])
    original = weight.movedim(1, -1).reshape(-1, 4).abs()
    kept = torch.where(fours != 0, original, torch.inf).amin(1)
    dropped = torch.where(fours == 0, original, -torch.inf).amax(1)
    assert bool((kept >= dropped).all())


def test_two_four_export_thins_a_level_and_says_where_it_belongs():
    net = digits("sparse")
    plain = net.materialize(kept=0.9, pattern="2:4")
    conv = plain.features[9]
    assert float((conv.weight == 0).float().mean()) >= 0.5
    assert float((plain.features[0].weight == 0).float().mean()) == 0, "the stem stays dense"
    with pytest.raises(ValueError, match="dense form"):
        net.materialize(kept=0.9, pattern="2:4", format="csr")
    with pytest.raises(ValueError, match="pattern"):
        net.materialize(kept=0.9, pattern="1:4")


@pytest.mark.parametrize("regime", ["sparse", "width", "quant"])
def test_statistics_state_the_nominal_and_the_measured_apart(regime):
    net = digits(regime)
    stats = net.stats(input_size=(1, 8, 8), **LEVELS[regime])
    text = str(stats)
    assert "nominal" in text and "measured" in text and "threads" in text
    assert stats.latency is not None and stats.latency > 0
    unmeasured = net.stats(input_size=(1, 8, 8), measure=False, **LEVELS[regime])
    assert unmeasured.latency is None and "not measured" in str(unmeasured)


def test_statistics_count_multiply_accumulates():
    sparse, width = digits("sparse"), digits("width", multiple=1)
    full = 64 * 9 * 16 + 16 * 9 * 16 * 16 + 16 * 9 * 16 * 32 + 4 * 9 * 32 * 32 + 128 * 10
    dense = sparse.stats(1.0, input_size=(1, 8, 8), measure=False)
    assert dense.macs == dense.macs_nonzero == full
    thin = sparse.stats(kept=0.1, input_size=(1, 8, 8), measure=False)
    assert thin.macs == full, "a dense kernel does not skip zeros"
    blocks = 16 * 230 + 16 * 460 + 4 * 921
    assert thin.macs_nonzero == 64 * 9 * 16 + blocks + 128 * 10
    half = 64 * 9 * 8 + 16 * 9 * 8 * 8 + 16 * 9 * 8 * 16 + 4 * 9 * 16 * 16 + 64 * 10
    assert width.stats(width=0.5, input_size=(1, 8, 8), measure=False).macs == half


def test_statistics_report_the_memory_that_keeps_every_level_in_reach():
    line, point = (
        digits("sparse", s).stats(0.5, input_size=(1, 8, 8), measure=False) for s in ("line", "point")
    )
    assert line.resident_bytes == 2 * point.resident_bytes
    assert line.weights == point.weights
