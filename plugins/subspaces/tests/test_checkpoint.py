"""Checkpoints say how a network was wrapped, and refuse another one."""

from __future__ import annotations

import io
import json

import pytest
import torch
from safetensors.torch import load, save

from graftwork_subspaces import CheckpointMismatch, wrap
from graftwork_subspaces.digits import DigitsNet


def digits(seed=0, **options):
    torch.manual_seed(seed)
    options = {"regime": "sparse", **options}
    return wrap(DigitsNet(), input_size=(1, 8, 8), **options).eval()


@pytest.mark.parametrize("regime", ["sparse", "width", "quant"])
@pytest.mark.parametrize("subspace", ["line", "point"])
def test_round_trip_keeps_every_level(regime, subspace):
    net, other = digits(regime=regime, subspace=subspace), digits(1, regime=regime, subspace=subspace)
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    x = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        for alpha in (0.0, 0.3, 1.0):
            with net.at(alpha), other.at(alpha):
                assert torch.equal(net(x), other(x))


def test_safetensors_carries_the_record():
    net, other = digits(), digits(1)
    other.load_state_dict(load(save(net.state_dict())))
    assert torch.equal(other.model.head.weight, net.model.head.weight)


def test_record_says_regime_orientation_map_levels_norm_and_version():
    record = json.loads(bytes(digits().state_dict()["_extra_state"].tolist()).decode())
    assert record["regime"] == "sparse" and record["subspace"] == "line"
    assert record["orientation"] == "alpha=1 is the accurate end"
    assert record["alpha_map"] == "affine" and record["levels"] == [0.025, 1.0]
    assert record["norm"] == "group"
    assert record["library"].startswith("graftwork-subspaces ")


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"regime": "quant"}, "regime"),
        ({"subspace": "point"}, "subspace"),
        ({"alpha_map": "upstream"}, "alpha_map"),
        ({"levels": {"lo": 0.1}}, "levels"),
        ({"norm": "instance"}, "norm"),
    ],
)
def test_network_wrapped_otherwise_refuses_the_checkpoint(options, complaint):
    state = digits().state_dict()
    with pytest.raises(CheckpointMismatch, match=complaint):
        digits(**options).load_state_dict(state)


def test_widths_of_other_steps_are_refused():
    state = digits(regime="width", multiple=1).state_dict()
    with pytest.raises(CheckpointMismatch, match="spaces"):
        digits(regime="width", multiple=8).load_state_dict(state)


def test_record_of_a_later_format_is_refused():
    net = digits()
    state = net.state_dict()
    record = {**net.settings.record(), "format": 99}
    state["_extra_state"] = torch.tensor(list(json.dumps(record).encode()), dtype=torch.uint8)
    with pytest.raises(CheckpointMismatch, match="format 99"):
        net.load_state_dict(state)


def test_ends_have_names_of_their_own():
    keys = digits().state_dict().keys()
    assert "model.features.3.weight" in keys and "model.features.3.weight_compressed" in keys
