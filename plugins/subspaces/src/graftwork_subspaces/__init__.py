"""Learning compressible subspaces: one network, any compression level at run time.

Importing this package registers nothing with timm or mmengine; ``import graftwork.timm`` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from graftwork_subspaces.int8 import Int8Unavailable
from graftwork_subspaces.levels import LevelError, LevelMap
from graftwork_subspaces.net import CompressibleNet
from graftwork_subspaces.propagate import UnsupportedGraph
from graftwork_subspaces.samplers import BiasedEndpoints, Discrete, Fixed, Sandwich, Uniform
from graftwork_subspaces.settings import CheckpointMismatch, Settings
from graftwork_subspaces.training import StepLosses, calibrate, learning_rate, loss_step, step_levels
from graftwork_subspaces.wrap import wrap

if TYPE_CHECKING:
    from graftwork_subspaces.hook import LCSHook as LCSHook

__all__ = [
    "BiasedEndpoints",
    "CheckpointMismatch",
    "CompressibleNet",
    "Discrete",
    "Fixed",
    "Int8Unavailable",
    "LevelError",
    "LevelMap",
    "Sandwich",
    "Settings",
    "StepLosses",
    "Uniform",
    "UnsupportedGraph",
    "calibrate",
    "learning_rate",
    "loss_step",
    "step_levels",
    "wrap",
]


def __getattr__(name: str) -> object:
    if name == "LCSHook":  # needs mmengine, which everything else does not
        from graftwork_subspaces.hook import LCSHook

        return LCSHook
    raise AttributeError(f"graftwork_subspaces has no {name!r}")
