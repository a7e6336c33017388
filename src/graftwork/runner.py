"""``graftwork run``: an unmodified script, with every installed variant registered first."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path


def register_everything() -> None:
    """Register the catalogue with the frameworks whose registries need an import of ours."""
    if find_spec("timm") is not None:
        import graftwork.timm  # noqa: F401


def run_script(script: str, arguments: Sequence[str]) -> int:
    """Run a file as ``__main__``, as ``python SCRIPT ...`` does.

    Args:
        script: Path of the file.
        arguments: What it finds in ``sys.argv[1:]``.

    Returns:
        0; the script's own ``sys.exit`` passes through.
    """
    path = Path(script)
    if not path.is_file():
        print(
            f"graftwork run: there is no file {script!r}; for a module write `graftwork run -m`.",
            file=sys.stderr,
        )
        return 2
    sys.argv = [script, *arguments]
    sys.path[0] = str(path.resolve().parent)
    register_everything()
    runpy.run_path(script, run_name="__main__")
    return 0


def run_module(module: str, arguments: Sequence[str]) -> int:
    """Run a module as ``__main__``, as ``python -m MODULE ...`` does.

    Args:
        module: Dotted name.
        arguments: What it finds in ``sys.argv[1:]``.

    Returns:
        0; the module's own ``sys.exit`` passes through.
    """
    sys.path[0] = str(Path.cwd())
    try:
        missing = find_spec(module) is None
    except ModuleNotFoundError:
        missing = True
    if missing:
        print(f"graftwork run: no module named {module!r}.", file=sys.stderr)
        return 2
    sys.argv = [module, *arguments]
    register_everything()
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    return 0
