"""Small MobileNetV1 networks for images of a few pixels, dense and with butterflies, for the demo and benchmark."""  # noqa: E501

from __future__ import annotations

from functools import partial

from timm.models._efficientnet_builder import decode_arch_def, round_channels
from timm.models.efficientnet import EfficientNet
from torch import nn

from graftwork_butterfly.models import ButterflyEfficientNet

BLOCKS = [["dsa_r1_k3_s1_c64"], ["dsa_r2_k3_s2_c128"], ["dsa_r3_k3_s2_c256"]]
"""Four times less reduction than MobileNetV1, whose blocks these are: with the stem, 32x32 pixels end at 4x4."""  # noqa: E501


def small_mobilenet(width: float, *, butterfly: bool, in_chans: int, num_classes: int = 10) -> nn.Module:
    """Build a depthwise-separable network for small images.

    Args:
        width: Multiplier of all channel counts.
        butterfly: Replace the pointwise convolutions.
        in_chans: Channels of the images.
        num_classes: Outputs.
    """
    model_cls = ButterflyEfficientNet if butterfly else EfficientNet
    return model_cls(
        decode_arch_def(BLOCKS),
        num_features=0,
        stem_size=32,
        round_chs_fn=partial(round_channels, multiplier=width),
        act_layer=nn.ReLU,
        in_chans=in_chans,
        num_classes=num_classes,
    )
