"""What the installed plugins offer: discovered once per process, each plugin isolated from the others.

A plugin that cannot be read, imported or understood is dropped and recorded as a :class:`Problem`; every
other plugin stays usable. ``GRAFTWORK_STRICT=1`` raises instead. No framework and no method code is imported
here except by :func:`load`.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

import pluggy

from graftwork import hookspecs
from graftwork.discovery import Candidate, Selection, normalise, scan, unmet_core_requirement
from graftwork.spec import Component, Method, ModelVariant, RenderBackend, SceneMethod, SpecError

STRICT_VARIABLE = "GRAFTWORK_STRICT"
SLOW_IMPORT_SECONDS = 1.0
HEAVY_MODULES = ("torch", "timm", "mmengine", "nerfstudio")

Description = ModelVariant | Component | SceneMethod | RenderBackend
Stage = Literal["metadata", "setting", "version", "import", "hook", "collision", "registration"]

_KINDS: Mapping[str, tuple[str, type[Description]]] = {
    "models": ("graftwork_models", ModelVariant),
    "components": ("graftwork_components", Component),
    "scenes": ("graftwork_scenes", SceneMethod),
    "backends": ("graftwork_render_backends", RenderBackend),
}


class PluginWarning(UserWarning):
    """A plugin, or one of its methods, is not available."""


class PluginError(RuntimeError):
    """Raised in place of a warning when ``GRAFTWORK_STRICT=1``."""


class LoadError(ImportError):
    """The code behind a description could not be imported."""


@dataclass(frozen=True)
class Entry:
    """A described method and where it comes from.

    Args:
        description: What the plugin said.
        plugin: Slug of the plugin.
        distribution: Installed distribution, or ``"in-process"``.
        version: Its version.
    """

    description: Description
    plugin: str
    distribution: str
    version: str

    @property
    def name(self) -> str:
        """Name of the described method."""
        return self.description.name


@dataclass(frozen=True)
class Problem:
    """Why something a plugin offers is missing, or what is wrong with it.

    Args:
        plugin: Slug, or the distribution's name when the slug is unknown.
        distribution: Name and version of the distribution.
        stage: Where it happened.
        exception: What was raised.
        hint: What to do next.
        fatal: False if everything the plugin offers works nevertheless.
    """

    plugin: str
    distribution: str
    stage: Stage
    exception: BaseException
    hint: str
    fatal: bool = True

    def __str__(self) -> str:
        cause = (
            f"{type(self.exception).__name__}: {self.exception}"
            if str(self.exception)
            else type(self.exception).__name__
        )
        return f"plugin {self.plugin!r} ({self.distribution}), {self.stage}: {cause}. {self.hint}"

    def details(self) -> str:
        """Return the traceback of the exception."""
        return "".join(traceback.format_exception(self.exception))


@dataclass(frozen=True)
class Plugin:
    """A plugin that was imported and understood."""

    slug: str
    distribution: str
    version: str
    module: str
    seconds: float


@dataclass(frozen=True)
class Catalog:
    """Everything on offer, by kind and name.

    A name that two plugins claim is absent as such; both claims are listed under ``"<slug>/<name>"``.

    Args:
        models: timm models.
        components: mmengine components.
        scenes: nerfstudio methods.
        backends: Render backends.
        plugins: The plugins behind them.
        problems: What went wrong.
        blocked: Slugs of installed plugins that the user's list excludes.
    """

    models: Mapping[str, Entry]
    components: Mapping[str, Entry]
    scenes: Mapping[str, Entry]
    backends: Mapping[str, Entry]
    plugins: tuple[Plugin, ...] = ()
    problems: tuple[Problem, ...] = ()
    blocked: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[tuple[str, str, Entry]]:
        """Iterate over (kind, name, entry)."""
        for kind in _KINDS:
            for name, entry in getattr(self, kind).items():
                yield kind, name, entry

    def find(self, name: str) -> list[tuple[str, str, Entry]]:
        """Return every (kind, name, entry) that answers to a name, with or without the plugin's slug."""
        return [hit for hit in self if name in (hit[1], f"{hit[2].plugin}/{hit[2].name}", hit[2].name)]


_lock = threading.RLock()
_catalog: Catalog | None = None
_in_process: dict[str, object] = {}


def plugins(*, reload: bool = False) -> Catalog:
    """Return what the installed plugins offer.

    Example:
        >>> import graftwork
        >>> sorted(graftwork.plugins().models)  # doctest: +SKIP
        ['convmixer_spin', ...]

    Args:
        reload: Look again instead of returning the cached answer.

    Returns:
        The catalogue.

    Raises:
        PluginError: A plugin failed and ``GRAFTWORK_STRICT=1``.
    """
    global _catalog
    with _lock:
        if _catalog is None or reload:
            catalog = _build()
            for problem in catalog.problems:
                report(problem)
            _catalog = catalog
        return _catalog


def register(plugin: object, name: str) -> None:
    """Add a plugin of this process, for notebooks and tests.

    Example:
        >>> graftwork.register(my_module, "mine")  # doctest: +SKIP

    Args:
        plugin: Module or object with hook implementations.
        name: Its slug.

    Raises:
        ValueError: The slug is taken.
    """
    global _catalog
    with _lock:
        if name in _in_process or any(found.slug == name for found in plugins().plugins):
            raise ValueError(f"a plugin named {name!r} exists already; choose another name.")
        _in_process[name] = plugin
        _catalog = None


def report(problem: Problem) -> None:
    """Warn about a fatal problem, or raise it in strict mode."""
    if not problem.fatal:
        return
    if os.environ.get(STRICT_VARIABLE, "") not in ("", "0"):
        raise PluginError(str(problem)) from problem.exception
    warnings.warn(f"graftwork: {problem}", PluginWarning, stacklevel=3)


def load(method: Method | RenderBackend) -> Any:
    """Import the code behind a description.

    Args:
        method: A description from the catalogue.

    Returns:
        What its target names.

    Raises:
        LoadError: The module cannot be imported or lacks the attribute; the cause is chained.
    """
    module_name, _, attribute = method.target.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a plugin may raise anything, sys.exit included
        raise LoadError(
            f"cannot load {method.name!r} from {method.target!r}: {type(error).__name__}: {error}. "
            f"Try `python -c 'import {module_name}'` to see the error alone."
        ) from error
    return found


@dataclass
class _Builder:
    manager: pluggy.PluginManager
    problems: list[Problem] = field(default_factory=list)
    loaded: list[Plugin] = field(default_factory=list)
    entries: dict[str, list[Entry]] = field(default_factory=lambda: {kind: [] for kind in _KINDS})

    def fail(
        self, candidate: Candidate, stage: Stage, error: BaseException, hint: str = "", *, fatal: bool = True
    ) -> None:
        hint = hint or f"`graftwork doctor {candidate.slug}` shows the traceback."
        where = f"{candidate.distribution} {candidate.version}".strip()
        self.problems.append(Problem(candidate.slug, where, stage, error, hint, fatal))

    def add(self, candidate: Candidate, plugin: object | None) -> None:
        """Import one plugin, ask its hooks, and keep what it says only if all of it is sound."""
        from graftwork import __version__

        try:
            unmet = unmet_core_requirement(candidate.requires, __version__)
        except Exception as error:
            return self.fail(
                candidate, "version", error, "Its requirement strings cannot be parsed; reinstall it."
            )
        if unmet is not None:
            mismatch = RuntimeError(f"it requires {unmet!r}, installed is graftwork {__version__}")
            return self.fail(
                candidate,
                "version",
                mismatch,
                f"`pip install -U graftwork {candidate.distribution}` brings them together.",
            )
        before = frozenset(name for name in HEAVY_MODULES if name in sys.modules)
        started = time.perf_counter()
        if plugin is None:
            try:
                # whatever it prints must not end up in the output of `graftwork list --json`
                with contextlib.redirect_stdout(sys.stderr):
                    plugin = importlib.import_module(candidate.module)
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # sys.exit() at import means a broken plugin
                return self.fail(candidate, "import", error)
        seconds = time.perf_counter() - started
        try:
            self.manager.register(plugin, name=candidate.slug)
            self.manager.check_pending()
            offered = self.ask(candidate)
        except Exception as error:
            if self.manager.get_plugin(candidate.slug) is not None:
                self.manager.unregister(name=candidate.slug)
            return self.fail(candidate, "hook", error)
        for kind, entries in offered.items():
            self.entries[kind].extend(entries)
        self.loaded.append(
            Plugin(candidate.slug, candidate.distribution, candidate.version, candidate.module, seconds)
        )
        heavy = sorted(name for name in HEAVY_MODULES if name in sys.modules and name not in before)
        if heavy or seconds > SLOW_IMPORT_SECONDS:
            brought = f" and imported {', '.join(heavy)}" if heavy else ""
            slow = RuntimeWarning(f"describing its methods took {seconds:.1f} s{brought}")
            self.fail(
                candidate,
                "import",
                slow,
                "Its author should describe methods in a module of its own.",
                fatal=False,
            )
        return None

    def ask(self, candidate: Candidate) -> dict[str, list[Entry]]:
        offered: dict[str, list[Entry]] = {}
        for kind, (hook_name, expected) in _KINDS.items():
            offered[kind] = []
            for implementation in getattr(self.manager.hook, hook_name).get_hookimpls():
                if implementation.plugin_name != candidate.slug:
                    continue
                if implementation.wrapper or implementation.hookwrapper:
                    raise SpecError(
                        f"{hook_name} is a hook wrapper; graftwork's hooks take plain functions only."
                    )
                for item in implementation.function():
                    if type(item) is not expected:
                        raise SpecError(f"{hook_name} must yield {expected.__name__}, got {item!r}.")
                    offered[kind].append(
                        Entry(item, candidate.slug, candidate.distribution, candidate.version)
                    )
            for name, count in Counter(entry.name for entry in offered[kind]).items():
                if count > 1:
                    raise SpecError(
                        f"{hook_name} names {name!r} {count} times; names are unique within a plugin."
                    )
        return offered

    def resolve(self, kind: str) -> Mapping[str, Entry]:
        """Give every unclaimed name its entry; of several claimants none gets the bare name."""
        claims: dict[str, list[Entry]] = {}
        for entry in self.entries[kind]:
            claims.setdefault(entry.name, []).append(entry)
        resolved: dict[str, Entry] = {}
        for name, entries in sorted(claims.items()):
            if len(entries) == 1:
                resolved[name] = entries[0]
                continue
            owners = ", ".join(repr(entry.plugin) for entry in entries)
            for entry in entries:
                resolved[f"{entry.plugin}/{name}"] = entry
                error = SpecError(f"{kind[:-1]} {name!r} is claimed by {owners}; none of them gets the name")
                hint = f"Uninstall one of them or block it, such as GRAFTWORK_PLUGINS=-{entry.plugin}."
                self.problems.append(
                    Problem(entry.plugin, f"{entry.distribution} {entry.version}", "collision", error, hint)
                )
        return MappingProxyType(resolved)


def _build() -> Catalog:
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    builder = _Builder(manager)
    found, unreadable = scan()
    for broken in unreadable:
        builder.problems.append(
            Problem(
                broken.distribution,
                broken.distribution,
                "metadata",
                broken.exception,
                "Reinstall the distribution.",
            )
        )
    found = _distinct_slugs(found, builder)
    selection = Selection.from_environment()
    blocked = []
    for candidate in found:
        if selection.admits(candidate.names()):
            builder.add(candidate, None)
        else:
            blocked.append(candidate.slug)
    for slug, plugin in _in_process.items():
        builder.add(Candidate(slug, getattr(plugin, "__name__", slug), "in-process", "", ()), plugin)
    for name in selection.unknown(candidate.names() for candidate in found):
        known = ", ".join(candidate.slug for candidate in found) or "none"
        error = LookupError(f"GRAFTWORK_PLUGINS names {name!r}; installed plugins: {known}")
        builder.problems.append(
            Problem(name, "no distribution", "setting", error, "Correct or unset the variable.")
        )
    kinds = {kind: builder.resolve(kind) for kind in _KINDS}
    return Catalog(
        **kinds,
        plugins=tuple(builder.loaded),
        problems=tuple(builder.problems),
        blocked=tuple(sorted(blocked)),
    )


def _distinct_slugs(found: Iterable[Candidate], builder: _Builder) -> list[Candidate]:
    """Call plugins that claim the same slug by their distributions' names instead."""
    found = list(found)
    count = Counter(normalise(candidate.slug) for candidate in found)
    distinct = []
    for candidate in found:
        if count[normalise(candidate.slug)] > 1:
            own = normalise(candidate.distribution)
            error = SpecError(
                f"{count[normalise(candidate.slug)]} distributions call their plugin {candidate.slug!r}"
            )
            builder.fail(
                candidate, "collision", error, f"This one is listed as {own!r}; uninstall one of them."
            )
            candidate = Candidate(
                own, candidate.module, candidate.distribution, candidate.version, candidate.requires
            )
        distinct.append(candidate)
    return distinct
