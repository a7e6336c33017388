"""MobileNetV1 and MobileNetV3-Small with butterflies for their pointwise convolutions, as timm models."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from timm.models import build_model_with_cfg, is_model
from timm.models._builder import pretrained_cfg_for_features
from timm.models._efficientnet_blocks import SqueezeExcite
from timm.models._efficientnet_builder import (
    decode_arch_def,
    resolve_act_layer,
    resolve_bn_args,
    round_channels,
)
from timm.models.efficientnet import EfficientNet, EfficientNetFeatures
from timm.models.mobilenetv3 import MobileNetV3, MobileNetV3Features
from torch import nn

from graftwork_butterfly.plugin import RECORDS
from graftwork_butterfly.replace import no_weight_decay, replace_pointwise
from graftwork_butterfly.structure import Residual

MOBILENETV1 = [
    ["dsa_r1_k3_s1_c64"],
    ["dsa_r2_k3_s2_c128"],
    ["dsa_r2_k3_s2_c256"],
    ["dsa_r6_k3_s2_c512"],
    ["dsa_r2_k3_s2_c1024"],
]
MOBILENETV3_SMALL = [
    ["ds_r1_k3_s2_e1_c16_se0.25_nre"],
    ["ir_r1_k3_s2_e4.5_c24_nre", "ir_r1_k3_s1_e3.67_c24_nre"],
    ["ir_r1_k5_s2_e4_c40_se0.25", "ir_r2_k5_s1_e6_c40_se0.25"],
    ["ir_r2_k5_s1_e3_c48_se0.25"],
    ["ir_r3_k5_s2_e6_c96_se0.25"],
    ["cn_r1_k1_s1_c576"],
]


class _WithButterflies:
    """What the four classes below add to timm's: replaced layers, and their names for the optimizer."""

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Return the names of the butterfly weights."""
        assert isinstance(self, nn.Module)
        return no_weight_decay(self)


class ButterflyEfficientNet(_WithButterflies, EfficientNet):
    """timm's EfficientNet, which MobileNetV1 is, with butterflies for its pointwise convolutions.

    Args:
        block_args: Decoded description of the blocks.
        bft_base: Radix k of the butterflies.
        bft_residual: Where they add their input.
        bft_backend: Which implementation they use.
        kwargs: Of :class:`timm.models.EfficientNet`.
    """

    def __init__(
        self,
        block_args: Any,
        bft_base: int = 4,
        bft_residual: Residual = "first_last",
        bft_backend: str = "auto",
        **kwargs: Any,
    ) -> None:
        super().__init__(block_args, **kwargs)
        replace_pointwise(self, base=bft_base, residual=bft_residual, backend=bft_backend)


class ButterflyEfficientNetFeatures(_WithButterflies, EfficientNetFeatures):
    """The feature extractor of :class:`ButterflyEfficientNet`."""

    def __init__(
        self,
        block_args: Any,
        bft_base: int = 4,
        bft_residual: Residual = "first_last",
        bft_backend: str = "auto",
        **kwargs: Any,
    ) -> None:
        super().__init__(block_args, **kwargs)
        replace_pointwise(self, base=bft_base, residual=bft_residual, backend=bft_backend)


class ButterflyMobileNetV3(_WithButterflies, MobileNetV3):
    """timm's MobileNetV3 with butterflies for its pointwise convolutions.

    Squeeze-and-excitation and the layers after the pooling stay dense: the paper does not mention them, and
    its multiply-adds say so.

    Args:
        block_args: Decoded description of the blocks.
        bft_base: Radix k of the butterflies.
        bft_residual: Where they add their input.
        bft_backend: Which implementation they use.
        kwargs: Of :class:`timm.models.MobileNetV3`.
    """

    def __init__(
        self,
        block_args: Any,
        bft_base: int = 4,
        bft_residual: Residual = "first_last",
        bft_backend: str = "auto",
        **kwargs: Any,
    ) -> None:
        super().__init__(block_args, **kwargs)
        replace_pointwise(self, base=bft_base, residual=bft_residual, backend=bft_backend)


class ButterflyMobileNetV3Features(_WithButterflies, MobileNetV3Features):
    """The feature extractor of :class:`ButterflyMobileNetV3`."""

    def __init__(
        self,
        block_args: Any,
        bft_base: int = 4,
        bft_residual: Residual = "first_last",
        bft_backend: str = "auto",
        **kwargs: Any,
    ) -> None:
        super().__init__(block_args, **kwargs)
        replace_pointwise(self, base=bft_base, residual=bft_residual, backend=bft_backend)


def mobilenetv1_arguments(width: float, **kwargs: Any) -> dict[str, Any]:
    """Return the arguments that make timm's ``EfficientNet``, or ours, a MobileNetV1 of any width.

    Example:
        >>> sum(p.numel() for p in EfficientNet(**mobilenetv1_arguments(0.25)).parameters())
        470072

    Args:
        width: Multiplier of all channel counts.
        kwargs: Further arguments of the model; those given take precedence.
    """
    return {
        "block_args": decode_arch_def(MOBILENETV1),
        "num_features": 0,
        "stem_size": 32,
        "round_chs_fn": partial(round_channels, multiplier=width),
        "norm_layer": kwargs.pop("norm_layer", None) or partial(nn.BatchNorm2d, **resolve_bn_args(kwargs)),
        "act_layer": resolve_act_layer(kwargs, "relu6"),
        **kwargs,
    }


def mobilenetv3_small_arguments(width: float, **kwargs: Any) -> dict[str, Any]:
    """Return the arguments that make timm's ``MobileNetV3``, or ours, a MobileNetV3-Small of any width.

    Args:
        width: Multiplier of all channel counts.
        kwargs: Further arguments of the model; those given take precedence.
    """
    return {
        "block_args": decode_arch_def(MOBILENETV3_SMALL),
        "num_features": 1024,
        "stem_size": 16,
        "fix_stem": width < 0.75,
        "round_chs_fn": partial(round_channels, multiplier=width),
        "norm_layer": kwargs.pop("norm_layer", None) or partial(nn.BatchNorm2d, **resolve_bn_args(kwargs)),
        "act_layer": resolve_act_layer(kwargs, "hard_swish"),
        "se_layer": partial(
            SqueezeExcite, gate_layer="hard_sigmoid", force_act_layer=nn.ReLU, rd_round_fn=round_channels
        ),
        **kwargs,
    }


def input_record(variant: str) -> dict[str, Any]:
    """Return what timm should know of a variant's input where the variant is not registered with it.

    A factory called directly, without ``import graftwork.timm``, then still gives a model with a complete
    ``pretrained_cfg``.
    """
    return {} if is_model(variant) else {"pretrained_cfg": dict(RECORDS[variant])}


def _create(
    model_cls: type[nn.Module],
    features_cls: type[nn.Module],
    variant: str,
    pretrained: bool,
    *,
    head_arguments: tuple[str, ...],
    features_only: bool = False,
    **kwargs: Any,
) -> nn.Module:
    """Build a model as timm does in these families, which have a class of their own for features."""
    by_cfg = features_only and ("feature_cfg" in kwargs or "feature_cls" in kwargs)
    by_class = features_only and not by_cfg
    model: nn.Module = build_model_with_cfg(
        features_cls if by_class else model_cls,
        variant,
        pretrained,
        features_only=by_cfg,
        pretrained_strict=not by_class,
        kwargs_filter=head_arguments if by_class else None,
        **{**input_record(variant), **kwargs},
    )
    if by_class:
        cfg = pretrained_cfg_for_features(model.pretrained_cfg)
        model.pretrained_cfg = model.default_cfg = cfg  # type: ignore[assignment]
    return model


def _create_mobilenetv1(variant: str, width: float, pretrained: bool, **kwargs: Any) -> nn.Module:
    head = ("num_classes", "num_features", "head_conv", "global_pool")
    classes = (ButterflyEfficientNet, ButterflyEfficientNetFeatures)
    return _create(
        *classes, variant, pretrained, head_arguments=head, **mobilenetv1_arguments(width, **kwargs)
    )


def _create_mobilenetv3_small(variant: str, width: float, pretrained: bool, **kwargs: Any) -> nn.Module:
    head = ("num_classes", "num_features", "head_conv", "head_bias", "head_norm", "global_pool")
    classes = (ButterflyMobileNetV3, ButterflyMobileNetV3Features)
    return _create(
        *classes, variant, pretrained, head_arguments=head, **mobilenetv3_small_arguments(width, **kwargs)
    )


def mobilenetv1_100_bft(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """MobileNetV1 1.0 with butterflies: the paper's answer to the dense 0.25 (table 4).

    Example:
        >>> sum(p.numel() for p in mobilenetv1_100_bft().parameters())
        1197224
    """
    return _create_mobilenetv1("mobilenetv1_100_bft", 1.0, pretrained, **kwargs)


def mobilenetv1_200_bft(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """MobileNetV1 2.0 with butterflies: the paper's answer to the dense 0.5 (table 4)."""
    return _create_mobilenetv1("mobilenetv1_200_bft", 2.0, pretrained, **kwargs)


def mobilenetv3_small_050_bft(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """MobileNetV3-Small 0.5 with butterflies: the paper's answer to the dense 0.35 (table 6)."""
    return _create_mobilenetv3_small("mobilenetv3_small_050_bft", 0.5, pretrained, **kwargs)


def mobilenetv3_small_075_bft(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """MobileNetV3-Small 0.75 with butterflies."""
    return _create_mobilenetv3_small("mobilenetv3_small_075_bft", 0.75, pretrained, **kwargs)


def mobilenetv3_small_100_bft(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """MobileNetV3-Small 1.0 with butterflies."""
    return _create_mobilenetv3_small("mobilenetv3_small_100_bft", 1.0, pretrained, **kwargs)
