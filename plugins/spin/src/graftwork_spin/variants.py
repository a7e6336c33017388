"""The table of timm variants. Standard library only, so that listing them imports no framework.

Names follow ``<base>_spin<rate>``; rate 1 is the unshared network of the same block, for comparison.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
ORIGIN = {
    "num_classes": 1000,
    "input_size": (3, 224, 224),
    "interpolation": "bicubic",
    "license": "apache-2.0",
    "paper_ids": "arXiv:2207.10237",
    "paper_name": "SPIN: An Empirical Evaluation on Sharing Parameters of Isotropic Networks",
    **IMAGENET,
}
CFGS: dict[str, dict[str, Any]] = {
    # The paper evaluates on the whole resized image, hence no crop.
    "convmixer": {**ORIGIN, "crop_pct": 1.0, "first_conv": "stem.0", "classifier": "head"},
    "deit": {
        **ORIGIN,
        "crop_pct": 0.9,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        "fixed_input_size": True,
    },
    "convnext": {
        **ORIGIN,
        "crop_pct": 0.875,
        "pool_size": (14, 14),
        "first_conv": "stem.0",
        "classifier": "head",
    },
}


@dataclass(frozen=True)
class Variant:
    """One timm variant.

    Args:
        name: timm name.
        family: Key of ``CFGS``.
        summary: One line.
        base: timm name of the unshared network, where timm has it.
        args: Arguments of the family's class.
    """

    name: str
    family: str
    summary: str
    base: str | None
    args: dict[str, Any]


@dataclass(frozen=True)
class _Base:
    name: str
    family: str
    title: str
    rates: tuple[int, ...]
    args: dict[str, Any]
    in_timm: bool = False


def _convmixer(dim: int, depth: int, rates: tuple[int, ...]) -> _Base:
    args = {"dim": dim, "depth": depth, "kernel_size": 3, "patch_size": 14}
    name = f"convmixer_{dim}_{depth}_ks3_p14"
    return _Base(name, "convmixer", f"ConvMixer-{dim}/{depth}, patch 14, kernel 3", rates, args)


def _timm_convmixer(
    name: str, dim: int, depth: int, kernel: int, patch: int, act: str, rates: tuple[int, ...]
) -> _Base:
    # timm's weights were trained without the second residual, and these variants are there to fuse them.
    args = {"dim": dim, "depth": depth, "kernel_size": kernel, "patch_size": patch, "act_layer": act}
    args["pw_residual"] = False
    title = f"ConvMixer-{dim}/{depth}, patch {patch}, kernel {kernel}"
    return _Base(name, "convmixer", title, rates, args, in_timm=True)


def _deit(size: str, dim: int, heads: int) -> _Base:
    args = {"patch_size": 16, "embed_dim": dim, "depth": 12, "num_heads": heads}
    return _Base(f"deit_{size}_patch16_224", "deit", f"DeiT-{size}", (2, 3, 4, 6, 12), args, in_timm=True)


BASES = (
    _convmixer(768, 32, (1, 2, 4, 8, 16, 32)),
    _convmixer(768, 16, (1, 2, 4, 8, 16)),
    _convmixer(576, 32, (1, 2, 4, 8, 16, 32)),
    _convmixer(512, 16, (1, 2, 4, 8, 16)),
    _timm_convmixer("convmixer_768_32", 768, 32, 7, 7, "relu", (2, 4)),
    _timm_convmixer("convmixer_1024_20_ks9_p14", 1024, 20, 9, 14, "gelu", (2, 4, 5, 10)),
    _timm_convmixer("convmixer_1536_20", 1536, 20, 9, 7, "gelu", (2, 4, 5, 10)),
    _deit("tiny", 192, 3),
    _deit("small", 384, 6),
    _deit("base", 768, 12),
    _Base(
        "convnext_iso_384_18",
        "convnext",
        "isotropic ConvNeXt-384/18, patch 16",
        (1, 2),
        {"dim": 384, "depth": 18, "patch_size": 16},
    ),
)


def _variants() -> tuple[Variant, ...]:
    found = []
    for base in BASES:
        for rate in base.rates:
            what = {"convmixer": "pointwise weights", "convnext": "convolutions"}.get(base.family, "weights")
            if rate == 1:
                summary = f"{base.title}, nothing shared"
            elif rate == base.args["depth"]:
                summary = f"{base.title}, one set of {what} for all layers"
            else:
                summary = f"{base.title}, {what} shared by {rate} layers"
            timm_base = base.name if base.in_timm else None
            args = {**base.args, "rate": rate}
            found.append(Variant(f"{base.name}_spin{rate}", base.family, summary, timm_base, args))
    headline = next(variant for variant in found if variant.name == "convmixer_768_32_ks3_p14_spin2")
    return (Variant("convmixer_spin", "convmixer", headline.summary, None, headline.args), *found)


VARIANTS = _variants()
