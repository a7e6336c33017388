"""What the installed plugins offer: discovered once per process, each plugin isolated from the others.

A plugin that cannot be read, imported or understood is dropped and recorded as a :class:`Problem`; every
other plugin stays usable. ``GRAFTWORK_STRICT=1`` raises instead. No framework and no method code is imported
here except by :func:`load`.
"""

from __future__ import annotations

import importlib
import os
import threading
import traceback
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from graftwork.discovery import ALLOW_VARIABLE
from graftwork.spec import Component, Method, ModelVariant, RenderBackend, SceneMethod

STRICT_VARIABLE = "GRAFTWORK_STRICT"

Description = ModelVariant | Component | SceneMethod | RenderBackend
Stage = Literal["metadata", "setting", "version", "import", "hook", "collision", "registration"]

KINDS = ("models", "components", "scenes", "backends")


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
        for kind in KINDS:
            for name, entry in getattr(self, kind).items():
                yield kind, name, entry

    def find(self, name: str) -> list[tuple[str, str, Entry]]:
        """Return every (kind, name, entry) that answers to a name, with or without the plugin's slug."""
        return [hit for hit in self if name in (hit[1], f"{hit[2].plugin}/{hit[2].name}", hit[2].name)]


_lock = threading.RLock()
_catalog: Catalog | None = None
_selection: str | None = None  # the allow and block list that the cached answer was made with
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
    global _catalog, _selection
    with _lock:
        selection = os.environ.get(ALLOW_VARIABLE)
        if _catalog is None or reload or selection != _selection:
            from graftwork.assembly import assemble

            catalog = assemble(_in_process)
            for problem in catalog.problems:
                report(problem)
            _catalog, _selection = catalog, selection
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
