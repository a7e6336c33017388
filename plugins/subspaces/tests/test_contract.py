"""The contracts that every plugin and every timm variant gets, on each network, regime and subspace."""

from __future__ import annotations

from typing import ClassVar

import pytest
import timm
import torch
from torch import nn

import graftwork.timm  # noqa: F401  registers the variants
from graftwork.testing import ModelContract, PluginContract
from graftwork_subspaces import models, networks

SCRIPT = "the level is held per thread, which TorchScript cannot read; script a materialised level"
ROUNDING = (
    "straight-through rounding reads ranges as pairs, which FX cannot trace; trace a materialised level"
)
SMALL_C: dict = {"channels": (4, 8, 8), "blocks": 1}
SMALL_R: dict = {"channels": (8, 8, 16, 16), "blocks": 1}
SMALL_V: dict = {"channels": (8, 8, 16, 16, 16), "blocks": (2, 1, 1, 1, 1)}


class TestPlugin(PluginContract):
    plugin = "subspaces"


class TestWidthLine(ModelContract):
    variant = "cpreresnet20_lcs_width_line"
    input_size = (3, 32, 32)
    model_kwargs: ClassVar = SMALL_C
    torchscript = SCRIPT
    parameters: ClassVar = {
        "cpreresnet20_lcs_width_point": 219_472,
        "cpreresnet20_lcs_width_line": 222_192,
        "resnet18_lcs_width_point": 11_688_512,
        "resnet18_lcs_width_line": 11_698_112,
        "resnet18_lcs_sparse_line": 23_377_024,
        "vgg19_lcs_width_point": 20_541_888,
        "vgg19_lcs_width_line": 20_552_896,
    }

    def limit_case(self, subject) -> tuple[nn.Module, nn.Module]:
        options = {"num_classes": 10, "in_chans": 3, "global_pool": "avg", "drop_rate": 0.0, **SMALL_C}
        base = networks.cpreresnet20(**options).eval()
        ours = models.cpreresnet20_lcs_width_point(num_classes=10, norm="batch", **SMALL_C).eval()
        ours.model.load_state_dict(base.state_dict())
        return ours, base


class TestSparseLine(ModelContract):
    variant = "resnet18_lcs_sparse_line"
    input_size = (3, 64, 64)
    model_kwargs: ClassVar = SMALL_R
    torchscript = SCRIPT


class TestQuantLine(ModelContract):
    variant = "vgg19_lcs_quant_line"
    input_size = (3, 32, 32)
    model_kwargs: ClassVar = SMALL_V
    torchscript = SCRIPT
    fx = ROUNDING
    amp_tolerance = 0.3  # eight-bit codes of bfloat16 inputs; the error is that of the rounding itself


@pytest.mark.slow
class TestSparsePoint(ModelContract):
    variant = "cpreresnet20_lcs_sparse_point"
    input_size = (3, 32, 32)
    model_kwargs: ClassVar = SMALL_C
    torchscript = SCRIPT


@pytest.mark.slow
class TestWidthPoint(ModelContract):
    variant = "vgg19_lcs_width_point"
    input_size = (3, 32, 32)
    model_kwargs: ClassVar = SMALL_V
    torchscript = SCRIPT


@pytest.mark.slow
class TestQuantPoint(ModelContract):
    variant = "resnet18_lcs_quant_point"
    input_size = (3, 64, 64)
    model_kwargs: ClassVar = SMALL_R
    torchscript = SCRIPT
    fx = ROUNDING
    amp_tolerance = 0.3


def every_variant():
    return timm.list_models("*_lcs_*")


def test_there_is_a_variant_for_every_network_regime_and_subspace():
    assert len(every_variant()) == 18


@pytest.mark.parametrize("network", ["cpreresnet20", "resnet18", "vgg19"])
def test_record_describes_the_features(network):
    name = f"{network}_lcs_width_point"
    small = {"cpreresnet20": SMALL_C, "resnet18": SMALL_R, "vgg19": SMALL_V}[network]
    net = timm.create_model(name, **small).eval()
    cfg = net.pretrained_cfg
    assert net.num_classes == cfg["num_classes"]
    with torch.no_grad():
        features = net.forward_features(torch.zeros(1, *cfg["input_size"]))
    assert tuple(features.shape[-2:]) == cfg["pool_size"]


def test_methods_of_timm_work_at_every_level():
    net = timm.create_model("cpreresnet20_lcs_width_line", **SMALL_C).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad(), net.at(width=0.5):
        features = net.forward_features(x)
        assert features.shape[1] == 16
        torch.testing.assert_close(net.forward_head(features), net(x))
        assert [f.shape[1] for f in net.forward_intermediates(x, intermediates_only=True)] == [8, 16, 16]


def test_features_only_follows_the_level():
    backbone = timm.create_model("cpreresnet20_lcs_width_line", features_only=True, **SMALL_C).eval()
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad(), backbone.model.at(width=0.25):
        assert [level.shape[1] for level in backbone(x)] == [4, 8, 8]


def test_new_classifier_is_on_the_subspace():
    net = timm.create_model("cpreresnet20_lcs_sparse_line", **SMALL_C)
    net.reset_classifier(7)
    assert net.get_classifier().weight_compressed.shape == (7, 32)
    width = timm.create_model("cpreresnet20_lcs_width_line", **SMALL_C).eval()
    width.reset_classifier(7)
    with torch.no_grad(), width.at(width=0.25):
        assert width(torch.zeros(1, 3, 32, 32)).shape == (1, 7)


def test_factory_works_without_registration(fresh_python):
    result = fresh_python(
        "import sys, logging; logging.disable(); from graftwork_subspaces import models\n"
        "net = models.cpreresnet20_lcs_width_line(channels=(4, 8, 8), blocks=1)\n"
        "assert 'graftwork.timm' not in sys.modules\n"
        "print(net.num_classes, net.pretrained_cfg['input_size'])"
    )
    assert result.stdout.split("\n")[0] == "10 (3, 32, 32)"


def test_options_of_wrap_reach_the_variant():
    net = timm.create_model(
        "cpreresnet20_lcs_sparse_line", levels={"lo": 0.005, "hi": 0.05}, beta=0.5, **SMALL_C
    )
    assert (net.settings.map.lo, net.settings.map.hi, net.settings.beta) == (0.005, 0.05, 0.5)
