"""The networks that subspaces are compared with."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from graftwork_subspaces import loss_step, step_levels
from graftwork_subspaces.baselines import fixed_level, recalibrate, slim, slimmable, slimming_penalty
from graftwork_subspaces.digits import DigitsNet

SIZE = {"input_size": (1, 8, 8)}


@pytest.mark.parametrize(("regime", "value"), [("sparse", 0.1), ("width", 0.5), ("quant", 6)])
def test_fixed_level_trains_for_its_level_only(regime, value):
    net = fixed_level(DigitsNet(), regime, value, **SIZE)
    assert step_levels(net, 99, 100)[0].value == value
    assert any(getattr(layer, "running_mean", None) is not None for layer in net.layers())
    with net.at(1.0) as level:
        assert level.value == value


def test_fixed_sparsity_is_reached_by_a_linear_ramp():
    net = fixed_level(DigitsNet(), "sparse", 0.1)
    kept = [step_levels(net, step, 100)[0].value for step in range(100)]
    assert kept[0] == 1.0 and kept[40] == pytest.approx(0.55) and kept[80:] == pytest.approx([0.1] * 20)


def test_fixed_bits_round_inputs_after_the_delay():
    net = fixed_level(DigitsNet(), "quant", 6)
    levels = [step_levels(net, step, 10)[0] for step in range(10)]
    assert {level.value for level in levels} == {6}
    assert [level.inputs_too for level in levels] == [False] * 8 + [True] * 2


def test_slimmable_networks_share_batch_statistics_over_widths():
    net = slimmable(DigitsNet(), **SIZE).train()
    assert len(step_levels(net, 0, 10)) == 4
    before = {k: v.clone() for k, v in net.state_dict().items() if "running_mean" in k}
    with net.at(width=0.5):
        net(torch.randn(8, 1, 8, 8) + 3)
    for key, value in before.items():
        after = net.state_dict()[key]
        kept = len(after) // 2
        assert not torch.equal(after[:kept], value[:kept]) and torch.equal(after[kept:], value[kept:])


def test_slimmable_network_visits_all_listed_widths():
    net = slimmable(DigitsNet(), (1.0, 0.75, 0.5, 0.25), **SIZE)
    assert sorted(level.value for level in step_levels(net, 0, 10)) == pytest.approx([0.25, 0.5, 0.75, 1.0])


def test_recalibration_gives_a_level_its_own_statistics():
    torch.manual_seed(0)
    net = slimmable(DigitsNet(), **SIZE).train()
    x = torch.randn(64, 1, 8, 8)
    loss_step(net, x, torch.zeros(64, dtype=torch.long), step=0, total_steps=1)
    plain = recalibrate(net.eval(), [x[:32], x[32:]], 0.5)
    first = next(m for m in plain.modules() if isinstance(m, nn.BatchNorm2d))
    responses = plain.features[0](x)
    torch.testing.assert_close(first.running_mean, responses.mean((0, 2, 3)).detach(), rtol=1e-4, atol=1e-4)
    assert not plain.training and first.momentum == 0.1
    with pytest.raises(ValueError, match="nothing to recalibrate"):
        recalibrate(wrap_without_statistics(), [x], 0.5)


def wrap_without_statistics():
    from graftwork_subspaces import wrap

    return wrap(DigitsNet(), regime="width", subspace="point", **SIZE).eval()


def test_slimming_penalty_is_the_l1_norm_of_the_scales():
    model = DigitsNet()
    expected = sum(
        float(m.weight.detach().abs().sum()) for m in model.modules() if isinstance(m, nn.BatchNorm2d)
    )
    assert float(slimming_penalty(model, 0.5).detach()) == pytest.approx(0.5 * expected)
    with pytest.raises(ValueError, match="needs batch norm"):
        slimming_penalty(nn.Linear(2, 2))


def test_slimming_silences_the_weakest_channels_of_the_network():
    model = DigitsNet().eval()
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    with torch.no_grad():
        for norm in norms:
            norm.weight.copy_(torch.rand_like(norm.weight))
    result = slim(model, 0.25)
    scales = torch.cat([norm.weight.detach() for norm in norms])
    threshold = scales.sort(descending=True).values[result.kept - 1]
    assert (result.kept, result.total) == (24, 96)
    for before, after in zip(norms, [m for m in result.model.modules() if isinstance(m, nn.BatchNorm2d)]):
        expected = before.weight.detach() * (before.weight.detach() >= threshold)
        assert torch.equal(after.weight.detach(), expected)
    with pytest.raises(ValueError, match="fraction"):
        slim(model, 0.0)
