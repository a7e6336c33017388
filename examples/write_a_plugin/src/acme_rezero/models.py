"""The method as a timm model: DeiT with gated residual branches."""

from __future__ import annotations

from typing import Any

from timm.models import build_model_with_cfg
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn

from acme_rezero.gates import gate_residuals

__all__ = ["ReZeroVisionTransformer", "deit_tiny_patch16_224_rezero"]


class ReZeroVisionTransformer(VisionTransformer):  # type: ignore[misc]
    """timm's vision transformer, whose blocks start as the identity.

    Args:
        kwargs: As for ``timm.models.VisionTransformer``.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        gate_residuals(self)


def _create(variant: str, pretrained: bool, **kwargs: Any) -> ReZeroVisionTransformer:
    model: ReZeroVisionTransformer = build_model_with_cfg(
        ReZeroVisionTransformer,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": kwargs.pop("out_indices", 3), "feature_cls": "getter"},
        **kwargs,
    )
    return model


def deit_tiny_patch16_224_rezero(pretrained: bool = False, **kwargs: Any) -> ReZeroVisionTransformer:
    """DeiT-Ti with 24 gates."""
    model_args: dict[str, Any] = {"patch_size": 16, "embed_dim": 192, "depth": 12, "num_heads": 3}
    return _create("deit_tiny_patch16_224_rezero", pretrained, **{**model_args, **kwargs})
