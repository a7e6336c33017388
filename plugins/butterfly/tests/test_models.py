"""The timm variants: multiply-adds of the paper's tables, and torchvision's ShuffleNetV2 as oracle."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from timm.models.efficientnet import EfficientNet
from timm.models.mobilenetv3 import MobileNetV3
from torch import nn

from graftwork_butterfly import ButterflyConv1x1, count_macs
from graftwork_butterfly.models import (
    mobilenetv1_100_bft,
    mobilenetv1_200_bft,
    mobilenetv1_arguments,
    mobilenetv3_small_050_bft,
    mobilenetv3_small_arguments,
)
from graftwork_butterfly.shufflenetv2 import shufflenetv2_x0_5, shufflenetv2_x1_25_bft


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def millions(model: nn.Module, side: int, **options) -> float:
    return count_macs(model, (3, side, side), **options).total / 1e6


# table 4: width and resolution, counted; printed 14, 21, 34, 41, 49, 110, 150 M
@pytest.mark.parametrize(
    ("width", "side", "macs"),
    [
        *((0.25, 128, 13.57), (0.25, 160, 21.06), (0.25, 192, 30.21), (0.25, 224, 41.03)),
        *((0.5, 128, 49.16), (0.5, 192, 109.97), (0.5, 224, 149.50)),
    ],
)
def test_macs_of_dense_mobilenetv1(width: float, side: int, macs: float) -> None:
    assert millions(EfficientNet(**mobilenetv1_arguments(width)), side) == pytest.approx(macs, abs=0.005)


# printed 14, 23, 35, 51, 52, 112, 150 M
@pytest.mark.parametrize(
    ("width", "side", "macs"),
    [
        *((1, 96, 13.73), (1, 128, 23.61), (1, 160, 36.31), (1, 192, 51.84)),
        *((2, 128, 49.18), (2, 192, 108.11), (2, 224, 146.40)),
    ],
)
def test_macs_of_butterfly_mobilenetv1_as_the_paper_counts(width: int, side: int, macs: float) -> None:
    model = mobilenetv1_100_bft() if width == 1 else mobilenetv1_200_bft()
    assert millions(model, side, convention="paper") == pytest.approx(macs, abs=0.005)
    assert millions(model, side) <= millions(model, side, convention="paper")


def test_macs_by_kind_of_layer() -> None:
    counts = count_macs(mobilenetv1_100_bft(), convention="paper")
    assert counts.total == pytest.approx(70.19e6, abs=5e3)
    assert counts.convolution == pytest.approx(10.84e6, abs=5e3)
    assert counts.depthwise == pytest.approx(17.39e6, abs=5e3)
    assert counts.pointwise == pytest.approx(40.94e6, abs=5e3)
    assert counts.linear == pytest.approx(1.02e6, abs=5e3)


@pytest.mark.parametrize(
    ("base", "macs", "size"), [(2, 34.32, 1_197_224), (4, 36.31, 1_205_288), (8, 43.89, 1_241_896)]
)
def test_macs_and_parameters_by_base_as_the_paper_counts(base: int, macs: float, size: int) -> None:
    model = mobilenetv1_100_bft(bft_base=base)
    assert millions(model, 160, convention="paper") == pytest.approx(macs, abs=0.005)
    layers = [layer for layer in model.modules() if isinstance(layer, ButterflyConv1x1)]
    assert len(layers) == 13
    # the paper has as many weights as multiplications per pixel
    butterflies = sum(layer.count_macs("paper") for layer in layers)
    assert parameters(model) - sum(layer.weight.numel() for layer in layers) + butterflies == size


def test_mixed_radix_needs_as_few_parameters_as_base_two() -> None:
    assert parameters(mobilenetv1_100_bft()) == parameters(mobilenetv1_100_bft(bft_base=2)) == 1_197_224


@pytest.mark.parametrize(
    ("side", "dense", "butterfly"), [(128, 13.91, 13.41), (160, 21.15, 20.38), (224, 40.48, 38.96)]
)
def test_macs_of_shufflenetv2(side: int, dense: float, butterfly: float) -> None:
    assert millions(shufflenetv2_x0_5(), side) == pytest.approx(dense, abs=0.005)
    macs = millions(shufflenetv2_x1_25_bft(), side, convention="paper")
    assert macs == pytest.approx(butterfly, abs=0.005)


def test_macs_of_mobilenetv3_small_are_near_the_printed_ones() -> None:
    # timm keeps the stem 16 wide below width 0.75, the paper's counts say that it was narrowed
    dense = MobileNetV3(**{**mobilenetv3_small_arguments(0.35), "fix_stem": False})
    assert millions(dense, 224) == pytest.approx(13, rel=0.02)
    butterfly = mobilenetv3_small_050_bft(fix_stem=False)
    assert millions(butterfly, 224, convention="paper") == pytest.approx(15, rel=0.04)


def test_our_architectures_are_those_of_timm() -> None:
    assert parameters(EfficientNet(**mobilenetv1_arguments(1.0))) == 4_231_976
    for width, name in ((0.5, "050"), (0.75, "075"), (1.0, "100")):
        ours = MobileNetV3(**mobilenetv3_small_arguments(width))
        theirs = timm.create_model(f"mobilenetv3_small_{name}")
        assert {k: v.shape for k, v in ours.state_dict().items()} == {
            k: v.shape for k, v in theirs.state_dict().items()
        }
        ours.load_state_dict(theirs.state_dict())
        x = torch.randn(1, 3, 64, 64)
        assert torch.allclose(ours.eval()(x), theirs.eval()(x), atol=1e-6)


def test_plain_shufflenetv2_is_torchvisions() -> None:
    ours, theirs = shufflenetv2_x0_5().eval(), torchvision.models.shufflenet_v2_x0_5().eval()
    for module in theirs.modules():  # statistics of a trained network are not (0, 1)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
    ours.load_state_dict(theirs.state_dict())
    assert parameters(ours) == 1_366_792
    x = torch.randn(2, 3, 96, 96)
    assert torch.allclose(ours(x), theirs(x), rtol=1e-4, atol=1e-5)


def test_shufflenetv2_keeps_what_reads_the_stem_dense() -> None:
    model = shufflenetv2_x1_25_bft()
    dense = {
        name for name, m in model.named_modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)
    }
    assert dense == {"stage2.0.branch1.2", "stage2.0.branch2.0"}
    assert isinstance(model.conv5[0], ButterflyConv1x1)


def test_mobilenetv1_replaces_exactly_the_pointwise_convolutions() -> None:
    model = mobilenetv1_100_bft()
    names = {name for name, m in model.named_modules() if isinstance(m, ButterflyConv1x1)}
    assert names == {
        f"blocks.{i}.{j}.conv_pw" for i, count in enumerate((1, 2, 2, 6, 2)) for j in range(count)
    }


def test_features_can_be_taken_before_the_projection() -> None:
    model = mobilenetv3_small_050_bft(features_only=True, feature_location="expansion", out_indices=(1, 2))
    shapes = [tuple(level.shape[:2]) for level in model(torch.randn(1, 3, 64, 64))]
    assert shapes == list(zip((1, 1), model.feature_info.channels()))


def test_factories_called_directly_know_their_input() -> None:
    cfg = mobilenetv1_100_bft().pretrained_cfg
    assert (cfg["input_size"], cfg["first_conv"], cfg["classifier"]) == (
        (3, 224, 224),
        "conv_stem",
        "classifier",
    )


def test_options_reach_the_layers() -> None:
    model = shufflenetv2_x1_25_bft(bft_base=2, bft_residual="none", bft_backend="dense")
    layer = model.conv5[0]
    assert (layer.base, layer.residual, layer.backend) == (2, "none", "dense")


def test_weights_without_decay_are_those_of_the_butterflies() -> None:
    for model in (mobilenetv1_100_bft(), shufflenetv2_x1_25_bft()):
        names = {f"{name}.weight" for name, m in model.named_modules() if isinstance(m, ButterflyConv1x1)}
        assert model.no_weight_decay() == names
