"""Stem and head of a model: which they are, and how a head is renewed."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, cast

from torch import nn

if TYPE_CHECKING:
    from graftwork_subspaces.net import CompressibleNet


def weighted(model: nn.Module) -> list[str]:
    """Return the names of convolutions and linear layers in order of definition."""
    return [n for n, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))]


def stem_names(model: nn.Module) -> tuple[str, ...]:
    """Return the first layer: timm's record if there is one, the first by definition otherwise."""
    return _recorded(model, "first_conv") or tuple(weighted(model)[:1])


def head_names(model: nn.Module) -> tuple[str, ...]:
    """Return the classifiers: timm's record if there is one, the last layer by definition otherwise."""
    if getattr(model, "num_classes", None) == 0:
        return ()
    recorded = _recorded(model, "classifier")
    if recorded:
        return recorded
    if hasattr(model, "get_classifier"):
        found = cast("Any", model).get_classifier()
        heads = found if isinstance(found, (tuple, list)) else [found]
        return tuple(
            n for n, m in model.named_modules() if any(m is h for h in heads) and n in weighted(model)
        )
    return tuple(weighted(model)[-1:])


def _recorded(model: nn.Module, field: str) -> tuple[str, ...]:
    cfg = getattr(model, "pretrained_cfg", None)
    value = cfg.get(field) if isinstance(cfg, dict) else getattr(cfg, field, None)
    names = (value,) if isinstance(value, str) else tuple(value or ())
    known = set(weighted(model))
    return tuple(name for name in names if name in known)


def renew_head(net: CompressibleNet, num_classes: int, global_pool: str | None) -> None:
    """Replace the classifier of a compressible network by a fresh one of the same kind and role."""
    from graftwork_subspaces.convert import put_on_subspace

    model = cast("Any", net.model)
    old = {name: layer for name, layer in net.named_layers().items() if name in head_names(net.model)}
    model.reset_classifier(num_classes, global_pool) if global_pool is not None else model.reset_classifier(
        num_classes
    )
    index = len(net.layers())
    for name in head_names(net.model):
        fresh = net.model.get_submodule(name)
        like = old.get(name)
        put_on_subspace(
            net.model,
            name,
            net.context,
            index if like is None else like.index,
            role="dense" if like is None else like.role,
            line=net.settings.subspace == "line" and net.settings.regime != "width",
        )
        layer = cast("Any", net.model.get_submodule(name))
        assert layer is not fresh
        layer.inputs = net.settings.plan.inputs.get(name, ())
        index += like is None
    net.settle()


def prefixed(matcher: Any) -> Any:
    """Return a timm group matcher for parameter names that begin with ``model.``."""
    if callable(matcher):
        return lambda name: matcher(name.removeprefix("model."))

    def move(pattern: str) -> str:
        # the anchors stand at the start of alternatives; behind the prefix they would never match
        unanchored = re.sub(r"(^|\||\()\^", r"\1", pattern)
        return rf"^model\.(?:{unanchored})"

    def convert(entry: Any) -> Any:
        if entry is None:
            return None
        return move(entry) if isinstance(entry, str) else [(move(p), suffix) for p, suffix in entry]

    return {group: convert(entry) for group, entry in matcher.items()}
