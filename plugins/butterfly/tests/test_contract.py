"""The contracts that a third party's plugin, models and operators get."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from graftwork.testing import ModelContract, OpContract, PluginContract
from graftwork.testing.model import Subject
from graftwork_butterfly.dispatch import butterfly
from graftwork_butterfly.functional import apply_staged
from graftwork_butterfly.structure import structure


class TestPlugin(PluginContract):
    plugin = "butterfly"


class TestMobileNetV1(ModelContract):
    variant = "mobilenetv1_100_bft"
    parameters = 1_197_224  # that of base 2, which mixed radix equals

    @pytest.mark.parametrize("argument", ["drop_rate"])  # no block has a shortcut for drop_path to act on
    def test_dropout_acts_in_training_only(self, subject: Subject, argument: str) -> None:
        super().test_dropout_acts_in_training_only(subject, argument)


class TestMobileNetV3(ModelContract):
    variant = "mobilenetv3_small_050_bft"
    # with untrained batch statistics the residual lets activations grow a thousandfold, and rounding too
    model_kwargs = {"bft_residual": "none"}  # noqa: RUF012
    global_pool = "timm's MobileNetV3 applies its last convolution after the pooling, to other channels"


class TestShuffleNetV2(ModelContract):
    variants = ("shufflenetv2_x0_5", "shufflenetv2_x1_25_bft")
    model_kwargs = {"widths": (32, 64, 128), "depths": (2, 3, 2), "num_features": 128}  # noqa: RUF012
    parameters = {"shufflenetv2_x0_5": 1_366_792}  # noqa: RUF012
    macs = {"shufflenetv2_x0_5": 40_476_448}  # noqa: RUF012


class TestButterfly(OpContract):
    op = butterfly
    custom_op = torch.ops.graftwork_butterfly.transform.default
    differentiable = (0, 1)

    @staticmethod
    def reference(x: Tensor, weight: Tensor, layout: list[int], backend: str = "auto") -> Tensor:
        flat = x.flatten(2) if x.dim() > 2 else x.unsqueeze(-1)
        y = apply_staged(flat, weight, layout)
        return y.view(x.shape[0], layout[4], *x.shape[2:])

    def samples(self, *, device: torch.device, dtype: torch.dtype) -> Mapping[str, tuple]:
        generator = torch.Generator().manual_seed(0)
        found = {}
        for name, inputs, outputs, size in (
            ("square", 8, 8, (3, 2)),
            ("wide, padded", 11, 24, (2, 2)),
            ("narrow, rows", 12, 6, ()),
        ):
            plan = structure(inputs, outputs)
            x = torch.randn(2, inputs, *size, generator=generator)
            weight = torch.randn(plan.weights, generator=generator) / 2
            found[name] = (x.to(device, dtype), weight.to(device, dtype), plan.layout)
        return found
