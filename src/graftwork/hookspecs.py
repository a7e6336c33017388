"""The four questions the core asks a plugin. An implementation answers with plain descriptions.

Example:
    >>> from graftwork import ModelVariant, hookimpl
    >>> @hookimpl
    ... def graftwork_models():
    ...     return [ModelVariant(name="my_net", summary="A net", target="my_package.models:my_net")]
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from graftwork.spec import Component, ModelVariant, RenderBackend, SceneMethod

PROJECT = "graftwork"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def graftwork_models() -> Iterable[ModelVariant]:  # type: ignore[empty-body]
    """Models to register with timm."""


@hookspec
def graftwork_components() -> Iterable[Component]:  # type: ignore[empty-body]
    """Samplers, transforms, datasets, hooks and loops to register with mmengine."""


@hookspec
def graftwork_scenes() -> Iterable[SceneMethod]:  # type: ignore[empty-body]
    """Methods to offer to nerfstudio."""


@hookspec
def graftwork_render_backends() -> Iterable[RenderBackend]:  # type: ignore[empty-body]
    """Implementations of a scene's renderers."""
