"""Ready configurations for MMDetection: Mask R-CNN with single-scale and multi-scale sampling.

In a text config::

    _base_ = __import__("graftwork_multiscale").config_path("mask_rcnn_r50_fpn_vbs")

in a config of mmengine's Python style::

    with read_base():
        from graftwork_multiscale.configs.lazy.mask_rcnn_r50_fpn_vbs import *

and on the command line ``python -m graftwork_multiscale configs`` lists them with their paths.
"""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).resolve().parent


def config_names() -> list[str]:
    """Return the names of all shipped configurations."""
    return sorted(path.stem for path in FOLDER.glob("mask_rcnn_*.py"))


def config_path(name: str) -> str:
    """Return the path of a shipped configuration.

    Args:
        name: Such as ``"mask_rcnn_r50_fpn_vbs"``.

    Raises:
        FileNotFoundError: There is none of that name; the message lists them.
    """
    path = FOLDER / f"{name.removesuffix('.py')}.py"
    if not path.is_file():
        raise FileNotFoundError(f"no configuration {name!r}; there are {', '.join(config_names())}.")
    return str(path)
