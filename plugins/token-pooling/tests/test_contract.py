"""The contracts that a third party's plugin and models get."""

from __future__ import annotations

from typing import ClassVar

from timm.models.vision_transformer import VisionTransformer
from torch import nn

import graftwork_token_pooling as tp
from graftwork.testing import ModelContract, PluginContract
from graftwork_token_pooling.variants import BASES

PARAMETERS = {"tiny": 5_717_416, "small": 22_050_664, "base": 86_567_656}
SIZES = {"patch_size": 4, "embed_dim": 32, "depth": 4, "num_heads": 2}


class TestPlugin(PluginContract):
    plugin = "token-pooling"


class TestRatio(ModelContract):
    variant = "deit_small_patch16_224_tp_r70"
    input_size = (3, 32, 32)
    model_kwargs: ClassVar[dict[str, int]] = SIZES
    parameters: ClassVar[dict[str, int]] = {
        f"{base}_tp_r70": PARAMETERS[base.split("_")[1]] for base in BASES
    }

    def limit_case(self, subject) -> tuple[nn.Module, nn.Module]:
        base = VisionTransformer(img_size=32, **SIZES).eval()
        return tp.apply(base, [64, 64, 64, 64]), base


class TestDecrement(ModelContract):
    variant = "vit_small_patch16_224_tp_d13"
    input_size = (3, 32, 32)
    model_kwargs: ClassVar[dict[str, int]] = SIZES
