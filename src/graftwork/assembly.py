"""From installed plugins to a catalogue: import, hook calls and collisions, each plugin in isolation."""

from __future__ import annotations

import contextlib
import importlib
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import pluggy

from graftwork import hookspecs
from graftwork.catalog import Catalog, Description, Entry, Plugin, Problem, Stage
from graftwork.discovery import Candidate, Selection, normalise, scan, unmet_core_requirement
from graftwork.spec import Component, ModelVariant, RenderBackend, SceneMethod, SpecError

SLOW_IMPORT_SECONDS = 1.0
HEAVY_MODULES = ("torch", "timm", "mmengine", "nerfstudio")
HOOKS: Mapping[str, tuple[str, type[Description]]] = {
    "models": ("graftwork_models", ModelVariant),
    "components": ("graftwork_components", Component),
    "scenes": ("graftwork_scenes", SceneMethod),
    "backends": ("graftwork_render_backends", RenderBackend),
}


@dataclass
class Builder:
    """Collects what plugins offer and why some of them offer nothing."""

    manager: pluggy.PluginManager
    problems: list[Problem] = field(default_factory=list)
    loaded: list[Plugin] = field(default_factory=list)
    entries: dict[str, list[Entry]] = field(default_factory=lambda: {kind: [] for kind in HOOKS})

    def fail(
        self, candidate: Candidate, stage: Stage, error: BaseException, hint: str = "", *, fatal: bool = True
    ) -> None:
        """Record why a candidate offers nothing, or what is odd about it when not fatal."""
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
        """Call the plugin's hooks, one plugin at a time, and check every item."""
        offered: dict[str, list[Entry]] = {}
        for kind, (hook_name, expected) in HOOKS.items():
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


def assemble(in_process: Mapping[str, object]) -> Catalog:
    """Import every admitted plugin, ask its hooks and settle who gets which name.

    Args:
        in_process: Plugins of this process by slug, which no list excludes.

    Returns:
        The catalogue.
    """
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    builder = Builder(manager)
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
    for slug, plugin in in_process.items():
        builder.add(Candidate(slug, getattr(plugin, "__name__", slug), "in-process", "", ()), plugin)
    for name in selection.unknown(candidate.names() for candidate in found):
        known = ", ".join(candidate.slug for candidate in found) or "none"
        error = LookupError(f"GRAFTWORK_PLUGINS names {name!r}; installed plugins: {known}")
        builder.problems.append(
            Problem(name, "no distribution", "setting", error, "Correct or unset the variable.")
        )
    kinds = {kind: builder.resolve(kind) for kind in HOOKS}
    return Catalog(
        **kinds,
        plugins=tuple(builder.loaded),
        problems=tuple(builder.problems),
        blocked=tuple(sorted(blocked)),
    )


def _distinct_slugs(found: Iterable[Candidate], builder: Builder) -> list[Candidate]:
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
