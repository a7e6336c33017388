"""timm adapter: importing this module registers every installed model variant with timm.

Example:
    >>> import timm, graftwork.timm  # doctest: +SKIP
    >>> timm.create_model("convmixer_spin")  # doctest: +SKIP

Registration imports no method code: a variant's target is imported when its model is first created. A name
that timm or another package already uses is left alone and reported.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

from timm.models import (
    PretrainedCfg,
    generate_default_cfgs,
    is_model,
    list_modules,
    model_entrypoint,
    register_model,
    resolve_pretrained_cfg,
)

from graftwork.catalog import Catalog, Entry, Problem, load, plugins, report
from graftwork.spec import ModelVariant

__all__ = ["problems", "register_all", "registered"]

_registered: dict[str, Entry] = {}
_problems: dict[tuple[str, str], Problem] = {}


def registered() -> dict[str, Entry]:
    """Return the variants that this adapter has registered, by timm name."""
    return dict(_registered)


def problems() -> tuple[Problem, ...]:
    """Return why variants of the catalogue are absent from timm."""
    return tuple(_problems.values())


def register_all(catalog: Catalog | None = None) -> list[str]:
    """Register every model variant of the catalogue that is not registered yet.

    Importing this module calls it; calling it again is harmless and picks up plugins registered since.

    Args:
        catalog: Where the variants come from; the installed plugins when None.

    Returns:
        Names registered by this call.
    """
    catalog = plugins() if catalog is None else catalog
    by_plugin: dict[str, list[Entry]] = defaultdict(list)
    for name, entry in catalog.models.items():
        if name == entry.name and _registered.get(name) != entry:
            by_plugin[entry.plugin].append(entry)
    added: list[str] = []
    for slug, entries in by_plugin.items():
        added += _register_plugin(slug, entries)
    return added


def _register_plugin(slug: str, entries: list[Entry]) -> list[str]:
    short = slug.replace("-", "_").replace(".", "_")
    module_name = f"{__name__}.{short}"
    if module_name not in sys.modules and short in list_modules():
        error = ValueError(f"timm has a model module named {short!r} already")
        _reject(entries, error, "The plugin's author must choose another slug.")
        return []
    free = [entry for entry in entries if _is_free(entry)]
    try:
        cfgs = {
            f"{entry.name}.{tag}" if tag else entry.name: PretrainedCfg(**dict(fields))
            for entry in free
            for tag, fields in _variant(entry).weights.items()
        }
        default_cfgs = generate_default_cfgs(cfgs)
    except TypeError as error:
        _reject(free, error, "A weight record holds a field that this timm's PretrainedCfg does not have.")
        return []
    # one module object per plugin, because timm reads module-level `default_cfgs` and groups by module name
    module = sys.modules.setdefault(module_name, ModuleType(module_name, f"timm variants of {slug}."))
    module.default_cfgs = {**getattr(module, "default_cfgs", {}), **default_cfgs}  # type: ignore[attr-defined]
    for entry in free:
        entrypoint = _entrypoint(_variant(entry), module_name)
        setattr(module, entry.name, entrypoint)
        register_model(entrypoint)
        _registered[entry.name] = entry
    return [entry.name for entry in free]


def _is_free(entry: Entry) -> bool:
    if not is_model(entry.name):
        return True
    owner = model_entrypoint(entry.name).__module__
    package = _variant(entry).target.partition(":")[0].partition(".")[0]
    if owner.partition(".")[0] != package:  # else the plugin registered it with timm by itself
        error = ValueError(f"the name {entry.name!r} belongs to {owner!r} already and stays there")
        _reject([entry], error, "The plugin's author must choose another name.")
    return False


def _entrypoint(variant: ModelVariant, module_name: str) -> Callable[..., Any]:
    def entrypoint(pretrained: bool = False, **kwargs: Any) -> Any:
        if pretrained:
            _require_weights(variant, kwargs)
        return load(variant)(pretrained=pretrained, **kwargs)

    entrypoint.__name__ = entrypoint.__qualname__ = variant.name
    entrypoint.__module__ = module_name
    paper = f"\n\n{variant.paper.title}, {variant.paper.url}" if variant.paper else ""
    entrypoint.__doc__ = variant.summary + paper
    return entrypoint


def _require_weights(variant: ModelVariant, kwargs: dict[str, Any]) -> None:
    cfg = resolve_pretrained_cfg(
        variant.name,
        pretrained_cfg=kwargs.get("pretrained_cfg"),
        pretrained_cfg_overlay=kwargs.get("pretrained_cfg_overlay"),
    )
    if not (cfg.has_weights or cfg.state_dict):
        raise RuntimeError(
            f"{variant.name!r} has no published weights, so pretrained=True cannot be served. Build it with "
            "pretrained=False, or name a checkpoint: pretrained_cfg_overlay=dict(file='weights.safetensors')."
        )


def _reject(entries: Iterable[Entry], error: Exception, hint: str) -> None:
    for entry in entries:
        known = _problems.get((entry.plugin, entry.name))
        problem = Problem(
            entry.plugin, f"{entry.distribution} {entry.version}".strip(), "registration", error, hint
        )
        _problems[entry.plugin, entry.name] = problem
        if known is None:
            report(problem)


def _variant(entry: Entry) -> ModelVariant:
    assert isinstance(entry.description, ModelVariant)
    return entry.description


register_all()
