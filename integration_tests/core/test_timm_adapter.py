"""The timm adapter: native registration, no overwriting, nothing half-registered."""

from __future__ import annotations

import types

import pytest
import timm
import torch
from timm.models import list_models, list_modules, model_entrypoint

import graftwork
import graftwork.timm as adapter
from graftwork import ModelVariant, Paper, hookimpl
from graftwork.catalog import PluginWarning

pytestmark = pytest.mark.timm
NETS = """
from torch import nn
from timm.models import build_model_with_cfg

class Net(nn.Module):
    def __init__(self, num_classes=1000, in_chans=3, width=4):
        super().__init__()
        self.num_classes, self.num_features = num_classes, width
        self.stem = nn.Conv2d(in_chans, width, 1)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x):
        return self.head(self.stem(x).mean((2, 3)))

def toy_net(pretrained=False, **kwargs):
    return build_model_with_cfg(Net, "toy_net", pretrained, **kwargs)
"""


@pytest.fixture
def toy(isolated_plugins, tmp_path, monkeypatch):
    """Register plugins made of variants; their code lies in the module ``toy_nets``."""
    (tmp_path / "toy_nets.py").write_text(NETS)
    monkeypatch.syspath_prepend(tmp_path)

    def register(slug, *variants):
        graftwork.register(
            types.SimpleNamespace(m=hookimpl(lambda: variants, specname="graftwork_models")), slug
        )
        return adapter.register_all()

    yield register
    import sys

    sys.modules.pop("toy_nets", None)


def variant(name="toy_net", **changes):
    fields = {"summary": "A toy", "target": "toy_nets:toy_net", "base": "resnet18"}
    return ModelVariant(name=name, **{**fields, **changes})


CFG = {"first_conv": "stem", "classifier": "head", "input_size": (3, 8, 8), "license": "apache-2.0"}


def test_variant_behaves_like_a_native_model(toy):
    assert toy("my-toys", variant(weights={"untrained": CFG, "in1k": {**CFG, "file": "w.pth"}})) == [
        "toy_net"
    ]
    assert list_models("toy_*") == list_models(module="my_toys") == ["toy_net"]
    assert list_models("toy_*", include_tags=True) == ["toy_net.in1k", "toy_net.untrained"]
    assert timm.list_pretrained("toy_*") == ["toy_net.in1k"]
    assert "my_toys" in list_modules()
    net = timm.create_model("toy_net.untrained", num_classes=3, in_chans=1, width=8)
    assert type(net).__module__ == "toy_nets" and net.pretrained_cfg["tag"] == "untrained"
    assert net.pretrained_cfg["architecture"] == "toy_net" and net.pretrained_cfg["input_size"] == (3, 8, 8)
    assert net(torch.zeros(2, 1, 8, 8)).shape == (2, 3)
    data = timm.data.resolve_data_config(model=net)
    assert data["input_size"][1:] == (8, 8) and data["interpolation"] == "bicubic"


def test_registering_imports_no_method_code(toy):
    import sys

    toy("toys", variant())
    assert "toy_nets" not in sys.modules
    timm.create_model("toy_net")
    assert "toy_nets" in sys.modules


def test_registering_again_changes_nothing(toy):
    toy("toys", variant())
    entrypoint = model_entrypoint("toy_net")
    assert adapter.register_all() == []
    assert model_entrypoint("toy_net") is entrypoint


def test_plugin_registered_later_is_picked_up(toy):
    toy("toys", variant())
    assert toy("more", variant("other_net")) == ["other_net"]


def test_name_of_timm_is_never_overwritten(toy):
    native = model_entrypoint("resnet18")
    with pytest.warns(PluginWarning, match="'resnet18' belongs to 'timm.models.resnet'"):
        assert toy("toys", variant("resnet18"), variant()) == ["toy_net"]
    assert model_entrypoint("resnet18") is native
    assert [problem.plugin for problem in adapter.problems()] == ["toys"]


def test_slug_of_a_timm_module_is_refused(toy):
    with pytest.warns(PluginWarning, match="a model module named 'resnet'"):
        assert toy("resnet", variant()) == []
    assert not timm.is_model("toy_net") and "toy_net" not in list_models(module="resnet")


def test_unknown_field_of_a_weight_record_leaves_nothing_half_registered(toy):
    with pytest.warns(PluginWarning, match="PretrainedCfg does not have"):
        assert toy("toys", variant("other_net"), variant(weights={"a": {"colour": "red"}})) == []
    assert not timm.is_model("toy_net") and not timm.is_model("other_net")


def test_pretrained_without_weights_says_what_to_do(toy):
    toy("toys", variant(weights={"untrained": CFG}))
    with pytest.raises(RuntimeError, match=r"no published weights.*pretrained=False.*pretrained_cfg_overlay"):
        timm.create_model("toy_net", pretrained=True)


def test_pretrained_cfg_overlay_loads_a_local_file(toy, tmp_path):
    toy("toys", variant(weights={"untrained": {**CFG, "num_classes": 5}}))
    source = timm.create_model("toy_net", num_classes=5)
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    overlay = {"file": str(tmp_path / "weights.pth")}
    loaded = timm.create_model("toy_net", pretrained=True, pretrained_cfg_overlay=overlay, num_classes=5)
    assert torch.equal(loaded.head.weight, source.head.weight)
    changed = timm.create_model("toy_net", pretrained=True, pretrained_cfg_overlay=overlay, num_classes=2)
    assert torch.equal(changed.stem.weight, source.stem.weight) and changed.head.out_features == 2


def test_entrypoint_documents_the_variant_and_its_paper(toy):
    paper = Paper(title="On Toys", url="https://example.org/toys", year=2020)
    toy("toys", variant(paper=paper))
    entrypoint = model_entrypoint("toy_net")
    assert entrypoint.__name__ == "toy_net" and entrypoint.__module__ == "graftwork.timm.toys"
    assert "A toy" in entrypoint.__doc__ and "On Toys" in entrypoint.__doc__


def test_missing_code_is_explained_when_the_model_is_created(toy):
    toy("toys", variant(target="toy_nets:gone"))
    with pytest.raises(ImportError, match=r"cannot load 'toy_net' from 'toy_nets:gone'"):
        timm.create_model("toy_net")
