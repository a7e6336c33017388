"""Butterfly Transform: pointwise convolutions in O(n log n). Importing registers nothing.

Names are imported when they are first used, so that describing the plugin imports no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from graftwork_butterfly.dispatch import butterfly
    from graftwork_butterfly.layers import ButterflyConv1x1, ButterflyLinear
    from graftwork_butterfly.macs import Macs, count_macs
    from graftwork_butterfly.replace import Replacement, materialize, replace_pointwise
    from graftwork_butterfly.structure import Structure, count_paper_macs

__all__ = [
    "ButterflyConv1x1",
    "ButterflyLinear",
    "Macs",
    "Replacement",
    "Structure",
    "butterfly",
    "count_macs",
    "count_paper_macs",
    "materialize",
    "replace_pointwise",
]

_HOMES = {
    "ButterflyConv1x1": "layers",
    "ButterflyLinear": "layers",
    "Macs": "macs",
    "Replacement": "replace",
    "Structure": "structure",
    "butterfly": "dispatch",
    "count_macs": "macs",
    "count_paper_macs": "structure",
    "materialize": "replace",
    "replace_pointwise": "replace",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
