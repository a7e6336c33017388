"""The contracts that a third party's plugin and models get, on every family."""

from __future__ import annotations

from typing import ClassVar

import timm
import torch
from timm.models.convmixer import ConvMixer
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from graftwork.testing import ModelContract, PluginContract
from graftwork_spin import share
from graftwork_spin.variants import VARIANTS


class TestPlugin(PluginContract):
    plugin = "spin"


class TestConvMixer(ModelContract):
    variant = "convmixer_spin"
    input_size = (3, 28, 28)
    model_kwargs: ClassVar = {"dim": 32, "depth": 4, "patch_size": 7}

    def limit_case(self, subject) -> tuple[nn.Module, nn.Module]:
        base = ConvMixer(32, 4, kernel_size=3, patch_size=7).eval()
        return share(base, rate=1), base


class TestConvMixerInOnlineFusionWithTransform(ModelContract):
    variant = "convmixer_1024_20_ks9_p14_spin4"
    input_size = (3, 28, 28)
    model_kwargs: ClassVar = {
        "dim": 16,
        "depth": 6,
        "patch_size": 7,
        "kernel_size": 3,
        "rate": 3,
        "fusion": "channel_weighted_mean",
        "transform": "affine_channel",
        "components": ("pw", "dw"),
    }


class TestUnsharedConvMixer(ModelContract):
    variant = "convmixer_768_32_ks3_p14_spin1"
    input_size = (3, 28, 28)
    model_kwargs: ClassVar = {"dim": 16, "depth": 4, "patch_size": 7}


class TestDeiT(ModelContract):
    variant = "deit_tiny_patch16_224_spin3"
    input_size = (3, 32, 32)
    model_kwargs: ClassVar = {"patch_size": 8, "embed_dim": 32, "depth": 6, "num_heads": 2}

    def limit_case(self, subject) -> tuple[nn.Module, nn.Module]:
        base = VisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=6, num_heads=2).eval()
        return share(base, rate=1), base


class TestConvNeXt(ModelContract):
    variant = "convnext_iso_384_18_spin2"
    input_size = (3, 32, 32)
    model_kwargs: ClassVar = {"dim": 16, "depth": 4, "patch_size": 8, "kernel_size": 3, "ls_init_value": 0.1}


def test_every_variant_is_built_with_its_own_arguments_and_an_apt_name():
    for variant in VARIANTS:
        model = timm.create_model(variant.name, device="meta")
        depth = variant.args["depth"]
        assert len(model.blocks) == depth
        assert len(set(model.sharing.mapping)) == -(-depth // variant.args["rate"])
        # timm's standard test of records asks for pool_size and 4-D features unless a name is excepted.
        excepted = "mixer_" in variant.name or variant.name.startswith("deit")
        assert excepted or model.pretrained_cfg["pool_size"] is not None


def test_the_isotropic_convnext_meets_timms_standard_record():
    model = timm.create_model("convnext_iso_384_18_spin2", dim=16, depth=2, num_classes=7)
    model.reset_classifier(0, "")
    with torch.no_grad():
        features = model(torch.zeros(1, 3, 224, 224))
    assert tuple(features.shape[-2:]) == model.pretrained_cfg["pool_size"]
