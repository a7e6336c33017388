"""Putting process-wide registries back as they were: the catalogue's, the timm adapter's and timm's own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from graftwork import catalog

_ADAPTER = "graftwork.timm"
_TIMM_REGISTRY = "timm.models._registry"


@contextmanager
def preserved_catalogue() -> Iterator[None]:
    """Start with an empty catalogue and forget what was registered in this process meanwhile."""
    cached, in_process = catalog._catalog, dict(catalog._in_process)
    catalog._catalog = None
    catalog._in_process.clear()
    try:
        yield
    finally:
        catalog._catalog = cached
        catalog._in_process.clear()
        catalog._in_process.update(in_process)


@contextmanager
def preserved_timm() -> Iterator[None]:
    """Take out of timm and of the timm adapter what was registered meanwhile; imports neither."""
    tables = {name: _copy(table) for name, table in _tables(_TIMM_REGISTRY).items()}
    adapter = {name: _copy(table) for name, table in _tables(_ADAPTER).items()}
    modules = {name: module for name, module in sys.modules.items() if _is_adapter(name)}
    contents = {name: dict(vars(module)) for name, module in modules.items() if name != _ADAPTER}
    try:
        yield
    finally:
        if tables:
            _restore(_TIMM_REGISTRY, tables)
        else:  # timm was first imported inside: its own models stay
            _drop_foreign_models()
        _restore(_ADAPTER, adapter)
        for name in [name for name in sys.modules if _is_adapter(name) and name not in modules]:
            del sys.modules[name]
        for name, saved in contents.items():
            vars(modules[name]).clear()
            vars(modules[name]).update(saved)
        if _ADAPTER not in modules:
            vars(sys.modules["graftwork"]).pop("timm", None)


def _is_adapter(module_name: str) -> bool:
    return module_name == _ADAPTER or module_name.startswith(f"{_ADAPTER}.")


def _tables(module_name: str) -> dict[str, Any]:
    """Return the private dictionaries and sets of a module, if it is loaded."""
    module = sys.modules.get(module_name)
    return {
        name: value
        for name, value in (vars(module) if module else {}).items()
        if name.startswith("_") and not name.startswith("__") and isinstance(value, dict | set)
    }


def _copy(table: Any) -> Any:
    if isinstance(table, set):
        return set(table)
    return {key: type(value)(value) if type(value) in (set, list) else value for key, value in table.items()}


def _restore(module_name: str, saved: dict[str, Any]) -> None:
    current = _tables(module_name)
    for name, content in saved.items():
        current[name].clear()
        current[name].update(content)


def _drop_foreign_models() -> None:
    registry = sys.modules.get(_TIMM_REGISTRY)
    if registry is None:
        return
    foreign = {
        name
        for name, entrypoint in registry._model_entrypoints.items()
        if entrypoint.__module__.partition(".")[0] != "timm"
    }
    for table_name, table in _tables(_TIMM_REGISTRY).items():
        if table_name.startswith("_module_"):
            for models in table.values():
                for name in foreign & set(models):
                    models.remove(name) if isinstance(models, set) else models.pop(name)
            for key in [key for key, models in table.items() if not models]:
                del table[key]
            continue
        for key in [key for key in table if key.partition(".")[0] in foreign]:
            table.remove(key) if isinstance(table, set) else table.pop(key)
