"""Parameters and multiply-accumulates of every variant, as exact numbers."""

from __future__ import annotations

import pytest
import timm
import torch

from graftwork.testing.model import count_macs
from graftwork_spin import SpinConvMixer, SpinVisionTransformer
from graftwork_spin.variants import VARIANTS

# Computed from the layer shapes; 20.46M, 11.02M, 22.05M, 11.41M, 7.87M, 5.72M, 3.05M, 22.3M and 11.5M are the
# figures the paper prints.
PARAMETERS = {
    "convmixer_spin": 11_016_424,
    "convmixer_768_32_ks3_p14_spin1": 20_465_896,
    "convmixer_768_32_ks3_p14_spin2": 11_016_424,
    "convmixer_768_32_ks3_p14_spin4": 6_291_688,
    "convmixer_768_32_ks3_p14_spin8": 3_929_320,
    "convmixer_768_32_ks3_p14_spin16": 2_748_136,
    "convmixer_768_32_ks3_p14_spin32": 2_157_544,
    "convmixer_768_16_ks3_p14_spin1": 10_844_392,
    "convmixer_768_16_ks3_p14_spin2": 6_119_656,
    "convmixer_768_16_ks3_p14_spin4": 3_757_288,
    "convmixer_768_16_ks3_p14_spin8": 2_576_104,
    "convmixer_768_16_ks3_p14_spin16": 1_985_512,
    "convmixer_576_32_ks3_p14_spin1": 11_810_728,
    "convmixer_576_32_ks3_p14_spin2": 6_493_096,
    "convmixer_576_32_ks3_p14_spin4": 3_834_280,
    "convmixer_576_32_ks3_p14_spin8": 2_504_872,
    "convmixer_576_32_ks3_p14_spin16": 1_840_168,
    "convmixer_576_32_ks3_p14_spin32": 1_507_816,
    "convmixer_512_16_ks3_p14_spin1": 5_132_776,
    "convmixer_512_16_ks3_p14_spin2": 3_031_528,
    "convmixer_512_16_ks3_p14_spin4": 1_980_904,
    "convmixer_512_16_ks3_p14_spin8": 1_455_592,
    "convmixer_512_16_ks3_p14_spin16": 1_192_936,
    "convmixer_768_32_spin2": 11_660_776,
    "convmixer_768_32_spin4": 6_936_040,
    "convmixer_1024_20_ks9_p14_spin2": 13_887_464,
    "convmixer_1024_20_ks9_p14_spin4": 8_639_464,
    "convmixer_1024_20_ks9_p14_spin5": 7_589_864,
    "convmixer_1024_20_ks9_p14_spin10": 5_490_664,
    "convmixer_1536_20_spin2": 28_017_640,
    "convmixer_1536_20_spin4": 16_213_480,
    "convmixer_1536_20_spin5": 13_852_648,
    "convmixer_1536_20_spin10": 9_130_984,
    "deit_tiny_patch16_224_spin2": 3_052_840,
    "deit_tiny_patch16_224_spin3": 2_164_648,
    "deit_tiny_patch16_224_spin4": 1_720_552,
    "deit_tiny_patch16_224_spin6": 1_276_456,
    "deit_tiny_patch16_224_spin12": 832_360,
    "deit_small_patch16_224_spin2": 11_413_096,
    "deit_small_patch16_224_spin3": 7_867_240,
    "deit_small_patch16_224_spin4": 6_094_312,
    "deit_small_patch16_224_spin6": 4_321_384,
    "deit_small_patch16_224_spin12": 2_548_456,
    "deit_base_patch16_224_spin2": 44_058_856,
    "deit_base_patch16_224_spin3": 29_889_256,
    "deit_base_patch16_224_spin4": 22_804_456,
    "deit_base_patch16_224_spin6": 15_719_656,
    "deit_base_patch16_224_spin12": 8_634_856,
    "convnext_iso_384_18_spin1": 22_315_624,
    "convnext_iso_384_18_spin2": 11_508_712,
}
# GMACs at 224 x 224 of the unshared network; sharing changes none of them.
GMACS = {
    "convmixer_spin": 5.005,
    "convmixer_768_16_ks3_p14_spin2": 2.561,
    "convmixer_576_32_ks3_p14_spin2": 2.848,
    "convmixer_512_16_ks3_p14_spin2": 1.170,
    "convmixer_768_32_spin2": 20.677,
    "convmixer_1024_20_ks9_p14_spin2": 5.949,
    "convmixer_1536_20_spin2": 51.099,
    "deit_tiny_patch16_224_spin2": 1.254,
    "deit_small_patch16_224_spin2": 4.599,
    "deit_base_patch16_224_spin2": 17.564,
}


def parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_the_table_covers_every_variant():
    assert set(PARAMETERS) == {variant.name for variant in VARIANTS}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_exactly_as_computed(name):
    assert parameters(timm.create_model(name, device="meta")) == PARAMETERS[name]


@pytest.mark.parametrize("name", GMACS)
def test_macs_are_as_computed(name):
    assert (
        round(count_macs(timm.create_model(name, device="meta").eval(), (3, 224, 224)) / 1e9, 3)
        == GMACS[name]
    )


def test_convmixer_macs_follow_the_closed_formula():
    dim, depth, kernel, patch, grid = 768, 32, 3, 14, 16
    expected = grid**2 * 3 * patch**2 * dim + depth * grid**2 * (dim * kernel**2 + dim**2) + 1000 * dim
    assert count_macs(timm.create_model("convmixer_spin", device="meta").eval(), (3, 224, 224)) == expected


def test_sharing_changes_no_macs():
    counts = {
        count_macs(SpinConvMixer(32, 8, patch_size=7, rate=rate, device="meta").eval(), (3, 28, 28))
        for rate in (1, 2, 4, 8)
    }
    assert len(counts) == 1


@pytest.mark.parametrize(
    ("components", "expected"),
    [
        (("pw",), 11_016_424),
        (("dw",), 20_343_016),
        (("pw", "dw"), 10_893_544),
        (("pw", "dw", "norm"), 10_844_392),
        (("norm",), 20_416_744),
    ],
)
def test_parameters_of_the_component_ablation(components, expected):
    assert parameters(SpinConvMixer(768, 32, components=components, device="meta")) == expected


@pytest.mark.parametrize("distribution", ["uniform", "front", "middle", "back", "pyramid"])
def test_all_distributions_have_the_size_of_the_headline(distribution):
    assert parameters(SpinConvMixer(768, 32, distribution=distribution, device="meta")) == 11_016_424


def test_affine_groups_of_64_weights_add_590_thousand_parameters():
    model = SpinConvMixer(768, 32, transform="affine_group", device="meta")
    assert parameters(model) - 11_016_424 == 2 * 32 * 768**2 // 64


def test_affine_channels_add_two_vectors_per_layer():
    model = SpinConvMixer(768, 32, transform="affine_channel", device="meta")
    assert parameters(model) - 11_016_424 == 2 * 32 * 768


def test_deit_shares_weights_and_biases_but_no_norm():
    sizes = {"embed_dim": 384, "depth": 12, "num_heads": 6, "device": "meta"}
    plain = parameters(SpinVisionTransformer(rate=1, **sizes))
    per_block = 12 * 384**2 + 9 * 384
    assert plain - parameters(SpinVisionTransformer(rate=2, **sizes)) == 6 * per_block
