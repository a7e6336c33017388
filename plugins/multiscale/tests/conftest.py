"""Fixtures: generated shapes in COCO's format, and mmcv's operators from the working tree."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

OPERATORS = Path(__file__).resolve().parents[2] / "mmcv-ops" / "src" / "mmcv"


@pytest.fixture(scope="session")
def mmcv_operators() -> None:
    """Let mmdet be imported where graftwork-mmcv-ops, which is never editable, is not installed."""
    pytest.importorskip("mmdet", reason="mmdet is not installed")
    import mmcv

    if "mmcv._ext" not in sys.modules and find_spec("mmcv._ext") is None:
        mmcv.__path__.append(str(OPERATORS))


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve training and four validation images of coloured shapes."""
    from graftwork_multiscale.synthetic import write_shapes

    return write_shapes(tmp_path_factory.mktemp("shapes"), train=12, val=4)


@pytest.fixture(scope="module")
def quick_runner() -> Iterator[None]:
    """Spare every runner the question which compiler made it, which costs a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmengine.runner.runner.collect_env", dict)
        yield


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Small tensors are slower on several threads, above all on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
