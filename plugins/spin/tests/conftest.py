from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch
from torch import Tensor, nn


def small_convmixer(depth: int = 6) -> nn.Module:
    from timm.models.convmixer import ConvMixer

    return ConvMixer(16, depth, kernel_size=3, patch_size=7, num_classes=5)


def build_vit(depth: int = 6, **kwargs) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    sizes = {"img_size": 28, "patch_size": 7, "embed_dim": 32, "num_heads": 2, "num_classes": 5}
    return VisionTransformer(depth=depth, **sizes, **kwargs)


def small_convnext(depth: int = 6) -> nn.Module:
    from graftwork_spin import SpinConvNeXt

    return SpinConvNeXt(16, depth, patch_size=7, kernel_size=3, num_classes=5, ls_init_value=0.5, rate=1)


PLAIN: dict[str, Callable[..., nn.Module]] = {
    "convmixer": small_convmixer,
    "vit": build_vit,
    "convnext": small_convnext,
}


@pytest.fixture(params=list(PLAIN))
def plain(request) -> nn.Module:
    """A small seeded network of each family that shares nothing, with running statistics of its own."""
    torch.manual_seed(0)
    model = PLAIN[request.param]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.5, 1.5)
    return model.eval()


@pytest.fixture
def small_vit() -> Callable[..., nn.Module]:
    return build_vit


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 3, 28, 28, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)  # the networks here are too small to be worth waking a second thread


@pytest.fixture(scope="session", autouse=True)
def registered() -> None:
    import graftwork.timm

    graftwork.timm.register_all()
    assert timm.is_model("convmixer_spin")
