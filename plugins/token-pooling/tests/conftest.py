"""Small models and inputs that the tests share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from timm.layers import Attention
from timm.models import VisionTransformer
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import ResPostBlock
from torch import Tensor

SIZES: dict[str, Any] = {
    "img_size": 32,
    "patch_size": 4,
    "embed_dim": 32,
    "depth": 4,
    "num_heads": 2,
    "num_classes": 10,
}


def tiny_vit(kind: type[VisionTransformer] = VisionTransformer, **options: Any) -> VisionTransformer:
    """Build four blocks on an 8 x 8 grid, with weights large enough for attention to have a preference."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = kind(**{**SIZES, **options})
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


class GatedAttention(Attention):
    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs, gated=True)


def rich_vit() -> VisionTransformer:
    """LayerScale, query and key norm, scaled norms, registers, pre-norm, drop path, and no bias."""
    return tiny_vit(
        init_values=0.5,
        qk_norm=True,
        scale_attn_norm=True,
        scale_mlp_norm=True,
        reg_tokens=3,
        pre_norm=True,
        no_embed_class=True,
        drop_path_rate=0.1,
        qkv_bias=False,
    )


KINDS = {
    "plain": tiny_vit,
    "rich": rich_vit,
    "distilled": lambda: tiny_vit(VisionTransformerDistilled),
    "gated": lambda: tiny_vit(attn_layer=GatedAttention),
    "post-norm": lambda: tiny_vit(block_fn=ResPostBlock),
    "average": lambda: tiny_vit(class_token=False, global_pool="avg"),
    "average with class token": lambda: tiny_vit(global_pool="avg"),
    "average over everything": lambda: tiny_vit(global_pool="avg", pool_include_prefix=True),
    "maximum": lambda: tiny_vit(class_token=False, global_pool="max"),
    "attention head": lambda: tiny_vit(class_token=False, global_pool="map"),
    "dynamic": lambda: tiny_vit(dynamic_img_size=True),
    "no positions": lambda: tiny_vit(pos_embed="none"),
}


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # the models here are too small to be worth waking a second thread


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture
def make_vit() -> Callable[..., VisionTransformer]:
    return tiny_vit


@pytest.fixture
def kinds() -> dict[str, Callable[[], VisionTransformer]]:
    return KINDS


@pytest.fixture(params=list(KINDS))
def base(request: pytest.FixtureRequest) -> VisionTransformer:
    """Every kind of vision transformer."""
    return KINDS[request.param]()


@pytest.fixture
def vit() -> VisionTransformer:
    return tiny_vit()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 32, 32)
