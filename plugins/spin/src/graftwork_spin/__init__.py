"""SPIN: sharing the parameters of isotropic networks (arXiv 2207.10237), for timm.

Example:
    >>> import timm
    >>> from graftwork_spin import share
    >>> model = share(timm.create_model("deit_tiny_patch16_224"), rate=2)

Importing this package registers nothing with timm; ``import graftwork.timm`` does.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graftwork_spin.analysis import cka_matrix, layer_outputs, linear_cka, plot_cka
    from graftwork_spin.checkpoint import CheckpointError, load_released
    from graftwork_spin.convmixer import SpinConvMixer
    from graftwork_spin.convnext import SpinConvNeXt
    from graftwork_spin.fusion import collapse, fuse
    from graftwork_spin.mapping import sharing_mapping
    from graftwork_spin.sharing import share
    from graftwork_spin.vit import SpinVisionTransformer, SpinVisionTransformerDistilled

_HOME = {
    "CheckpointError": "checkpoint",
    "SpinConvMixer": "convmixer",
    "SpinConvNeXt": "convnext",
    "SpinVisionTransformer": "vit",
    "SpinVisionTransformerDistilled": "vit",
    "cka_matrix": "analysis",
    "collapse": "fusion",
    "fuse": "fusion",
    "layer_outputs": "analysis",
    "linear_cka": "analysis",
    "load_released": "checkpoint",
    "plot_cka": "analysis",
    "share": "sharing",
    "sharing_mapping": "mapping",
}

__all__ = [
    "CheckpointError",
    "SpinConvMixer",
    "SpinConvNeXt",
    "SpinVisionTransformer",
    "SpinVisionTransformerDistilled",
    "cka_matrix",
    "collapse",
    "fuse",
    "layer_outputs",
    "linear_cka",
    "load_released",
    "plot_cka",
    "share",
    "sharing_mapping",
]


def __getattr__(name: str) -> Any:
    # Imported on first use: the description of the plugin, a module of this package, must not bring torch in.
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
