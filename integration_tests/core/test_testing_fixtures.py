"""The kit's fixtures leave no traces, and loading the kit costs nothing."""

from __future__ import annotations

import os
import sys
from importlib import metadata

import pytest

from graftwork import ModelVariant, catalog, hookimpl
from graftwork.testing.isolation import preserved_catalogue, preserved_timm

HEAVY = "[name for name in ('torch', 'timm', 'numpy', 'mmengine', 'nerfstudio') if name in sys.modules]"


class Plugin:
    @hookimpl
    def graftwork_models(self) -> list[ModelVariant]:
        return [
            ModelVariant(
                name="fixture_toy",
                summary="A toy",
                target=f"{__name__}:unused",
                weights={"one": {"input_size": (3, 8, 8)}},
            )
        ]


def timm_knows(name: str) -> bool:
    from timm.models import _registry

    tables = [table for key, table in vars(_registry).items() if key.startswith(("_model", "_module"))]
    held = [key for table in tables if isinstance(table, dict | set) for key in table]
    held += [name for models in _registry._module_to_models.values() for name in models]
    return any(str(key).partition(".")[0] == name for key in held)


def test_pytest_plugin_is_registered_as_an_entry_point():
    (point,) = metadata.entry_points(group="pytest11", name="graftwork")
    assert point.value == "graftwork.testing.pytest_plugin"


@pytest.mark.parametrize("module", ["graftwork.testing", "graftwork.testing.pytest_plugin"])
def test_kit_imports_no_framework(fresh_python, module):
    assert fresh_python(f"import sys, {module}; print({HEAVY})").stdout.strip() == "[]"


def test_contract_is_imported_when_it_is_named(fresh_python):
    code = "import sys\nfrom graftwork.testing import PluginContract\nprint('torch' in sys.modules)"
    assert fresh_python(code).stdout.strip() == "False"
    code = "import graftwork.testing as t; print(set(t.__all__) <= set(dir(t)), *t.__all__)"
    listed, *contracts = fresh_python(code).stdout.split()
    assert listed == "True"
    assert {"ModelContract", "OpContract", "PluginContract"} <= set(contracts)


def test_unknown_contract_is_an_attribute_error():
    import graftwork.testing

    with pytest.raises(AttributeError, match="'ModleContract'; it offers BackendContract, ModelContract"):
        _ = graftwork.testing.ModleContract


def test_pytest_session_that_does_not_use_the_kit_stays_light(fresh_python, tmp_path):
    tmp_path.joinpath("test_other.py").write_text(f"import sys\ndef test_light(): assert not {HEAVY}\n")
    # other people's pytest plugins may import numpy and more
    code = "import pytest, sys; sys.exit(pytest.main(sys.argv[1:]))"
    words = ["-p", "graftwork.testing.pytest_plugin", "test_other.py"]
    assert "1 passed" in fresh_python(code, args=words, env={"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}).stdout


def test_fresh_python_takes_arguments_and_environment_but_no_settings(fresh_python, monkeypatch):
    monkeypatch.setenv("GRAFTWORK_PLUGINS", "inherited")
    code = "import os, sys; print(sys.argv[1:], os.environ.get('GRAFTWORK_PLUGINS'), os.environ['ANSWER'])"
    assert fresh_python(code, args=["a b"], env={"ANSWER": "42"}).stdout.strip() == "['a b'] None 42"
    chosen = fresh_python(code, env={"ANSWER": "1", "GRAFTWORK_PLUGINS": "spin"})
    assert chosen.stdout.split() == ["[]", "spin", "1"]


def test_fresh_python_runs_in_the_tests_own_folder(fresh_python, tmp_path):
    tmp_path.joinpath("only_file").touch()
    assert fresh_python("import os; print(os.listdir())").stdout.strip() == "['only_file']"


def test_fresh_python_fails_on_an_unexpected_exit_code(fresh_python):
    with pytest.raises(pytest.fail.Exception, match=r"(?s)exited with 3, expected 0.*reason on stderr"):
        fresh_python("import sys; print('reason on stderr', file=sys.stderr); sys.exit(3)")
    assert fresh_python("raise SystemExit(3)", returncode=3).returncode == 3
    assert fresh_python("raise SystemExit(3)", returncode=None).returncode == 3


def test_isolated_plugins_start_empty_and_take_registrations(isolated_plugins):
    assert isolated_plugins is catalog
    assert os.environ["GRAFTWORK_PLUGINS"] == ""
    assert not isolated_plugins.plugins().plugins
    isolated_plugins.register(Plugin(), "fixture")
    assert list(isolated_plugins.plugins().models) == ["fixture_toy"]


def test_isolated_plugins_are_forgotten(isolated_plugins):
    with preserved_catalogue():
        isolated_plugins.register(Plugin(), "fixture")
        assert "fixture_toy" in isolated_plugins.plugins().models
    assert not isolated_plugins.plugins().plugins


def test_catalogue_is_the_same_object_afterwards(monkeypatch):
    monkeypatch.setenv("GRAFTWORK_PLUGINS", "")
    before = catalog.plugins(reload=True)
    with preserved_catalogue():
        assert catalog.plugins() is not before
    assert catalog.plugins() is before


def test_timm_registry_is_put_back(isolated_plugins):
    import timm

    import graftwork.timm

    models, modules = timm.list_models(), timm.list_modules()
    with preserved_timm():
        isolated_plugins.register(Plugin(), "fixture")
        assert graftwork.timm.register_all() == ["fixture_toy"]
        assert timm.is_model("fixture_toy")
        assert "graftwork.timm.fixture" in sys.modules
    assert not timm_knows("fixture_toy")
    assert (timm.list_models(), timm.list_modules()) == (models, modules)
    assert "fixture_toy" not in graftwork.timm.registered()
    assert "graftwork.timm.fixture" not in sys.modules
    # the adapter has not kept a memory of it either: the same plugin can be registered anew
    with preserved_timm():
        assert graftwork.timm.register_all() == ["fixture_toy"]


def test_timm_first_imported_inside_keeps_its_own_models(fresh_python):
    code = """
import sys
from graftwork import ModelVariant, catalog, hookimpl
from graftwork.testing.isolation import preserved_timm

class Plugin:
    @hookimpl
    def graftwork_models(self):
        weights = {"t": {"input_size": (3, 8, 8)}}
        return [ModelVariant(name="toy", summary="A toy", target="a:b", weights=weights)]

catalog.register(Plugin(), "fixture")
with preserved_timm():
    import timm, graftwork.timm
    assert timm.is_model("toy") and "fixture" in timm.list_modules()
assert not timm.is_model("toy") and "fixture" not in timm.list_modules()
assert not timm.list_models("toy*", include_tags=True) and timm.is_model("resnet18")
assert "graftwork.timm" not in sys.modules and not hasattr(sys.modules["graftwork"], "timm")
import graftwork.timm
assert timm.is_model("toy")
print("as it was")
"""
    assert fresh_python(code, env={"GRAFTWORK_PLUGINS": ""}).stdout.strip() == "as it was"
