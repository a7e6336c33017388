"""The mmengine adapter: scoped names from the catalogue, errors with their cause, safe checkpoints."""

from __future__ import annotations

import importlib
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from graftwork import Component, hookimpl

pytest.importorskip("mmengine", reason="mmengine is not installed")
pytestmark = pytest.mark.mmengine


@pytest.fixture
def adapter(isolated_plugins: ModuleType) -> Iterator[ModuleType]:
    """The adapter without what other tests registered, and as it was afterwards."""
    import graftwork.mmengine as module
    from graftwork.registry import REGISTRIES

    saved = {kind: dict(registry._module_dict) for kind, registry in REGISTRIES.items()}
    tables = dict(module._registered), dict(module._problems)
    for registry in REGISTRIES.values():
        registry._module_dict.clear()
    module._registered.clear()
    module._problems.clear()
    yield module
    for kind, registry in REGISTRIES.items():
        registry._module_dict.clear()
        registry._module_dict.update(saved[kind])
    module._registered.update(tables[0])
    module._problems.update(tables[1])


def plugin(*components: Component) -> SimpleNamespace:
    return SimpleNamespace(graftwork_components=hookimpl(specname="graftwork_components")(lambda: components))


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the path for a plugin's code; what is imported from it is forgotten."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    (tmp_path / "toy_parts.py").write_text(
        "class ToySampler:\n"
        "    def __init__(self, dataset, seed=None, step=1):\n"
        "        self.dataset, self.seed, self.step = dataset, seed, step\n"
        "class ToyHook: ...\n"
    )
    (tmp_path / "broken_parts.py").write_text("import package_that_is_not_there\n")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name in ("toy_parts", "broken_parts"):
            del sys.modules[name]


TOY = Component(name="ToySampler", summary="a toy", kind="sampler", target="toy_parts:ToySampler")
TOY_HOOK = Component(name="ToyHook", summary="a toy", kind="hook", target="toy_parts:ToyHook")
BROKEN = Component(name="BrokenSampler", summary="broken", kind="sampler", target="broken_parts:Broken")


def test_a_component_is_built_by_its_scoped_name_from_root_and_child_scopes(
    adapter: ModuleType, isolated_plugins: ModuleType, code: Path
) -> None:
    from mmengine.registry import DATA_SAMPLERS, DefaultScope, Registry

    isolated_plugins.register(plugin(TOY), "toys")
    child = DATA_SAMPLERS.children.get("toyscope") or Registry(
        "data sampler", parent=DATA_SAMPLERS, scope="toyscope"
    )
    for registry in (DATA_SAMPLERS, child):
        built = registry.build(
            {"type": "graftwork.ToySampler", "step": 3}, default_args={"dataset": [1], "seed": 7}
        )
        assert (type(built).__module__, built.step, built.seed) == ("toy_parts", 3, 7)
    with DefaultScope.overwrite_default_scope("toyscope"):
        assert (
            type(DATA_SAMPLERS.build({"type": "graftwork.ToySampler", "dataset": []})).__name__
            == "ToySampler"
        )


def test_code_is_imported_when_it_is_first_asked_for(
    adapter: ModuleType, isolated_plugins: ModuleType, code: Path
) -> None:
    from mmengine.registry import DATA_SAMPLERS, HOOKS

    isolated_plugins.register(plugin(TOY, TOY_HOOK, BROKEN), "toys")
    assert "toy_parts" not in sys.modules
    HOOKS.get("graftwork.ToyHook")
    assert set(adapter.registered()) == {"ToyHook"}
    DATA_SAMPLERS.get("graftwork.ToySampler")
    assert set(adapter.registered()) == {"ToyHook", "ToySampler"}


def test_an_import_error_surfaces_with_its_cause_and_the_others_stay_usable(
    adapter: ModuleType, isolated_plugins: ModuleType, code: Path
) -> None:
    from mmengine.registry import DATA_SAMPLERS

    from graftwork.catalog import LoadError

    isolated_plugins.register(plugin(TOY, BROKEN), "toys")
    with pytest.raises(LoadError, match="No module named 'package_that_is_not_there'") as caught:
        DATA_SAMPLERS.build({"type": "graftwork.BrokenSampler"})
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)
    assert "not in the" not in str(caught.value)
    (problem,) = adapter.problems()
    assert problem.plugin == "toys"
    assert "graftwork doctor toys" in problem.hint
    assert DATA_SAMPLERS.get("graftwork.ToySampler").__name__ == "ToySampler"
    (code / "broken_parts.py").write_text("class Broken: ...\n")  # the user installs what was missing
    importlib.invalidate_caches()
    assert DATA_SAMPLERS.get("graftwork.BrokenSampler").__name__ == "Broken"
    assert adapter.problems() == ()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ToySamplr", "did you mean 'graftwork.ToySampler'"),
        ("Zebra", "there is: ToySampler"),
        ("ToyHook", "is a hook, but was looked up as a data sampler"),
    ],
)
def test_unknown_names_are_explained(
    adapter: ModuleType, isolated_plugins: ModuleType, code: Path, name: str, message: str
) -> None:
    from mmengine.registry import DATA_SAMPLERS

    isolated_plugins.register(plugin(TOY, TOY_HOOK), "toys")
    with pytest.raises(KeyError) as caught:
        DATA_SAMPLERS.build({"type": f"graftwork.{name}"})
    assert message in str(caught.value)


def test_a_name_that_two_plugins_claim_belongs_to_neither(
    adapter: ModuleType, isolated_plugins: ModuleType, code: Path
) -> None:
    from mmengine.registry import DATA_SAMPLERS

    isolated_plugins.register(plugin(TOY), "toys")
    with pytest.warns(UserWarning, match="claimed by"):
        isolated_plugins.register(plugin(TOY), "playthings")
        isolated_plugins.plugins()
    with pytest.raises(KeyError, match="claimed by the plugins playthings and toys"):
        DATA_SAMPLERS.get("graftwork.ToySampler")


def test_a_plugin_that_failed_is_named_when_its_component_is_missing(
    adapter: ModuleType, isolated_plugins: ModuleType, code: Path
) -> None:
    from mmengine.registry import DATA_SAMPLERS

    def fails() -> list[Component]:
        raise RuntimeError("half installed")

    broken = SimpleNamespace(graftwork_components=hookimpl(specname="graftwork_components")(fails))
    with pytest.warns(UserWarning, match="half installed"):
        isolated_plugins.register(broken, "broken")
        isolated_plugins.plugins()
    with pytest.raises(KeyError, match=r"Not available: plugin 'broken' .*half installed"):
        DATA_SAMPLERS.get("graftwork.ToySampler")


def test_importing_the_registries_twice_is_harmless(adapter: ModuleType) -> None:
    import graftwork.registry as registry

    before = dict(registry.REGISTRIES)
    importlib.reload(registry)
    assert {kind: id(found) for kind, found in registry.REGISTRIES.items()} == {
        kind: id(found) for kind, found in before.items()
    }


def test_doctor_finds_what_cannot_be_built(
    adapter: ModuleType, isolated_plugins: ModuleType, code: Path
) -> None:
    isolated_plugins.register(plugin(TOY, TOY_HOOK, BROKEN), "toys")
    found = list(adapter.findings(isolated_plugins.plugins(), "toys"))
    assert [level for level, _, _ in found] == ["error", "ok"]
    assert "type='graftwork.BrokenSampler'" in found[0][1]
    assert "package_that_is_not_there" in found[0][1]
    assert "graftwork.ToyHook, graftwork.ToySampler" in found[1][1]


def test_checkpoints_of_mmengine_load_with_weights_only(adapter: ModuleType, tmp_path: Path) -> None:
    import numpy as np
    import torch
    from mmengine.logging import HistoryBuffer

    history = HistoryBuffer([1.0, 2.0, 3.0], [1, 1, 1])
    torch.save({"history": history, "scalar": np.float64(2.5), "array": np.arange(3)}, tmp_path / "c.pth")
    loaded = torch.load(tmp_path / "c.pth", weights_only=True)
    assert loaded["history"].current() == 3
    assert loaded["history"].statistics("mean", 2) == 2.5
    assert loaded["scalar"] == 2.5


class Attribute:
    """Pickles as a call of getattr, as an attacker would write it by hand."""

    def __init__(self, owner: object, name: str) -> None:
        self.arguments = (owner, name)

    def __reduce__(self) -> tuple:
        return getattr, self.arguments


@pytest.mark.parametrize("name", ["__init__", "__class__", "__globals__"])
def test_checkpoints_cannot_reach_other_attributes(adapter: ModuleType, tmp_path: Path, name: str) -> None:
    import torch
    from mmengine.logging import HistoryBuffer

    torch.save(Attribute(HistoryBuffer, name), tmp_path / "bad.pth")
    with pytest.raises((ValueError, pickle.UnpicklingError)):
        torch.load(tmp_path / "bad.pth", weights_only=True)
