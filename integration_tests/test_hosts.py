"""The three hosts live in one environment, each with its own pins."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize(
    "code",
    [
        pytest.param("import timm; assert len(timm.list_models()) > 1000", marks=pytest.mark.timm),
        pytest.param(
            "import mmengine, mmcv, mmdet; assert mmcv.__version__ == '2.1.0' < mmdet.__version__",
            marks=pytest.mark.mmengine,
        ),
        pytest.param(
            "import nerfstudio.engine.trainer, nerfstudio.pipelines.base_pipeline",
            marks=pytest.mark.nerfstudio,
        ),
    ],
    ids=["timm", "mmdet", "nerfstudio"],
)
def test_host_imports_beside_the_others(code, fresh_python):
    fresh_python(code + "; import graftwork; graftwork.plugins()")
