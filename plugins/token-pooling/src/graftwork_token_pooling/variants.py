"""The named variants: six base models, each with the schedules whose costs are published in the method card.

Standard library only: the plugin's description and the factories both read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_INCEPTION = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@dataclass(frozen=True)
class Base:
    """A model of timm and its weights.

    Args:
        label: How prose calls it.
        sizes: Constructor arguments.
        tag: Of the weights.
        paper: arXiv number of the weights' publication.
        origin: Where the weights come from.
        normalisation: Mean and deviation of the input.
    """

    label: str
    sizes: Mapping[str, int]
    tag: str
    paper: str
    origin: str
    normalisation: tuple[tuple[float, ...], tuple[float, ...]]


_WIDTHS = {"tiny": (192, 3), "small": (384, 6), "base": (768, 12)}


def _sizes(size: str) -> dict[str, int]:
    width, heads = _WIDTHS[size]
    return {"patch_size": 16, "embed_dim": width, "depth": 12, "num_heads": heads}


BASES: dict[str, Base] = {
    f"{family}_{size}_patch16_224": Base(
        f"{label}-{size.capitalize()}", _sizes(size), tag, paper, origin, normalisation
    )
    for family, label, tag, paper, origin, normalisation in (
        (
            "deit",
            "DeiT",
            "fb_in1k",
            "2012.12877",
            "https://github.com/facebookresearch/deit",
            _IMAGENET,
        ),
        (
            "vit",
            "ViT",
            "augreg_in21k_ft_in1k",
            "2106.10270",
            "https://github.com/google-research/vision_transformer",
            _INCEPTION,
        ),
    )
    for size in _WIDTHS
}
"""timm name to base model."""

SCHEDULES: dict[str, str] = {
    "r90": "90 % of the tokens left after each of blocks 3, 6 and 9",
    "r70": "70 % of the tokens left after each of blocks 3, 6 and 9",
    "r50": "50 % of the tokens left after each of blocks 3, 6 and 9",
    "r25": "25 % of the tokens left after each of blocks 3, 6 and 9",
    "d8": "8 tokens less after every block",
    "d13": "13 tokens less after every block",
    "d16": "16 tokens less after every block",
}
"""Schedule to what it does; the variant of a base is called ``<base>_tp_<schedule>``."""


def record(base: str) -> dict[str, object]:
    """Return timm's record of a base model's weights, which a pooled variant loads unchanged."""
    known = BASES[base]
    mean, std = known.normalisation
    return {
        "hf_hub_id": f"timm/{base}.{known.tag}",
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "fixed_input_size": True,
        "crop_pct": 0.9,
        "interpolation": "bicubic",
        "mean": mean,
        "std": std,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        "license": "apache-2.0",
        "origin_url": known.origin,
        "paper_ids": f"arXiv:{known.paper}",
    }
