"""The catalogue, with plugins of this process: naming, look-up, loading and every hook's documentation."""

from __future__ import annotations

import inspect
import re
import sys
import types
import warnings
from pathlib import Path

import pytest

import graftwork
from graftwork import Component, ModelVariant, RenderBackend, SceneMethod, catalog, hookimpl, hookspecs
from graftwork.discovery import Selection

ROOT = Path(__file__).resolve().parents[2]


def plugin(**answers):
    """Make a plugin object with one hook per keyword."""
    made = types.SimpleNamespace()
    for hook, items in answers.items():
        setattr(made, hook, hookimpl(lambda items=items: items, specname=f"graftwork_{hook}"))
    return made


def model(name, target="json:dumps"):
    return ModelVariant(name=name, summary="A net", target=target)


def test_methods_of_every_kind_are_listed_under_their_names(isolated_plugins):
    scene = SceneMethod(name="foam", summary="s", target="a.b:c")
    backend = RenderBackend(name="foam:cpu", target="a.b:c", kinds={"rasterize"}, device="cpu")
    sampler = Component(name="MySampler", summary="s", target="a.b:c", kind="sampler")
    mine = plugin(models=[model("net")], components=[sampler], scenes=[scene], render_backends=[backend])
    graftwork.register(mine, "mine")
    found = graftwork.plugins()
    assert [(kind, name) for kind, name, _ in found] == [
        ("models", "net"),
        ("components", "MySampler"),
        ("scenes", "foam"),
        ("backends", "foam:cpu"),
    ]
    assert found.backends["foam:cpu"].plugin == "mine" and found.problems == ()
    with pytest.raises(TypeError):
        found.models["other"] = None


def test_answer_is_cached_until_something_is_registered(isolated_plugins):
    first = graftwork.plugins()
    assert graftwork.plugins() is first
    graftwork.register(plugin(models=[model("net")]), "mine")
    assert "net" in graftwork.plugins().models
    assert graftwork.plugins(reload=True) is not graftwork.plugins(reload=True)


def test_slug_in_use_is_refused(isolated_plugins):
    graftwork.register(plugin(models=[model("net")]), "mine")
    with pytest.raises(ValueError, match="'mine' exists already"):
        graftwork.register(plugin(models=[]), "mine")


def test_claimed_twice_means_nobody_gets_the_bare_name(isolated_plugins):
    graftwork.register(plugin(models=[model("net"), model("other")]), "a")
    graftwork.register(plugin(models=[model("net")]), "b")
    with pytest.warns(catalog.PluginWarning, match="claimed by 'a', 'b'"):
        found = graftwork.plugins()
    assert set(found.models) == {"a/net", "b/net", "other"}
    assert [name for _, name, _ in found.find("net")] == ["a/net", "b/net"]
    assert [name for _, name, _ in found.find("b/net")] == ["b/net"]


def test_one_unsound_item_drops_the_whole_plugin(isolated_plugins):
    graftwork.register(plugin(models=[model("net")], scenes=["not a scene"]), "mine")
    with pytest.warns(catalog.PluginWarning, match="must yield SceneMethod, got 'not a scene'"):
        assert not graftwork.plugins().models


def test_same_name_twice_in_one_plugin_is_unsound(isolated_plugins):
    graftwork.register(plugin(models=[model("net"), model("net")]), "mine")
    with pytest.warns(catalog.PluginWarning, match="names 'net' 2 times"):
        assert not graftwork.plugins().models


def test_keyboard_interrupt_in_a_hook_is_not_swallowed(isolated_plugins):
    def interrupt():
        raise KeyboardInterrupt

    graftwork.register(types.SimpleNamespace(models=hookimpl(interrupt, specname="graftwork_models")), "mine")
    with pytest.raises(KeyboardInterrupt):
        graftwork.plugins()


def test_load_resolves_nested_attributes():
    assert catalog.load(model("net", "pathlib:Path.home")) == Path.home


@pytest.mark.parametrize(
    ("target", "cause"),
    [("no_such_package.models:net", ModuleNotFoundError), ("json:nothing", AttributeError)],
)
def test_load_error_chains_its_cause(target, cause):
    with pytest.raises(catalog.LoadError, match=re.escape(target)) as caught:
        catalog.load(model("net", target))
    assert isinstance(caught.value.__cause__, cause)


def test_sys_exit_in_method_code_becomes_a_load_error(tmp_path, monkeypatch):
    (tmp_path / "leaver.py").write_text("import sys; sys.exit(4)")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(catalog.LoadError, match="SystemExit: 4"):
        catalog.load(model("net", "leaver:net"))
    assert "leaver" not in sys.modules


@pytest.mark.parametrize(
    ("text", "spin", "butterfly"),
    [
        (None, True, True),
        ("", False, False),
        (" , ", False, False),
        ("spin", True, False),
        ("spin, butterfly", True, True),
        ("-spin", False, True),
        ("spin,-spin", False, False),
        ("-nothing", True, True),
    ],
)
def test_selection_follows_the_allow_and_block_list(text, spin, butterfly):
    selection = Selection(text)
    assert selection.admits(frozenset({"spin", "graftwork-spin"})) is spin
    assert selection.admits(frozenset({"butterfly"})) is butterfly


def test_every_hook_is_documented_and_exercised():
    hooks = [
        name for name, value in vars(hookspecs).items() if name.startswith("graftwork_") and callable(value)
    ]
    assert sorted(hooks) == [
        "graftwork_components",
        "graftwork_models",
        "graftwork_render_backends",
        "graftwork_scenes",
    ]
    here = inspect.getsource(sys.modules[__name__])
    for hook in hooks:
        assert inspect.getdoc(getattr(hookspecs, hook))
        assert hook.removeprefix("graftwork_") in here


def test_version_in_the_code_is_the_one_in_the_metadata():
    from importlib.metadata import version

    assert version("graftwork") == graftwork.__version__


def test_installed_plugins_describe_themselves_without_a_problem():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = graftwork.plugins(reload=True)
    assert [str(problem) for problem in found.problems] == []
    assert "convmixer_spin" in found.models
