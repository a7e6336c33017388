"""What this package tells graftwork. It imports no framework, so that `graftwork list` stays instant."""

from __future__ import annotations

from graftwork import ModelVariant, Paper, hookimpl

REZERO = Paper(
    title="ReZero is All You Need: Fast Convergence at Large Depth",
    url="https://arxiv.org/abs/2003.04887",
    year=2020,
)

INPUT = {
    "input_size": (3, 224, 224),
    "fixed_input_size": True,
    "crop_pct": 0.9,
    "interpolation": "bicubic",
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "num_classes": 1000,
    "first_conv": "patch_embed.proj",
    "classifier": "head",
}


@hookimpl
def graftwork_models() -> list[ModelVariant]:
    """Offer the timm models of this package. The tag describes the input of an untrained model."""
    return [
        ModelVariant(
            name="deit_tiny_patch16_224_rezero",
            summary="DeiT-Ti whose residual branches start switched off",
            paper=REZERO,
            target="acme_rezero.models:deit_tiny_patch16_224_rezero",
            base="deit_tiny_patch16_224",
            weights={"untrained": INPUT},
        )
    ]
