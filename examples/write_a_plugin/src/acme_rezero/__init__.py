"""ReZero (arXiv 2003.04887) for timm's vision transformers.

Example:
    >>> import timm
    >>> from acme_rezero import gate_residuals
    >>> model = gate_residuals(timm.create_model("vit_small_patch16_224"))

Importing this package registers nothing and imports no framework; ``import graftwork.timm`` registers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from acme_rezero.gates import Gate, gate_residuals
    from acme_rezero.models import ReZeroVisionTransformer

__all__ = ["Gate", "ReZeroVisionTransformer", "gate_residuals"]

_HOMES = {"Gate": "gates", "ReZeroVisionTransformer": "models", "gate_residuals": "gates"}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"{__name__} has no {name!r}; it offers {', '.join(__all__)}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
