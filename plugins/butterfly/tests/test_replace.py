"""Replacing pointwise convolutions in models of timm and torchvision."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from torch import nn

from graftwork_butterfly import ButterflyConv1x1, count_macs, materialize, replace_pointwise


def layers_of(model: nn.Module) -> dict[str, ButterflyConv1x1]:
    return {name: m for name, m in model.named_modules() if isinstance(m, ButterflyConv1x1)}


@pytest.mark.parametrize("name", ["mobilenetv2_050", "efficientnet_lite0", "regnetx_002", "resnet26t"])
def test_timm_models_run_and_train_after_replacement(name: str) -> None:
    model = timm.create_model(name, num_classes=4)
    done = replace_pointwise(model)
    assert set(done.replaced) == set(layers_of(model))
    model(torch.randn(2, 3, 64, 64)).square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "shufflenet_v2_x0_5", "squeezenet1_1"])
def test_torchvision_models_run_after_replacement(name: str) -> None:
    model = torchvision.models.get_model(name).eval()
    done = replace_pointwise(model)
    assert done.replaced
    assert torch.isfinite(model(torch.randn(1, 3, 64, 64))).all()


def test_squeeze_and_excitation_and_head_stay_dense_by_default() -> None:
    for model in (timm.create_model("mobilenetv3_small_050"), torchvision.models.mobilenet_v3_small()):
        done = replace_pointwise(model)
        pooled = [name for name in done.skipped if ".se." in name or "fc" in name or name == "conv_head"]
        assert pooled
        assert all("of `skip`" in done.skipped[name] for name in pooled)
        assert not any(".se." in name or "fc" in name for name in done.replaced)


def test_every_refusal_names_its_reason() -> None:
    parametrized = torch.nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 1))
    model = nn.ModuleDict(
        {
            "strided": nn.Conv2d(8, 8, 1, stride=2),
            "grouped": nn.Conv2d(8, 8, 1, groups=2),
            "padded": nn.Conv2d(8, 8, 1, padding=1),
            "narrow": nn.Conv2d(8, 1, 1),
            "dearer": nn.Conv2d(3, 8, 1),
            "parametrized": parametrized,
            "standardized": timm.layers.StdConv2d(8, 8, 1),
            "unwanted": nn.Conv2d(8, 8, 1),
            "other": nn.Conv2d(8, 8, 1),
            "spatial": nn.Conv2d(8, 8, 3),
            "taken": nn.Conv2d(8, 8, 1, padding="same"),
        }
    )
    done = replace_pointwise(model, skip=("un*",), where=lambda name, conv: name != "other")
    assert done.replaced == ("taken",)
    reasons = {
        "strided": "stride (2, 2)",
        "grouped": "2 groups",
        "padded": "padding (1, 1)",
        "narrow": "8 to 1 channels",
        "dearer": "a butterfly costs 27 multiplications per pixel, the convolution 24",
        "parametrized": "parametrized",
        "standardized": "StdConv2d",
        "unwanted": "the pattern 'un*' of `skip`",
        "other": "left out by `where`",
    }
    assert set(done.skipped) == set(reasons)
    for name, reason in reasons.items():
        assert reason.lower() in done.skipped[name].lower()


def test_nothing_to_replace_is_an_error_that_says_why() -> None:
    with pytest.raises(ValueError, match=r"of Sequential was replaced .*it has no 1x1 convolution"):
        replace_pointwise(nn.Sequential(nn.Conv2d(8, 8, 3)))
    with pytest.raises(ValueError, match=r"0: stride \(2, 2\)"):
        replace_pointwise(nn.Sequential(nn.Conv2d(8, 8, 1, stride=2)))
    with pytest.raises(ValueError, match="base must be an integer of at least 2"):
        replace_pointwise(nn.Sequential(nn.Conv2d(8, 8, 1)), base=1)


def test_new_layers_keep_bias_placement_mode_and_hooks() -> None:
    conv = nn.Conv2d(8, 16, 1, dtype=torch.float64).eval()
    conv.weight.requires_grad_(False)
    seen = []
    conv.register_forward_hook(lambda module, inputs, output: seen.append(type(module).__name__))
    model = nn.Sequential(conv)
    replace_pointwise(model)
    layer = model[0]
    assert isinstance(layer, ButterflyConv1x1)
    assert layer.bias is not None and conv.bias is not None
    assert torch.equal(layer.bias, conv.bias)
    assert (layer.weight.dtype, layer.training, layer.weight.requires_grad) == (torch.float64, False, False)
    layer(torch.randn(1, 8, 2, 2, dtype=torch.float64))
    assert seen == ["ButterflyConv1x1"]


def test_a_layer_used_twice_stays_one_layer() -> None:
    shared = nn.Conv2d(8, 8, 1)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    assert replace_pointwise(model).replaced == ("0",)
    assert model[0] is model[2]
    assert isinstance(model[0], ButterflyConv1x1)


def test_materialized_model_computes_the_same_without_butterflies() -> None:
    model = timm.create_model("mobilenetv2_050", num_classes=5).eval()
    replace_pointwise(model)
    x = torch.randn(1, 3, 64, 64)
    expected = model(x)
    assert materialize(model) is model
    assert not layers_of(model)
    assert torch.allclose(model(x), expected, rtol=1e-4, atol=1e-5)
    assert type(materialize(ButterflyConv1x1(4, 4))) is nn.Conv2d


def test_counting_leaves_the_model_as_it_was() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, groups=8))
    model.append(nn.Flatten()).append(nn.Linear(8 * 4, 2))
    counts = count_macs(model, (3, 4, 4))
    assert (counts.convolution, counts.pointwise, counts.depthwise, counts.linear) == (3456, 1024, 288, 64)
    assert counts.total == 4832
    assert model.training
    assert not model[0]._forward_hooks
