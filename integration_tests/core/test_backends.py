"""Choice of a render backend from a catalogue made up for the test."""

from __future__ import annotations

import logging
import sys
import types
from collections.abc import Callable, Iterator

import pytest
import torch

from graftwork import backends, extension
from graftwork.catalog import Catalog, Entry, Problem
from graftwork.spec import RenderBackend

BOTH = frozenset({"rasterize", "raytrace"})


def renders(name: str) -> Callable[..., Callable[[], str]]:
    return lambda kind, device: lambda: f"{name} {kind} {device}"


def needs_compiler(kind: str, device: torch.device) -> Callable[..., object]:
    raise extension.Unavailable("no C++ compiler was found.\nlong output", "Install g++.")


def is_broken(kind: str, device: torch.device) -> Callable[..., object]:
    raise ZeroDivisionError("oops")


@pytest.fixture
def factories() -> Iterator[types.ModuleType]:
    """The module that targets point to."""
    module = types.ModuleType("foam_factories")
    sys.modules["foam_factories"] = module
    module.reference = renders("reference")
    module.cpu = renders("cpu")
    module.cuda = renders("cuda")
    module.needs_compiler = needs_compiler
    module.is_broken = is_broken
    module.returns_nothing = lambda kind, device: None
    yield module
    del sys.modules["foam_factories"]


def entry(name: str, target: str, device: str = "cpu", priority: int = 0, plugin: str = "foam", kinds=BOTH):
    description = RenderBackend(
        name=name, target=f"foam_factories:{target}", kinds=kinds, device=device, priority=priority
    )
    return Entry(description, plugin, f"graftwork-{plugin}", "1.2")


def catalog(*entries: Entry, **fields: object) -> Catalog:
    names = [one.name for one in entries]
    keyed = {one.name if names.count(one.name) == 1 else f"{one.plugin}/{one.name}": one for one in entries}
    return Catalog(models={}, components={}, scenes={}, backends=keyed, **fields)


REFERENCE = entry("foam:reference", "reference", device="any", priority=-100)
CPU = entry("foam:cpu", "cpu", priority=10)
CUDA = entry("foam:cuda", "cuda", device="cuda", priority=20)
UNBUILT = entry("foam:unbuilt", "needs_compiler", priority=50)
OTHER = entry("mesh:cpu", "cpu")
pytestmark = pytest.mark.usefixtures("factories")


def test_auto_takes_the_highest_priority_that_fits_and_keeps_every_refusal(caplog):
    with caplog.at_level(logging.INFO, logger="graftwork"):
        choice = backends.choose(
            "foam", "rasterize", "cpu", catalog=catalog(REFERENCE, CPU, CUDA, UNBUILT, OTHER)
        )
    assert choice.entry is CPU
    assert choice.callable() == "cpu rasterize cpu"
    assert [(one.name, one.reason, one.fix) for one in choice.refusals] == [
        ("foam:unbuilt", "no C++ compiler was found.\nlong output", "Install g++."),
        (
            "foam:cuda",
            "it takes tensors on cuda, these are on cpu.",
            "Move the model to cuda, or choose another backend.",
        ),
    ]
    assert [record.getMessage() for record in caplog.records] == [
        "foam rasterize on cpu: backend foam:cpu (graftwork-foam 1.2); not foam:unbuilt: "
        "no C++ compiler was found."
    ]


def test_auto_follows_the_device():
    offered = catalog(REFERENCE, CPU, CUDA)
    assert backends.choose("foam", "raytrace", "cuda:1", catalog=offered).callable() == "cuda raytrace cuda:1"
    assert backends.choose("foam", "raytrace", torch.device("meta"), catalog=offered).entry is REFERENCE


def test_auto_follows_the_kind():
    only_rays = entry("foam:rays", "cpu", priority=99, kinds=frozenset({"raytrace"}))
    offered = catalog(REFERENCE, only_rays)
    assert backends.choose("foam", "raytrace", "cpu", catalog=offered).entry is only_rays
    choice = backends.choose("foam", "rasterize", "cpu", catalog=offered)
    assert choice.entry is REFERENCE
    assert choice.refusals[0].reason == "it renders by raytrace, not rasterize."


def test_equal_priorities_are_tried_by_name():
    offered = catalog(entry("foam:b", "cpu"), entry("foam:a", "cpu"), entry("foam:c", "cpu"))
    assert backends.choose("foam", "rasterize", "cpu", catalog=offered).entry.name == "foam:a"


@pytest.mark.parametrize("name", ["unbuilt", "foam:unbuilt", "foam/foam:unbuilt"])
def test_named_backend_never_falls_back(name):
    with pytest.raises(backends.NoBackend) as caught:
        backends.choose("foam", "rasterize", "cpu", name, catalog=catalog(REFERENCE, CPU, UNBUILT))
    assert "'foam:unbuilt' cannot serve: no C++ compiler" in caught.value.reason
    assert caught.value.fix == "Install g++."
    assert [one.name for one in caught.value.refusals] == ["foam:unbuilt"]


def test_named_backend_is_taken_whatever_its_priority():
    assert (
        backends.choose("foam", "rasterize", "cpu", "reference", catalog=catalog(REFERENCE, CPU)).entry
        is REFERENCE
    )


def test_named_backend_on_the_wrong_device_is_refused():
    with pytest.raises(backends.NoBackend, match="takes tensors on cuda, these are on cpu"):
        backends.choose("foam", "rasterize", "cpu", "cuda", catalog=catalog(REFERENCE, CUDA))


def test_unknown_name_lists_what_exists_and_names_blocked_and_failed_plugins():
    failed = Problem("frothy", "graftwork-frothy 0.1", "import", ImportError("no froth"), "Reinstall it.")
    offered = catalog(REFERENCE, CPU, OTHER, blocked=("fast-foam",), problems=(failed,))
    with pytest.raises(backends.NoBackend) as caught:
        backends.choose("foam", "rasterize", "cpu", "vulkan", catalog=offered)
    message = str(caught.value)
    assert "no render backend 'foam:vulkan'" in message
    assert "foam:cpu, foam:reference" in message and "mesh" not in message
    assert "plugin fast-foam refused: blocked by GRAFTWORK_PLUGINS" in message
    assert "plugin frothy refused: it failed (import: ImportError: no froth)" in message


def test_backend_of_another_scene_is_refused():
    with pytest.raises(backends.NoBackend, match="'mesh:cpu' renders scene 'mesh', not 'foam'"):
        backends.choose("foam", "rasterize", "cpu", "mesh:cpu", catalog=catalog(CPU, OTHER))


def test_auto_without_a_backend_says_why_and_what_is_blocked():
    with pytest.raises(backends.NoBackend) as caught:
        backends.choose(
            "foam", "rasterize", "cpu", catalog=catalog(UNBUILT, CUDA, blocked=("reference-foam",))
        )
    message = str(caught.value)
    assert "no render backend serves rasterize of scene 'foam' on cpu" in message
    assert all(name in message for name in ("foam:unbuilt", "foam:cuda", "plugin reference-foam"))
    assert len(caught.value.refusals) == 3


@pytest.mark.parametrize("target", ["is_broken", "returns_nothing", "does_not_exist"])
def test_broken_backend_does_not_stop_auto_and_its_traceback_is_logged(target, caplog):
    broken = entry("foam:broken", target, priority=99, plugin="stranger")
    choice = backends.choose("foam", "rasterize", "cpu", catalog=catalog(broken, REFERENCE))
    assert choice.entry is REFERENCE
    assert choice.refusals[0].reason.startswith("it is broken (")
    assert "graftwork-stranger 1.2" in choice.refusals[0].fix
    assert caplog.records[0].levelname == "WARNING" and caplog.records[0].exc_info


def test_contested_name_is_taken_only_when_its_plugin_is_named():
    offered = catalog(
        entry("foam:fast", "cpu", priority=9, plugin="mine"),
        entry("foam:fast", "cpu", priority=8, plugin="yours"),
        REFERENCE,
    )
    choice = backends.choose("foam", "rasterize", "cpu", catalog=offered)
    assert choice.entry is REFERENCE
    assert [one.name for one in choice.refusals] == ["mine/foam:fast", "yours/foam:fast"]
    assert (
        backends.choose("foam", "rasterize", "cpu", "yours/foam:fast", catalog=offered).entry.plugin
        == "yours"
    )
    with pytest.raises(backends.NoBackend, match="Name one of mine/foam:fast, yours/foam:fast"):
        backends.choose("foam", "rasterize", "cpu", "fast", catalog=offered)


def test_misspelt_kind_or_setting_is_an_error_not_a_slow_rendering(monkeypatch):
    with pytest.raises(ValueError, match="kind must be one of rasterize, raytrace, got 'splat'"):
        backends.choose("foam", "splat", "cpu", catalog=catalog(REFERENCE))  # type: ignore[arg-type]
    monkeypatch.setenv("GRAFTWORK_EXTENSION", "fastest")
    with pytest.raises(ValueError, match="GRAFTWORK_EXTENSION"):
        backends.choose("foam", "rasterize", "cpu", catalog=catalog(REFERENCE))


def test_reference_mode_refuses_native_backends_with_the_variables_name(factories, monkeypatch):
    library = extension.Library(
        name="foam_cpu", package="nowhere_to_be_found", sources=["foam.cpp"], functions={"foam": ()}
    )
    factories.native = lambda kind, device: extension.load(library).foam
    monkeypatch.setenv("GRAFTWORK_EXTENSION", "reference")
    native = entry("foam:native", "native", priority=99)
    choice = backends.choose("foam", "rasterize", "cpu", catalog=catalog(native, REFERENCE))
    assert choice.entry is REFERENCE
    assert "GRAFTWORK_EXTENSION=reference" in choice.refusals[0].reason


def test_explain_agrees_with_auto_and_never_starts_a_backend(factories):
    def forbidden(kind: str, device: torch.device) -> None:
        raise AssertionError("explain must not call the factory")

    def buildable(kind: str, device: torch.device) -> None:
        forbidden(kind, device)

    buildable.status = lambda kind, device: extension.Status("buildable", f"with g++ for {kind} on {device}")
    without = types.SimpleNamespace(
        status=lambda kind, device: extension.Status("unavailable", "no nvcc.", "Install CUDA.")
    )
    factories.buildable, factories.without, factories.reference = buildable, without, forbidden
    offered = catalog(
        REFERENCE,
        entry("foam:without", "without", priority=30),
        entry("foam:buildable", "buildable", priority=20),
        CUDA,
        entry("foam:broken", "does_not_exist", priority=5),
        blocked=("fast-foam",),
    )
    lines = [str(verdict) for verdict in backends.explain("foam", "rasterize", "cpu", catalog=offered)]
    assert lines == [
        "foam:without refused: no nvcc. Install CUDA.",
        "foam:buildable chosen: would be compiled at first use: with g++ for rasterize on cpu",
        "foam:cuda refused: it takes tensors on cuda, these are on cpu. "
        "Move the model to cuda, or choose another backend.",
        lines[3],
        "foam:reference available: needs nothing else.",
        "plugin fast-foam refused: blocked by GRAFTWORK_PLUGINS, so its backends are unknown. "
        "Change or unset the variable to use them.",
    ]
    assert lines[3].startswith("foam:broken refused: it is broken (LoadError")


def test_installed_plugins_are_asked_when_no_catalogue_is_given(monkeypatch):
    monkeypatch.setattr(backends, "plugins", lambda: catalog(REFERENCE))
    assert backends.choose("foam", "rasterize", "cpu").entry is REFERENCE
    assert backends.explain("foam", "rasterize", "cpu")[0].state == "chosen"
