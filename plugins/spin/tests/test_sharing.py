"""What a shared network computes, against networks that share nothing."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

from graftwork_spin import SpinConvMixer, SpinVisionTransformerDistilled, share


def untied(shared: nn.Module, plain: nn.Module) -> nn.Module:
    """The network without sharing whose layers hold copies of the tensors that `shared` hands them."""
    model = share(plain, rate=1)
    weights, biases = shared.layer_tensors()
    paths = [path for component in shared.sharing.components for path in shared.COMPONENTS[component]]
    with torch.no_grad():
        for layer, block in enumerate(model.blocks):
            for at, path in enumerate(paths):
                block.get_submodule(path).weight.copy_(weights[layer][at])
                block.get_submodule(path).bias.copy_(biases[layer][at])
    return model


def test_rate_one_equals_the_plain_network_bit_for_bit(plain, images):
    shared = share(plain, rate=1)
    assert torch.equal(shared(images), plain(images))
    assert sum(p.numel() for p in shared.parameters()) == sum(p.numel() for p in plain.parameters())


def test_rate_one_equals_the_plain_network_in_training_too(plain, images):
    shared = share(plain, rate=1).train()
    assert torch.equal(shared(images), copy.deepcopy(plain).train()(images))


def test_rate_one_variant_equals_timms_convmixer_with_its_weights(images):
    from timm.models.convmixer import ConvMixer

    from graftwork_spin.checkpoint import from_timm

    plain = ConvMixer(16, 4, kernel_size=3, patch_size=7, num_classes=5, act_layer=nn.ReLU).eval()
    shared = SpinConvMixer(16, 4, patch_size=7, num_classes=5, rate=1, pw_residual=False).eval()
    shared.load_state_dict(from_timm(plain.state_dict()))
    assert torch.equal(shared(images), plain(images))


@pytest.mark.parametrize("mapping", ["sequential", "strided", "random", [0, 1, 1, 0, 0, 2]])
def test_gradient_of_a_shared_tensor_is_the_sum_over_its_layers(plain, images, mapping):
    shared = share(plain, 2, mapping).double()
    separate = untied(shared, plain).double()
    shared(images.double()).square().sum().backward()
    separate(images.double()).square().sum().backward()
    paths = [path for component in shared.sharing.components for path in shared.COMPONENTS[component]]
    for path, layer in zip(paths, shared.shared.values(), strict=True):
        for kind in ("weight", "bias"):
            for index, members in enumerate(layer.groups):
                of_layers = [
                    getattr(block.get_submodule(path), kind).grad
                    for block, tensor in zip(separate.blocks, layer.mapping)
                    if tensor == index
                ]
                gradient = getattr(layer, kind)[members[0]].grad
                torch.testing.assert_close(gradient, sum(of_layers))
                assert gradient.abs().max() > 0


def test_a_shared_network_equals_the_untied_network_with_copied_tensors(plain, images):
    for mapping in ("sequential", "strided"):
        shared = share(plain, 3, mapping)
        torch.testing.assert_close(shared(images), untied(shared, plain)(images))


def test_every_component_alone_and_together_equals_the_untied_network(plain, images):
    components = type(share(plain, 1)).COMPONENTS
    for chosen in [*components, tuple(components)]:
        shared = share(plain, 2, components=chosen)
        torch.testing.assert_close(shared(images), untied(shared, plain)(images), rtol=1e-4, atol=1e-5)


def test_a_shared_tensor_counts_once_and_has_one_key(plain):
    shared, unshared = share(plain, 2), share(plain, 1)
    tensors = [t for t in shared.state_dict().values() if t.numel()]
    assert len({t.data_ptr() for t in tensors}) == len(tensors)
    saved = sum(p.numel() for p in unshared.parameters()) - sum(p.numel() for p in shared.parameters())
    stored = sum(p.numel() for p in shared.shared.parameters())
    assert saved == stored  # half of the shared layers' parameters are gone, half stay


def test_a_shared_tensor_starts_as_that_of_its_first_layer(plain):
    shared, unshared = share(plain, 3, "strided"), share(plain, 1)
    path, layer = next(
        (path, shared.shared[path.rpartition(".")[2]])
        for path in shared.COMPONENTS[shared.sharing.components[0]]
    )
    for index, weight in enumerate(layer.weight):
        first = layer.mapping.index(index)
        assert torch.equal(weight, unshared.blocks[first].get_submodule(path).weight)


def test_the_given_network_stays_as_it_is(plain, images):
    before, output = copy.deepcopy(plain.state_dict()), plain(images)
    shared = share(plain, 2)
    with torch.no_grad():
        for parameter in shared.parameters():
            parameter.zero_()
    assert torch.equal(plain(images), output)
    assert all(torch.equal(before[name], tensor) for name, tensor in plain.state_dict().items())


@pytest.mark.parametrize("transform", ["affine_channel", "affine_group"])
def test_a_transform_is_the_identity_at_the_start(plain, images, transform):
    transformed = share(
        plain, 2, components=["pw"] if "pw" in share(plain, 1).COMPONENTS else None, transform=transform
    )
    reference = share(plain, 2, components=transformed.sharing.components)
    torch.testing.assert_close(transformed(images), reference(images))


def test_a_channel_transform_scales_and_shifts_the_weights_of_its_layer_only():
    model = SpinConvMixer(8, 4, transform="affine_channel")
    layer = model.shared["pw"]
    with torch.no_grad():
        layer.scale[1].fill_(2.0)
        layer.shift[1].fill_(0.5)
    weights, _ = layer()
    torch.testing.assert_close(weights[1], 2 * layer.weight[0] + 0.5)
    assert torch.equal(weights[0], layer.weight[0])


def test_a_group_transform_reaches_64_consecutive_weights():
    model = SpinConvMixer(16, 4, transform="affine_group")
    layer = model.shared["pw"]
    with torch.no_grad():
        layer.scale[0][1].fill_(3.0)
    changed = (layer()[0][0] - layer.weight[0]).flatten().nonzero().flatten()
    assert changed.tolist() == list(range(64, 128))


def test_the_pointwise_residual_is_what_distinguishes_the_two_blocks(images):
    torch.manual_seed(0)
    model = SpinConvMixer(16, 2, patch_size=7, num_classes=5, rate=1).eval()
    x = model.stem(images)
    for block in model.blocks:
        x = x + block.norm1(functional.relu(block.dw(x)))
        x = x + block.norm2(functional.relu(block.pw(x)))
    torch.testing.assert_close(model.forward_features(images), x)


def test_a_distilled_deit_can_be_shared(images):
    deit = timm.create_model(
        "deit_tiny_distilled_patch16_224", img_size=28, patch_size=7, embed_dim=32, num_heads=2, num_classes=5
    ).eval()
    shared = share(deit, rate=1)
    assert type(shared) is SpinVisionTransformerDistilled
    assert torch.equal(shared(images), deit(images))
    assert share(deit, rate=4)(images).shape == (3, 5)


@pytest.mark.parametrize(
    "options",
    [
        {"init_values": 0.5, "qk_norm": True, "reg_tokens": 2, "no_embed_class": True},
        {"qkv_bias": False, "global_pool": "avg", "class_token": False},
        {"pre_norm": True, "dynamic_img_size": True, "scale_attn_norm": True, "scale_mlp_norm": True},
    ],
)
def test_options_of_timms_vit_survive_sharing(small_vit, images, options):
    plain = small_vit(depth=4, **options).eval()
    assert torch.equal(share(plain, rate=1)(images), plain(images))
    assert share(plain, rate=2)(images).shape == (3, 5)


def test_gated_perceptrons_can_be_shared(small_vit, images):
    from timm.layers import SwiGLUPacked

    plain = small_vit(depth=4, mlp_layer=SwiGLUPacked).eval()
    assert torch.equal(share(plain, rate=1)(images), plain(images))
    assert len(share(plain, rate=2).shared["fc1"].weight) == 2


def test_attention_mask_and_causality_reach_the_blocks(small_vit, images):
    plain = small_vit(depth=2).eval()
    shared = share(plain, rate=1)
    mask = torch.ones(17, 17, dtype=torch.bool).tril()
    assert torch.equal(shared(images, attn_mask=mask), plain(images, attn_mask=mask))
    assert torch.equal(shared(images, is_causal=True), plain(images, is_causal=True))
    assert not torch.equal(shared(images, is_causal=True), shared(images))


def test_unfused_attention_equals_the_fused_one(small_vit, images):
    from timm.layers import set_fused_attn

    fused = small_vit(depth=2).eval()
    set_fused_attn(False)
    try:
        unfused = small_vit(depth=2).eval()
    finally:
        set_fused_attn(True)
    unfused.load_state_dict(fused.state_dict())
    assert not unfused.blocks[0].attn.fused_attn
    torch.testing.assert_close(share(unfused, rate=1)(images), fused(images), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        share(unfused, rate=1)(images, is_causal=True), fused(images, is_causal=True), rtol=1e-4, atol=1e-5
    )


def test_unsupported_architectures_are_refused_with_the_supported_ones(small_vit):
    for name in ("resnet18", "convnext_atto", "mixer_s32_224"):
        with pytest.raises(TypeError, match=r"cannot share the layers .*Supported: ConvMixer"):
            share(timm.create_model(name, device="meta" if name == "convnext_atto" else None))
    with pytest.raises(TypeError, match="got ResPostBlock"):
        from timm.models.vision_transformer import ResPostBlock

        share(small_vit(depth=2, block_fn=ResPostBlock))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": 0}, "rate must be a whole number"),
        ({"mapping": [0, 0, 1]}, "3 entries, but the network has 6 layers"),
        ({"components": "conv"}, "components are some of"),
        ({"components": ()}, "got none"),
        ({"transform": "rotation"}, "none, affine_channel, affine_group"),
    ],
)
def test_impossible_choices_leave_the_network_alone(plain, options, message):
    keys = list(plain.state_dict())
    with pytest.raises(ValueError, match=message):
        share(plain, **options)
    assert list(plain.state_dict()) == keys


def test_a_network_that_shares_already_is_refused(plain):
    with pytest.raises(ValueError, match="shares tensors already"):
        share(share(plain, 2), 3)


def test_small_weights_refuse_groups_of_64():
    with pytest.raises(ValueError, match=r"'affine_group' needs weights divisible into groups of 64"):
        SpinConvMixer(6, 2, transform="affine_group")


def mean_square(tensor: Tensor) -> float:
    return float(tensor.detach().square().mean())


def test_weights_start_as_in_the_papers_training():
    torch.manual_seed(0)
    model = SpinConvMixer(256, 4, num_classes=100)
    for weight in model.shared["pw"].weight:
        assert mean_square(weight) == pytest.approx(2 / 256, rel=0.05)
    assert all(not bias.any() for bias in model.shared["pw"].bias)
    assert mean_square(model.head.weight) == pytest.approx(1e-4, rel=0.1)
    assert not model.head.bias.any()
