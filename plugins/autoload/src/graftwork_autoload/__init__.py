"""Registers graftwork's timm variants as soon as ``timm.models`` is imported, in every Python process.

Python runs :func:`install` at start-up (through ``graftwork_autoload.pth``, and from Python 3.15 on through
``graftwork_autoload.start``). Nothing is imported then: a finder waits for the name ``timm.models``.
``GRAFTWORK_AUTOLOAD=0`` switches it off. Whatever goes wrong becomes a warning; ``import timm`` never breaks.
"""

from __future__ import annotations

import sys


class _Finder:
    """Lets the ordinary finders find ``timm.models`` and adds one step after its execution."""

    def find_spec(self, name, path=None, target=None):  # type: ignore[no-untyped-def]
        if name != "timm.models":
            return None
        sys.meta_path.remove(self)  # type: ignore[arg-type]
        from importlib.util import find_spec

        spec = find_spec(name)
        if spec is not None and spec.loader is not None and hasattr(spec.loader, "exec_module"):
            execute = spec.loader.exec_module

            def exec_module(module):  # type: ignore[no-untyped-def]
                execute(module)
                _register()

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _register() -> None:
    try:
        import graftwork.timm  # noqa: F401
    except Exception as error:
        import warnings

        warnings.warn(
            f"graftwork-autoload: no variant was registered: {type(error).__name__}: {error}. "
            "`graftwork doctor` says more; GRAFTWORK_AUTOLOAD=0 switches autoload off.",
            stacklevel=2,
        )


def install() -> None:
    """Wait for ``timm.models``, unless ``GRAFTWORK_AUTOLOAD=0``."""
    import os

    if os.environ.get("GRAFTWORK_AUTOLOAD", "1") == "0" or "timm.models" in sys.modules:
        return
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())  # type: ignore[arg-type]
