"""Butterflies in any convolutional network: swap its pointwise convolutions, and swap them back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from timm.layers import Conv2dSame
from torch import nn
from torch.nn.utils import parametrize

from graftwork_butterfly.layers import ButterflyConv1x1, ButterflyLinear, Initialisation, check_backend
from graftwork_butterfly.structure import Residual, structure

DEFAULT_SKIP = ("se", "fc*", "conv_head", "head", "classifier")
"""Names left dense by default: squeeze-and-excitation and what follows the pooling."""

_HOOKS = ("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called")
_PRE_HOOKS = ("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs")


@dataclass(frozen=True)
class Replacement:
    """What :func:`replace_pointwise` did.

    Args:
        replaced: Names of the layers that are butterflies now.
        skipped: Names of the 1x1 convolutions that are not, each with the reason.
    """

    replaced: tuple[str, ...]
    skipped: dict[str, str]


def replace_pointwise(
    model: nn.Module,
    *,
    base: int = 4,
    residual: Residual = "first_last",
    init: Initialisation = "paper",
    backend: str = "auto",
    skip: Sequence[str] = DEFAULT_SKIP,
    where: Callable[[str, nn.Conv2d], bool] | None = None,
) -> Replacement:
    """Put a fresh butterfly in the place of every pointwise convolution of a model.

    The new layers keep device, dtype, bias (its values too), mode and hooks of the old ones. Their weights
    are drawn anew: a butterfly cannot represent a trained dense matrix, so the model is to be trained
    afterwards.

    Example:
        >>> import timm
        >>> model = timm.create_model("mobilenetv2_050")
        >>> done = replace_pointwise(model, where=lambda name, conv: conv.in_channels >= 32)
        >>> done.replaced[:2], done.skipped["blocks.0.0.conv_pw"]
        (('blocks.1.0.conv_pwl', 'blocks.1.1.conv_pwl'), 'left out by `where`')

    Args:
        model: Changed in place.
        base: Radix k of the stages.
        residual: Where butterflies add their input.
        init: Bound of their initial weights.
        backend: Which implementation they use.
        skip: Patterns of names to leave alone; each is matched against the full dotted name and against its
            parts.
        where: Called with name and convolution; False leaves it alone.

    Returns:
        What was replaced and what was not, with reasons. Strided, grouped or padded 1x1 convolutions, and
        those that a butterfly would make dearer, are skipped.

    Raises:
        ValueError: Nothing could be replaced, or an option is invalid.
    """
    replaced: list[str] = []
    skipped: dict[str, str] = {}
    fresh: dict[int, ButterflyConv1x1] = {}
    check_backend(backend, structure(4, 4, min(base, 4), residual))
    for parent, attribute, name, module in list(_children(model)):
        if id(module) in fresh:  # a layer used in several places stays one layer
            setattr(parent, attribute, fresh[id(module)])
            continue
        if not isinstance(module, nn.Conv2d) or tuple(module.kernel_size) != (1, 1):
            continue
        reason = _refusal(name, module, base, residual, skip, where)
        if reason:
            skipped[name] = reason
            continue
        layer = _butterfly_like(module, base, residual, init, backend)
        fresh[id(module)] = layer
        setattr(parent, attribute, layer)
        replaced.append(name)
    if not replaced:
        found = (
            "; ".join(f"{name}: {reason}" for name, reason in skipped.items()) or "it has no 1x1 convolution"
        )
        raise ValueError(
            f"no pointwise convolution of {type(model).__name__} was replaced ({found}). Check `skip` and "
            "`where`."
        )
    return Replacement(tuple(replaced), skipped)


def materialize(model: nn.Module) -> nn.Module:
    """Turn every butterfly of a model into the ordinary layer that computes the same.

    Args:
        model: Changed in place, unless it is itself a butterfly.

    Returns:
        The model.
    """
    if isinstance(model, (ButterflyConv1x1, ButterflyLinear)):
        return model.materialize()
    dense: dict[int, nn.Module] = {}
    for parent, attribute, _, module in list(_children(model)):
        if isinstance(module, (ButterflyConv1x1, ButterflyLinear)):
            setattr(parent, attribute, dense.setdefault(id(module), module.materialize()))
    return model


def no_weight_decay(model: nn.Module) -> set[str]:
    """Name the butterfly weights of a model, for a timm model's method of the same name.

    timm's optimizer factory exempts them in any case because they are vectors.
    """
    return {
        f"{name}.weight".removeprefix(".")
        for name, module in model.named_modules()
        if isinstance(module, (ButterflyConv1x1, ButterflyLinear))
    }


def _children(model: nn.Module) -> Iterator[tuple[nn.Module, str, str, nn.Module]]:
    """Yield (parent, attribute, full name, child) for every place a module is used."""
    for prefix, parent in model.named_modules():
        for attribute, child in parent._modules.items():  # named_children() leaves repeated ones out
            if child is None:
                continue
            yield parent, attribute, f"{prefix}.{attribute}".removeprefix("."), child


def _refusal(
    name: str,
    conv: nn.Conv2d,
    base: int,
    residual: Residual,
    skip: Sequence[str],
    where: Callable[[str, nn.Conv2d], bool] | None,
) -> str:
    """Say why a 1x1 convolution is not to be replaced, or return an empty string."""
    for pattern in skip:
        if any(fnmatchcase(part, pattern) for part in (name, *name.split("."))):
            return f"left out by the pattern {pattern!r} of `skip`"
    if type(conv) not in (nn.Conv2d, Conv2dSame):
        return f"a {type(conv).__name__} may treat its weight in its own way"
    if parametrize.is_parametrized(conv) or "weight" not in conv._parameters:
        return "its weight is parametrized"
    if tuple(conv.stride) != (1, 1):
        return f"stride {tuple(conv.stride)}; a butterfly has stride 1"
    if conv.groups != 1:
        return f"{conv.groups} groups; a butterfly mixes all channels"
    if conv.padding not in ("same", "valid") and tuple(conv.padding) != (0, 0):
        return f"padding {conv.padding}; a butterfly keeps the size of the map"
    if min(conv.in_channels, conv.out_channels) < 2:
        return f"{conv.in_channels} to {conv.out_channels} channels; a butterfly needs two on either side"
    macs, dense = structure(conv.in_channels, conv.out_channels, base, residual).weights, conv.weight.numel()
    if macs > dense:
        return f"a butterfly costs {macs} multiplications per pixel, the convolution {dense}"
    if where is not None and not where(name, conv):
        return "left out by `where`"
    return ""


def _butterfly_like(
    conv: nn.Conv2d, base: int, residual: Residual, init: Initialisation, backend: str
) -> ButterflyConv1x1:
    layer = ButterflyConv1x1(
        conv.in_channels,
        conv.out_channels,
        base,
        residual,
        init,
        backend,
        bias=conv.bias is not None,
        device=conv.weight.device,
        dtype=conv.weight.dtype,
    )
    layer.weight.requires_grad_(conv.weight.requires_grad)
    if conv.bias is not None and layer.bias is not None:
        with torch.no_grad():
            layer.bias.copy_(conv.bias)
        layer.bias.requires_grad_(conv.bias.requires_grad)
    for attribute in (*_HOOKS, *_PRE_HOOKS):  # timm's feature extractors hook the layers they read
        setattr(layer, attribute, getattr(conv, attribute))
    return layer.train(conv.training)
