"""Structured compression: widths are followed, and a cut network is an ordinary smaller one."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from graftwork_subspaces import UnsupportedGraph, wrap
from graftwork_subspaces.digits import DigitsNet
from graftwork_subspaces.width import Segment, Space, kept_indices, step_for, take

SMALL = {
    "resnet18": {"layers": (2, 1, 1, 1)},
    "resnext50_32x4d": {"layers": (1, 1, 1, 1)},
    "densenet121": {},
    "mobilenetv3_small_100": {},
    "efficientnet_b0": {},
    "tf_efficientnet_b0": {},
    "ecaresnet50t": {},
    "regnety_002": {},
    "convnext_atto": {"depths": (1, 1, 1, 1)},
    "convnextv2_atto": {"depths": (1, 1, 1, 1)},
    "deit_tiny_patch16_224": {"img_size": 64, "depth": 2},
    "inception_v3": {},
    "vgg11_bn": {},
}
SIDES = {"inception_v3": 96, "vgg11_bn": 224}
DEFAULT = ("mobilenetv3_small_100", "resnext50_32x4d", "convnext_atto", "deit_tiny_patch16_224", "resnet18")


def build(name):
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=7, **SMALL[name]).eval()


def sliced_by_hand(conv, inputs, outputs, groups=1):
    small = nn.Conv2d(
        inputs * groups, outputs, conv.kernel_size, conv.stride, conv.padding, groups=groups, bias=False
    )
    small.weight = nn.Parameter(conv.weight.detach()[:outputs, :inputs])
    return small


@pytest.mark.parametrize("subspace", ["line", "point"])
@pytest.mark.parametrize("width", [0.25, 0.375, 0.6, 1.0])
def test_output_equals_that_of_a_network_sliced_by_hand(subspace, width):
    torch.manual_seed(0)
    net = wrap(DigitsNet(), regime="width", subspace=subspace, input_size=(1, 8, 8), multiple=1).eval()
    alpha = net.settings.map.alpha(width)
    layers, narrow, wide = net.named_layers(), round(16 * width), round(32 * width)
    plan = [("0", 1, narrow), ("3", narrow, narrow), ("6", narrow, wide), ("9", wide, wide)]
    modules: list[nn.Module] = []
    for name, inputs, outputs in plan:
        norm = layers[f"features.{int(name) + 1}"]
        cut = nn.GroupNorm(outputs, outputs)
        for parameter in ("weight", "bias"):
            end1, end0 = getattr(norm, parameter), getattr(norm, parameter + "_compressed", None)
            value = end1 if end0 is None else torch.lerp(end0, end1, alpha)
            setattr(cut, parameter, nn.Parameter(value.detach()[:outputs]))
        modules += [sliced_by_hand(layers[f"features.{name}"], inputs, outputs), cut, nn.ReLU()]
    head = nn.Linear(wide * 4, 10)
    head.weight = nn.Parameter(layers["head"].weight.detach()[:, : wide * 4])
    head.bias = nn.Parameter(layers["head"].bias.detach())
    by_hand = nn.Sequential(*modules, nn.Flatten(), head)
    x = torch.randn(3, 1, 8, 8)
    with torch.no_grad(), net.at(width=width):
        torch.testing.assert_close(net(x), by_hand(x), rtol=0, atol=1e-6)


def check_family(name):
    net = wrap(build(name), regime="width").eval()
    side = SIDES.get(name, 64)
    x = torch.randn(2, 3, side, side)
    full = sum(p.numel() for p in net.model.parameters())
    sizes = []
    for width in (0.25, 0.6, 1.0):
        with torch.no_grad(), net.at(width=width):
            logits = net(x)
        small = net.materialize(width=width)
        assert type(small) is type(net.model) or "Subspace" in type(net.model).__name__
        assert not any("Subspace" in type(m).__name__ for m in small.modules())
        with torch.no_grad():
            torch.testing.assert_close(small(x), logits, rtol=1e-5, atol=1e-6)
        sizes.append(sum(p.numel() for p in small.parameters()))
    assert sizes[0] < sizes[1] < sizes[2] <= full
    return net


@pytest.mark.parametrize("name", DEFAULT)
def test_family_runs_at_any_width_and_is_an_ordinary_model_there(name):
    check_family(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in SMALL if name not in DEFAULT])
def test_further_family_runs_at_any_width(name):
    check_family(name)


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_100", "deit_tiny_patch16_224"])
def test_full_width_is_the_model_itself(name):
    """A point with the model's own norms changes nothing at width 1."""
    model, x = build(name), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = model(x)
        net = wrap(model, regime="width", subspace="point", norm="batch").eval()
        torch.testing.assert_close(net(x), expected, rtol=1e-5, atol=1e-5)


def test_grouped_convolution_keeps_whole_groups():
    net = wrap(build("resnext50_32x4d"), regime="width")
    grouped = [layer for layer in net.layers() if getattr(layer, "groups", 1) == 32]
    assert grouped
    small = net.materialize(width=0.4)
    for module in small.modules():
        if isinstance(module, nn.Conv2d) and module.groups > 1:
            original = {4: 128, 8: 256, 16: 512, 32: 1024}[module.in_channels // module.groups]
            assert module.in_channels % (original // 32) == 0
            assert module.groups == module.in_channels // (original // 32)


def test_depthwise_convolution_has_one_group_per_channel():
    small = wrap(build("mobilenetv3_small_100"), regime="width").materialize(width=0.5)
    depthwise = [m for m in small.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    assert depthwise and all(m.groups == m.in_channels == m.out_channels for m in depthwise)


def test_attention_keeps_whole_heads_and_the_embedding():
    net = wrap(build("deit_tiny_patch16_224"), regime="width", multiple=1)
    for width, heads in ((0.25, 1), (0.6, 2), (1.0, 3)):
        small = net.materialize(width=width)
        for block in small.blocks:
            assert block.attn.num_heads == heads and block.attn.head_dim == 64
            assert block.attn.qkv.weight.shape == (3 * 64 * heads, 192)
            assert block.mlp.fc1.out_features == round(768 * width)
    reasons = set(net.settings.plan.kept_whole.values())
    assert any("never cut" in reason for reason in reasons), "the embedding stays whole, and says why"


def test_concatenation_is_followed_by_index_lists():
    class Fork(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 1)
            self.left, self.right = nn.Conv2d(8, 12, 1), nn.Conv2d(8, 20, 1)
            self.norm = nn.BatchNorm2d(32)
            self.join = nn.Conv2d(32, 16, 1)
            self.head = nn.Linear(16, 5)

        def forward(self, x):
            x = self.stem(x)
            x = self.norm(torch.cat([self.left(x), self.right(x)], 1))
            return self.head(self.join(x).mean((2, 3)))

    net = wrap(Fork(), regime="width", input_size=(3, 8, 8), multiple=1).eval()
    plan = net.settings.plan
    sizes = plan.sizes(0.5)
    expected = [*range(6), *range(12, 22)]
    assert kept_indices(plan.inputs["join"], sizes) == expected
    assert kept_indices(plan.outputs["norm"], sizes) == expected
    small = net.materialize(width=0.5)
    assert torch.equal(small.join.weight, net.model.join.weight[:8, expected])
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad(), net.at(width=0.5):
        torch.testing.assert_close(net(x), small(x))


def test_residual_ends_are_cut_alike():
    plan = wrap(build("resnet18"), regime="width").settings.plan
    assert plan.outputs["layer1.0.conv2"] == plan.outputs["layer1.1.conv2"] == plan.outputs["conv1"]
    assert plan.outputs["layer2.0.conv2"] == plan.outputs["layer2.0.downsample.0"]


def test_squeeze_excite_is_cut_on_both_sides():
    plan = wrap(build("mobilenetv3_small_100"), regime="width").settings.plan
    reduce, expand = "blocks.0.0.se.conv_reduce", "blocks.0.0.se.conv_expand"
    assert plan.inputs[reduce] == plan.outputs[expand] == plan.outputs["blocks.0.0.conv_dw"]
    assert plan.outputs[reduce] == plan.inputs[expand] != plan.inputs[reduce]


def test_classifier_keeps_its_classes_and_the_stem_its_colours():
    net = wrap(build("resnet18"), regime="width")
    small = net.materialize(width=0.25)
    assert small.fc.out_features == 7 and small.fc.in_features == 128
    assert small.conv1.in_channels == 3 and small.conv1.out_channels == 16


@pytest.mark.parametrize("multiple", [1, 8, 16])
def test_channels_are_multiples_where_a_layer_is_large_enough(multiple):
    net = wrap(build("resnet18"), regime="width", multiple=multiple)
    for width in (0.3, 0.55, 0.9):
        for module in net.materialize(width=width).modules():
            if isinstance(module, nn.Conv2d):
                assert module.out_channels % multiple == 0


def test_rounding_is_the_published_one():
    assert [Space(6).size(w) for w in (0.25, 0.4, 0.75, 1.0)] == [2, 2, 4, 6]
    assert Space(10).size(0.25) == 2, "halves go to the even number"
    assert Space(3).size(0.01) == 1
    assert Space(20, 8).size(0.5) == 8 and Space(20, 8).size(1.0) == 20
    assert step_for(64, 1, 1, 8) == 8 and step_for(4, 1, 1, 8) == 1 and step_for(3, 64, 1, 8) == 1
    assert step_for(128, 1, 4, 8) == 8 and step_for(128, 1, 16, 8) == 16


def test_one_segment_is_a_view_and_several_are_a_copy():
    weight = torch.arange(24.0).view(6, 4).clone()
    one, two = (Segment(0, 6),), (Segment(0, 2), Segment(1, 4))
    assert take(weight, 0, one, (3,))._base is weight
    assert take(weight, 0, two, (1, 2))[:, 0].tolist() == [0.0, 8.0, 12.0]


def test_cut_channels_get_zero_and_not_missing_gradients():
    net = wrap(DigitsNet(), regime="width", input_size=(1, 8, 8)).train()
    with net.at(width=0.25):
        net(torch.randn(2, 1, 8, 8)).sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
    weight = net.named_layers()["features.9"].weight
    assert float(weight.grad[8:].abs().max()) == 0 and float(weight.grad[:8, :8].abs().max()) > 0


@pytest.mark.parametrize(
    ("name", "module"),
    [("res2net50_26w_4s", "layer1.0"), ("ghostnet_100", "ghost1"), ("mixer_b16_224", "mlp_tokens")],
)
def test_unsupported_graph_is_refused_with_the_modules_name(name, module):
    with pytest.raises(UnsupportedGraph, match=module):
        wrap(timm.create_model(name), regime="width")


def test_refused_part_can_be_kept_whole():
    class Shuffle(nn.Module):
        def forward(self, x):
            batch, channels, height, width = x.shape
            return x.view(batch, 2, channels // 2, height, width).transpose(1, 2).flatten(1, 2)

    def model():
        return nn.Sequential(
            nn.Conv2d(3, 8, 1), Shuffle(), nn.Conv2d(8, 16, 1), nn.Flatten(), nn.Linear(256, 4)
        )

    with pytest.raises(UnsupportedGraph, match="1: "):
        wrap(model(), regime="width", input_size=(3, 4, 4), multiple=1)
    net = wrap(model(), regime="width", input_size=(3, 4, 4), multiple=1, skip=("0",))
    small = net.materialize(width=0.5)
    assert (small[0].out_channels, small[2].in_channels, small[2].out_channels) == (8, 8, 8)


def test_control_flow_on_values_is_refused_with_a_way_out():
    class Moody(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 1)

        def forward(self, x):
            return self.conv(x) if x.sum() > 0 else self.conv(-x)

    with pytest.raises(UnsupportedGraph, match="need no tracing"):
        wrap(Moody(), regime="width", input_size=(3, 4, 4))


def test_instance_norm_of_single_positions_is_refused():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 2)
    )
    with pytest.raises(ValueError, match=r"2 .*single position"):
        wrap(model, regime="width", input_size=(3, 4, 4))


def test_model_without_record_asks_for_its_image_size():
    with pytest.raises(ValueError, match="input_size="):
        wrap(DigitsNet(), regime="width")
