"""What the plugin offers: descriptions only."""

from __future__ import annotations

from collections.abc import Iterable

from graftwork import ModelVariant, Paper, hookimpl

PAPER = Paper(
    title="Butterfly Transform: An Efficient FFT Based Neural Architecture Design",
    url="https://arxiv.org/abs/1906.02256",
    year=2019,
    bibtex="""@inproceedings{vahid2020butterfly,
  title     = {Butterfly Transform: An Efficient {FFT} Based Neural Architecture Design},
  author    = {Alizadeh Vahid, Keivan and Prabhu, Anish and Farhadi, Ali and Rastegari, Mohammad},
  booktitle = {Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year      = {2020}
}""",
)
SHUFFLENET = Paper(
    title="ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design",
    url="https://arxiv.org/abs/1807.11164",
    year=2018,
)


def _cfg(first_conv: str, classifier: str, interpolation: str) -> dict[str, object]:
    return {
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.875,
        "interpolation": interpolation,
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "first_conv": first_conv,
        "classifier": classifier,
        "license": "apache-2.0",
        "paper_ids": "arXiv:1906.02256",
    }


_WIDTHS = {
    "mobilenetv1_100_bft": ("MobileNetV1 1.0", "mobilenetv1_100"),
    "mobilenetv1_200_bft": ("MobileNetV1 2.0", "mobilenetv1_100"),
    "mobilenetv3_small_050_bft": ("MobileNetV3-Small 0.5", "mobilenetv3_small_050"),
    "mobilenetv3_small_075_bft": ("MobileNetV3-Small 0.75", "mobilenetv3_small_075"),
    "mobilenetv3_small_100_bft": ("MobileNetV3-Small 1.0", "mobilenetv3_small_100"),
}
RECORDS = {
    **dict.fromkeys(_WIDTHS, _cfg("conv_stem", "classifier", "bicubic")),
    "shufflenetv2_x0_5": {**_cfg("conv1.0", "fc", "bilinear"), "paper_ids": "arXiv:1807.11164"},
    "shufflenetv2_x1_25_bft": _cfg("conv1.0", "fc", "bilinear"),
}
"""Fields of timm's ``PretrainedCfg`` by variant. There are no weights; they describe the input."""


@hookimpl
def graftwork_models() -> Iterable[ModelVariant]:
    """Describe the timm variants."""
    for name, (network, base) in _WIDTHS.items():
        yield ModelVariant(
            name=name,
            summary=f"{network} with butterflies for its pointwise convolutions",
            paper=PAPER,
            target=f"graftwork_butterfly.models:{name}",
            base=base,
            weights={"untrained": RECORDS[name]},
        )
    yield ModelVariant(
        name="shufflenetv2_x0_5",
        summary="ShuffleNetV2 0.5, dense, the base of the butterfly variant; takes torchvision's weights",
        paper=SHUFFLENET,
        target="graftwork_butterfly.shufflenetv2:shufflenetv2_x0_5",
        weights={"untrained": RECORDS["shufflenetv2_x0_5"]},
    )
    yield ModelVariant(
        name="shufflenetv2_x1_25_bft",
        summary="ShuffleNetV2 1.25 with butterflies for its pointwise convolutions",
        paper=PAPER,
        target="graftwork_butterfly.shufflenetv2:shufflenetv2_x1_25_bft",
        base="shufflenetv2_x0_5",
        weights={"untrained": RECORDS["shufflenetv2_x1_25_bft"]},
    )
