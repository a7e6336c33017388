"""The contract of a plugin as a whole: its descriptions, its metadata, and that the two agree."""

# ruff: noqa: D102  the name of a check is its sentence

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable, Mapping
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import unquote, urlparse

import pluggy
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from graftwork import hookspecs
from graftwork.catalog import load, plugins
from graftwork.discovery import GROUP
from graftwork.spec import Component, Method, ModelVariant, RenderBackend, SceneMethod
from graftwork.testing.interpreter import run_python

Description = ModelVariant | Component | SceneMethod | RenderBackend

HEAVY = ("torch", "torchvision", "timm", "mmengine", "mmcv", "mmdet", "nerfstudio", "numpy")
"""Modules that describing a method must not import."""

_IMPORT_AND_LIST = """
import importlib, json, sys
importlib.import_module(sys.argv[1])
print(json.dumps(sorted(set(sys.argv[2:]) & set(sys.modules))))
"""

# what a plugin must require for each hook; (distribution, extra, may sit behind an extra of its own)
_FRAMEWORK: Mapping[str, tuple[tuple[tuple[str, str], ...], bool]] = {
    "graftwork_models": ((("timm", ""), ("graftwork", "timm")), False),
    "graftwork_components": ((("mmengine", ""), ("graftwork", "mmengine")), True),
    "graftwork_scenes": ((("graftwork", "nerfstudio"),), False),
}


class PluginContract:
    """What every installed plugin owes its users, whatever it offers.

    Example:
        >>> class TestPlugin(PluginContract):
        ...     plugin = "spin"
        ...     distribution = "graftwork-spin"

    Args:
        plugin: The slug, which is the name of the entry point in the group ``graftwork``.
        distribution: Name of the installed distribution; ``graftwork-<slug>`` if left empty.
        without_paper: Names of methods that come from no publication, such as plain baselines.
    """

    plugin: ClassVar[str] = ""
    distribution: ClassVar[str] = ""
    without_paper: ClassVar[frozenset[str]] = frozenset()

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Refuse to be collected before the author has named the plugin."""
        if not type(self).plugin:
            pytest.fail(
                f'{type(self).__name__} does not say what to test: set plugin = "your-slug".', pytrace=False
            )

    def installed(self) -> metadata.Distribution:
        """Return the installed distribution."""
        return metadata.distribution(self.distribution or f"graftwork-{self.plugin}")

    def module_name(self) -> str:
        """Return the module that the entry point names."""
        points = [point for point in self.installed().entry_points if point.group == GROUP]
        for point in points:
            if point.name == self.plugin:
                return point.value.strip()
        raise AssertionError(
            f"{self.installed().metadata['Name']} declares no plugin {self.plugin!r} in the entry-point "
            f"group {GROUP!r}, only {[point.name for point in points]}; after an edit, reinstall it"
        )

    def hooks(self) -> dict[str, list[Description]]:
        """Ask the plugin alone, without the catalogue, what it offers: hook name to descriptions."""
        manager = pluggy.PluginManager(hookspecs.PROJECT)
        manager.add_hookspecs(hookspecs)
        manager.register(importlib.import_module(self.module_name()), name=self.plugin)
        manager.check_pending()
        names = [name for name in vars(hookspecs) if name.startswith("graftwork_")]
        return {
            name: [item for answer in getattr(manager.hook, name)() for item in answer]
            for name in names
            if getattr(manager.hook, name).get_hookimpls()
        }

    def descriptions(self) -> list[Description]:
        """Return everything the plugin offers."""
        return [item for items in self.hooks().values() for item in items]

    def variants(self) -> list[ModelVariant]:
        """Return the timm models the plugin offers, or skip the test if there are none."""
        found = [item for item in self.descriptions() if isinstance(item, ModelVariant)]
        if not found:
            pytest.skip(f"{self.plugin} offers no timm models")
        return found

    def fields(self) -> dict[str, str]:
        """Return the metadata fields of the distribution; repeated ones are joined by line ends."""
        message = self.installed().metadata
        return {key: "\n".join(message.get_all(key) or ()) for key in set(message)}

    def requirements(self) -> list[Requirement]:
        """Return the parsed requirements of the distribution."""
        return [Requirement(text) for text in self.installed().requires or ()]

    def test_describing_imports_no_framework(self) -> None:
        path = os.pathsep.join(entry for entry in sys.path if entry)
        result = run_python(
            _IMPORT_AND_LIST,
            args=[self.module_name(), *HEAVY],
            env={"PYTHONPATH": path, "GRAFTWORK_AUTOLOAD": "0"},
        )
        assert result.returncode == 0, f"importing {self.module_name()} alone failed:\n{result.stderr}"
        brought = json.loads(result.stdout.splitlines()[-1])
        assert not brought, (
            f"importing {self.module_name()} imports {', '.join(brought)}; describe methods in a module that "
            "imports only the standard library and graftwork, and name their code by import string"
        )

    def test_hooks_match_their_specifications(self) -> None:
        offered = self.hooks()
        assert offered, f"{self.module_name()} implements none of graftwork's hooks"
        assert self.descriptions(), f"the hooks of {self.module_name()} offer nothing"

    def test_catalogue_has_no_complaint(self) -> None:
        catalog = plugins()
        problems = [str(problem) for problem in catalog.problems if problem.plugin == self.plugin]
        assert not problems, "\n".join(problems)
        listed = {entry.name for _, _, entry in catalog if entry.plugin == self.plugin}
        assert listed == {item.name for item in self.descriptions()}

    def test_names_are_unique(self) -> None:
        for hook, items in self.hooks().items():
            names = [item.name for item in items]
            twice = sorted({name for name in names if names.count(name) > 1})
            assert not twice, f"{hook} offers {', '.join(twice)} more than once"

    def test_names_are_free_in_timm(self) -> None:
        variants = self.variants()  # skips a plugin without models, which need not bring timm
        import timm

        taken = [
            item.name
            for item in variants
            if timm.is_model(item.name) and timm.model_entrypoint(item.name).__module__.startswith("timm.")
        ]
        assert not taken, f"timm has models of these names already: {', '.join(taken)}"

    def test_targets_resolve_to_callables(self) -> None:
        for item in self.descriptions():
            assert callable(load(item)), f"{item.target} is not callable"

    def test_every_method_names_its_paper(self) -> None:
        methods = [item for item in self.descriptions() if isinstance(item, Method)]
        silent = [item.name for item in methods if item.paper is None and item.name not in self.without_paper]
        assert not silent, f"no paper is given for {', '.join(silent)}"

    def test_distribution_has_summary_and_licence(self) -> None:
        fields = self.fields()
        assert fields.get("Summary", "").strip(), "project.description is missing from pyproject.toml"
        classified = "License ::" in fields.get("Classifier", "")
        assert fields.get("License-Expression") or fields.get("License") or classified, (
            "project.license is missing from pyproject.toml"
        )

    def test_distribution_can_be_found_by_keyword(self) -> None:
        keywords = self.fields().get("Keywords", "").replace(" ", ",").split(",")
        assert "graftwork-plugin" in keywords, 'add "graftwork-plugin" to project.keywords'

    def test_requirements_name_the_framework(self) -> None:
        for hook in self.hooks():
            if hook not in _FRAMEWORK:
                continue
            choices, optional = _FRAMEWORK[hook]
            met = [
                requirement
                for requirement in self.requirements()
                for name, extra in choices
                if canonicalize_name(requirement.name) == name
                and (not extra or extra in requirement.extras)
                and (optional or requirement.marker is None or requirement.marker.evaluate({"extra": ""}))
            ]
            wanted = " or ".join(f"{name}[{extra}]" if extra else name for name, extra in choices)
            assert met, f"{hook} is implemented, so the distribution must require {wanted}"

    def test_requirement_on_graftwork_spans_one_major_version(self) -> None:
        from graftwork import __version__

        own = [
            requirement
            for requirement in self.requirements()
            if canonicalize_name(requirement.name) == "graftwork" and requirement.marker is None
        ]
        assert own, 'the distribution must require "graftwork>=1,<2"'
        major = Version(__version__).major
        for requirement in own:
            assert requirement.specifier.contains(__version__, prereleases=True), (
                f"{requirement} excludes this one"
            )
            assert not requirement.specifier.contains(f"{major + 1}.0"), (
                f"{requirement} admits the next major version"
            )

    def test_timm_entry_points_agree_with_the_hook(self) -> None:
        declared = {
            point.name: point.value.replace(" ", "")
            for point in self.installed().entry_points
            if point.group == "timm.models"
        }
        offered = {item.name: item.target for item in self.variants()}
        assert declared == offered, '[project.entry-points."timm.models"] and graftwork_models() differ'

    def test_distribution_starts_nothing_with_the_interpreter(self) -> None:
        found = [path for path in self.files() if path.suffix in (".pth", ".start")]
        assert not found, f"files that run at interpreter start: {', '.join(map(str, found))}"

    def files(self) -> list[Path]:
        """Return the files of the distribution; for an editable installation those of its project folder."""
        distribution = self.installed()
        origin = json.loads(distribution.read_text("direct_url.json") or "{}")
        if origin.get("dir_info", {}).get("editable"):
            root = Path(unquote(urlparse(origin["url"]).path))
            folders = [root / "src"] if (root / "src").is_dir() else [root]
            return [path for folder in folders for path in folder.rglob("*") if path.is_file()]
        assert distribution.files is not None, "the installation has no RECORD of its files"
        return [Path(str(file)) for file in distribution.files]

    def test_factories_are_named_like_their_variants(self) -> None:
        different = {
            item.name: load(item).__name__ for item in self.variants() if load(item).__name__ != item.name
        }
        assert not different, f"factories named otherwise than their variants: {different}"

    def test_registered_models_are_the_plugins_own(self) -> None:
        variants = self.variants()
        import timm

        from graftwork.testing.model.subject import register_variants, without_memory

        register_variants()
        for item in variants:
            direct: Callable[..., Any] = load(item)
            native = without_memory(direct)
            registered = without_memory(partial(timm.create_model, item.name))
            assert type(registered) is type(native), (
                f"timm.create_model({item.name!r}) gives a {type(registered).__name__}, "
                f"its factory a {type(native).__name__}"
            )
