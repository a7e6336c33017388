"""Makes ``mmcv._ext`` of the working tree importable: the distribution is never installed editable."""

from __future__ import annotations

import sys
from pathlib import Path

import mmcv

if "mmcv._ext" not in sys.modules:
    mmcv.__path__.insert(0, str(Path(__file__).resolve().parents[1] / "src" / "mmcv"))
