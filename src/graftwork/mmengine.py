"""mmengine adapter: every component of the catalogue under ``type='graftwork.<Name>'``, from any scope.

Example:
    >>> batch_sampler = dict(type="graftwork.MultiScaleBatchSampler", base_size=1024)  # doctest: +SKIP

No ``custom_imports`` is needed: mmengine imports :mod:`graftwork.registry` for the unknown scope, and that
imports this module at the first look-up. A component's code is imported when it is first built.

Importing this module also tells torch which globals mmengine's checkpoints need, so that they load with
``weights_only`` left on. A config that names nothing of ours, such as one for inference, gets that by
``custom_imports=dict(imports=["graftwork.mmengine"])``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from difflib import get_close_matches
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.registry import Registry

from graftwork.catalog import Catalog, Entry, Problem, load, plugins
from graftwork.registry import REGISTRIES, SCOPE
from graftwork.spec import Component

__all__ = ["UnknownComponent", "findings", "problems", "provide", "registered"]

_registered: dict[str, Entry] = {}
_problems: dict[str, Problem] = {}


class UnknownComponent(KeyError):
    """A name under the scope ``graftwork`` that no installed plugin offers."""

    def __str__(self) -> str:
        return str(self.args[0])  # KeyError would quote the sentence


def registered() -> dict[str, Entry]:
    """Return the components that were imported and registered so far, by name."""
    return dict(_registered)


def problems() -> tuple[Problem, ...]:
    """Return why components that were asked for could not be imported."""
    return tuple(_problems.values())


def provide(registry: Registry, name: str) -> None:
    """Import one component of the catalogue and register it.

    Args:
        registry: Where it was looked up.
        name: Without the scope.

    Raises:
        UnknownComponent: No installed plugin offers it for this registry.
        LoadError: Its code cannot be imported; the cause is chained.
    """
    catalog = plugins()
    entry = catalog.components.get(name)
    if entry is None or REGISTRIES[_component(entry).kind] is not registry:
        raise UnknownComponent(_explain(registry, name, entry, catalog))
    try:
        found = load(entry.description)
    except ImportError as error:
        hint = f"`graftwork doctor {entry.plugin}` shows the traceback."
        where = f"{entry.distribution} {entry.version}".strip()
        _problems[name] = Problem(entry.plugin, where, "registration", error, hint)
        raise
    registry.register_module(name=name, module=found, force=True)
    _registered[name] = entry
    _problems.pop(name, None)


def _component(entry: Entry) -> Component:
    assert isinstance(entry.description, Component)
    return entry.description


def _explain(registry: Registry, name: str, entry: Entry | None, catalog: Catalog) -> str:
    asked = f"'{SCOPE}.{name}'"
    if entry is not None:
        return (
            f"{asked} is a {_component(entry).kind.replace('_', ' ')}, but was looked up as a "
            f"{registry.name}; "
            "it stands in the wrong place of the config."
        )
    claims = sorted(e.plugin for key, e in catalog.components.items() if key != e.name and e.name == name)
    if claims:
        return (
            f"{asked} is claimed by the plugins {' and '.join(claims)}, so none of them gets the name. "
            "Uninstall "
            f"one of them or block it, such as GRAFTWORK_PLUGINS=-{claims[0]}."
        )
    known = [key for key, e in catalog.components.items() if REGISTRIES[_component(e).kind] is registry]
    close = get_close_matches(name, known, n=1)
    text = f"no installed plugin offers a {registry.name} {asked}; "
    text += f"did you mean '{SCOPE}.{close[0]}'?" if close else f"there is: {', '.join(known) or 'nothing'}."
    failed = [str(problem) for problem in catalog.problems if problem.fatal]
    failed += [f"plugin {slug!r} is blocked by GRAFTWORK_PLUGINS" for slug in catalog.blocked]
    return text + (" Not available: " + "; ".join(failed) if failed else "")


def _history_method(owner: type, name: str) -> Callable[..., Any]:
    """Stand in for ``getattr`` in checkpoints, which mmengine uses to pickle methods of its HistoryBuffer."""
    if owner is not HistoryBuffer or name not in ("min", "max", "mean", "current"):
        raise ValueError(f"the checkpoint asks for {name!r} of {owner!r}, which is not among what is safe.")
    method: Callable[..., Any] = getattr(HistoryBuffer, name)
    return method


def allow_checkpoint_globals() -> None:
    """Let ``torch.load(weights_only=True)`` read mmengine's own checkpoints and nothing beyond.

    They hold numpy scalars and arrays and the history of losses. The names are given for files written under
    numpy 1 as well as numpy 2.
    """
    core = np._core if hasattr(np, "_core") else np.core
    multiarray = core.multiarray
    allowed: list[Any] = [
        HistoryBuffer,
        (_history_method, "builtins.getattr"),
        np.ndarray,
        np.dtype,
        *{type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64, np.int32, np.bool_)},
    ]
    for function in ("scalar", "_reconstruct"):
        for package in ("numpy._core", "numpy.core"):
            allowed.append((getattr(multiarray, function), f"{package}.multiarray.{function}"))
    torch.serialization.add_safe_globals(allowed)


def findings(
    catalog: Catalog, plugin: str | None = None
) -> Iterator[tuple[Literal["ok", "note", "error"], str, str]]:
    """Check that every component can be built by its scoped name; for ``graftwork doctor``.

    Args:
        catalog: What the installed plugins offer.
        plugin: Only this plugin.

    Yields:
        (level, text, fix).
    """
    wanted = {
        name: _component(entry)
        for name, entry in catalog.components.items()
        if name == entry.name and plugin in (None, entry.plugin)
    }
    built = []
    for name, component in wanted.items():
        root = REGISTRIES[component.kind].parent
        try:
            root.get(f"{SCOPE}.{name}")
        except Exception as error:
            cause = error.__cause__ or error
            yield (
                "error",
                f"type='{SCOPE}.{name}' cannot be built: {type(cause).__name__}: {cause}",
                str(error),
            )
        else:
            built.append(f"{SCOPE}.{name}")
    if built:
        yield "ok", f"usable in configs: {', '.join(built)}", ""
    if plugin is None:
        yield from _operators()


def _operators() -> Iterator[tuple[Literal["ok", "note", "error"], str, str]]:
    """Say who serves mmcv's operators, without which mmdet's models cannot be imported."""
    if find_spec("mmdet") is None or find_spec("mmcv") is None:
        return
    spec = find_spec("mmcv._ext")
    if spec is None:
        yield (
            "note",
            "mmcv-lite has no operators: mmdet's models cannot be imported (No module named 'mmcv._ext')",
            "`pip install graftwork-mmcv-ops` serves those of Mask R-CNN; others need full mmcv, compiled.",
        )
    elif (spec.origin or "").endswith(".py"):
        yield "ok", "mmcv's operators are served by graftwork-mmcv-ops, on torchvision", ""
    else:
        yield "ok", "mmcv's operators are compiled", ""


allow_checkpoint_globals()
