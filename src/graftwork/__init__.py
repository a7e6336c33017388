"""Published vision methods as plugins for timm, MMDetection and nerfstudio.

This module imports no framework. A plugin needs ``hookimpl`` and the description classes; a user needs
``import graftwork.timm`` or nothing at all.
"""

from __future__ import annotations

from graftwork.catalog import Catalog, Entry, Problem, load, plugins, register
from graftwork.hookspecs import hookimpl
from graftwork.spec import Component, ModelVariant, Paper, RenderBackend, SceneMethod

__version__ = "1.0.0"

__all__ = [
    "Catalog",
    "Component",
    "Entry",
    "ModelVariant",
    "Paper",
    "Problem",
    "RenderBackend",
    "SceneMethod",
    "hookimpl",
    "load",
    "plugins",
    "register",
]
