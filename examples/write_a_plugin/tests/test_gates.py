"""The mathematics of the method: how it starts, how it learns, and the limit where it changes nothing."""

from __future__ import annotations

import pytest
import timm
import torch

from acme_rezero import Gate, gate_residuals

SMALL = {"img_size": 32, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 3}


@pytest.fixture
def base():
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", **SMALL).eval()


def test_gated_blocks_start_as_the_identity(base):
    x = torch.randn(2, 5, 24)
    for block in gate_residuals(base).blocks:
        assert torch.equal(block(x), x)


def test_at_the_start_only_the_gates_of_the_blocks_learn(base):
    gate_residuals(base)(torch.randn(2, 3, 32, 32)).square().sum().backward()
    for name, parameter in base.blocks.named_parameters():
        assert (parameter.grad.norm() > 0) == name.endswith("alpha"), name


def test_gates_at_one_leave_the_model_as_it_was(base):
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = base(images)
        assert torch.equal(gate_residuals(base, value=1.0)(images), expected)


def test_every_branch_has_a_gate_of_its_own(base):
    before = sum(parameter.numel() for parameter in base.parameters())
    gate_residuals(base)
    assert len([module for module in base.modules() if isinstance(module, Gate)]) == 2 * len(base.blocks)
    assert sum(parameter.numel() for parameter in base.parameters()) == before + 2 * len(base.blocks)


def test_gates_follow_the_type_of_the_model(base):
    gates = [module for module in gate_residuals(base.double()).modules() if isinstance(module, Gate)]
    assert {gate.alpha.dtype for gate in gates} == {torch.float64}


def test_model_without_transformer_blocks_is_refused():
    with pytest.raises(ValueError, match="ResNet has no blocks with ls1 and ls2"):
        gate_residuals(timm.create_model("test_resnet"))


def test_model_with_layer_scale_is_refused():
    scaled = timm.create_model("vit_tiny_patch16_224", init_values=1e-5, **SMALL)
    with pytest.raises(ValueError, match="already, by LayerScale"):
        gate_residuals(scaled)
