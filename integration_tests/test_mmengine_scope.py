"""Scoped names in a fresh process: no import of ours, mmdet's scope, the dotted path without the core."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from importlib.util import find_spec
from textwrap import dedent

import pytest

Fresh = Callable[..., subprocess.CompletedProcess[str]]

pytestmark = pytest.mark.mmengine
if find_spec("mmengine") is None or find_spec("graftwork_multiscale") is None:
    pytest.skip("needs mmengine and graftwork-multiscale", allow_module_level=True)

OPTIONS = "base_size=64, min_size=32, max_size=96, sampler=range(50), batch_size=4"


def test_every_component_is_built_by_its_scoped_name(fresh_python: Fresh) -> None:
    done = fresh_python(
        dedent(f"""
        import json, sys
        from mmengine.registry import DATA_SAMPLERS, DATASETS, HOOKS, LOOPS, TRANSFORMS
        sampler = DATA_SAMPLERS.build(dict(type='graftwork.MultiScaleBatchSampler', {OPTIONS}))
        found = [type(sampler).__module__, len(sampler) == len(list(sampler))]
        found += [HOOKS.build(dict(type='graftwork.MultiScaleHook')).priority]
        found += [LOOPS.get('graftwork.MultiScaleTrainLoop').__name__]
        found += [DATASETS.get('graftwork.MultiScaleDatasetWrapper').__name__]
        found += [repr(TRANSFORMS.build(dict(type='graftwork.ResizeToSampledScale', keep_ratio=True)))]
        print(json.dumps(found))
        """)
    )
    assert json.loads(done.stdout.splitlines()[-1]) == [
        "graftwork_multiscale.sampler",
        True,
        "NORMAL",
        "MultiScaleTrainLoop",
        "MultiScaleDatasetWrapper",
        "ResizeToSampledScale(type='mmdet.Resize', keep_ratio=True)",
    ]


def test_the_dotted_path_needs_no_scope_and_no_catalogue(fresh_python: Fresh) -> None:
    done = fresh_python(
        dedent(f"""
        import sys
        from mmengine.registry import DATA_SAMPLERS, HOOKS
        sampler = DATA_SAMPLERS.build(dict(type='graftwork_multiscale.MultiScaleBatchSampler', {OPTIONS}))
        HOOKS.build(dict(type='graftwork_multiscale.MultiScaleHook'))
        print(len(sampler), 'graftwork.registry' in sys.modules, 'graftwork.mmengine' in sys.modules)
        """)
    )
    assert done.stdout.split()[1:] == ["False", "False"]


def test_a_child_scope_reaches_it_too(fresh_python: Fresh) -> None:
    if find_spec("mmdet") is None:
        pytest.skip("mmdet is not installed")
    done = fresh_python(
        dedent("""
        from mmengine.registry import DefaultScope
        from mmdet.registry import HOOKS
        DefaultScope.get_instance('test', scope_name='mmdet')
        print(HOOKS.get('graftwork.MultiScaleHook').__name__)
        """)
    )
    assert done.stdout.split()[-1] == "MultiScaleHook"


def test_a_blocked_plugin_is_named(fresh_python: Fresh) -> None:
    done = fresh_python(
        "from mmengine.registry import HOOKS; HOOKS.build(dict(type='graftwork.MultiScaleHook'))",
        env={"GRAFTWORK_PLUGINS": "-multiscale"},
        returncode=1,
    )
    assert "plugin 'multiscale' is blocked by GRAFTWORK_PLUGINS" in done.stderr


def test_doctor_covers_the_components(fresh_python: Fresh) -> None:
    done = fresh_python(
        "import sys; from graftwork.cli import main; sys.exit(main(['doctor', 'multiscale']))",
        returncode=None,
    )
    assert "usable in configs: graftwork.MultiScaleBatchSampler" in done.stdout
