"""What this plugin offers, as descriptions only."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from graftwork import Component, ModelVariant, Paper, hookimpl

PAPER = Paper(
    title="LCS: Learning Compressible Subspaces for Adaptive Network Compression at Inference Time",
    url="https://arxiv.org/abs/2110.04252",
    year=2021,
)

_REGIMES = {"sparse": "sparsity from 0 to 97.5 %", "width": "width from 1/4 to 1", "quant": "3 to 8 bits"}
_SUBSPACES = {"line": "two sets of weights", "point": "one set of weights"}
_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
_CIFAR = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.247, 0.2435, 0.2616)}


def untrained(network: str) -> dict[str, Any]:
    """Return timm's record of a network without weights."""
    if network == "cpreresnet20":
        shape: dict[str, Any] = {"input_size": (3, 32, 32), "pool_size": (8, 8), "num_classes": 10}
        shape |= {"crop_pct": 1.0, **_CIFAR}
    else:
        pool = (7, 7) if network == "resnet18" else (14, 14)
        shape = {"input_size": (3, 224, 224), "pool_size": pool, "num_classes": 1000}
        shape |= {"crop_pct": 0.875, **_IMAGENET}
    return {
        **shape,
        "interpolation": "bilinear",
        "first_conv": "model.stem.0",
        "classifier": "model.head",
        "license": "apache-2.0",
    }


@hookimpl
def graftwork_models() -> Iterable[ModelVariant]:
    """Offer the paper's networks on every subspace."""
    titles = {"cpreresnet20": "cPreResNet-20", "resnet18": "ResNet-18", "vgg19": "VGG-19"}
    return [
        ModelVariant(
            name=f"{network}_lcs_{regime}_{subspace}",
            summary=f"{title}, {what} at run time, {how}",
            paper=PAPER,
            target=f"graftwork_subspaces.models:{network}_lcs_{regime}_{subspace}",
            base={"resnet18": "resnet18", "vgg19": "vgg19_bn"}.get(network),
            weights={"untrained": untrained(network)},
        )
        for network, title in titles.items()
        for regime, what in _REGIMES.items()
        for subspace, how in _SUBSPACES.items()
    ]


@hookimpl
def graftwork_components() -> Iterable[Component]:
    """Offer the hook that trains a compressible network under mmengine."""
    return [
        Component(
            name="LCSHook",
            kind="hook",
            summary="Draws the compression levels of every training step and adds the regulariser",
            paper=PAPER,
            target="graftwork_subspaces.hook:LCSHook",
        )
    ]
