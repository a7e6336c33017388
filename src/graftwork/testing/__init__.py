"""Conformance kit: the checks that graftwork's own plugins pass, for anybody's plugin to inherit.

Example:
    >>> from graftwork.testing import ModelContract  # doctest: +SKIP
    >>> class TestConvMixerSpin(ModelContract):  # doctest: +SKIP
    ...     variant = "convmixer_spin"
    ...     input_size = (3, 64, 64)

Importing this module imports no framework; a contract imports what it tests when it is first named.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from graftwork.testing.backend import BackendContract as BackendContract
    from graftwork.testing.model import ModelContract as ModelContract
    from graftwork.testing.op import OpContract as OpContract
    from graftwork.testing.plugin import PluginContract as PluginContract
    from graftwork.testing.sampler import SamplerContract as SamplerContract

_HOMES = {
    "BackendContract": "graftwork.testing.backend",
    "ModelContract": "graftwork.testing.model",
    "OpContract": "graftwork.testing.op",
    "PluginContract": "graftwork.testing.plugin",
    "SamplerContract": "graftwork.testing.sampler",
}

__all__ = ["BackendContract", "ModelContract", "OpContract", "PluginContract", "SamplerContract"]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"graftwork.testing has no {name!r}; it offers {', '.join(__all__)}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
