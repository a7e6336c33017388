"""The subspace itself: a line between two sets of weights, or a single point.

Notation: ``weight`` is the accurate end (position 1), ``weight_compressed`` the compressed end (position 0).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn

SUFFIX = "_compressed"
DELTA = "_delta"
"""Accurate end minus compressed end, where the ends are stored in half precision."""
Init = Literal["independent", "near", "upstream"]


def interpolate(compressed: Tensor, accurate: Tensor, position: Tensor) -> Tensor:
    """Return the point (1 - position) * compressed + position * accurate of the line.

    Both ends are met bit for bit.

    Args:
        compressed: End at position 0.
        accurate: End at position 1, same shape.
        position: 0-dimensional.

    Returns:
        Tensor of the same shape. Source: section 1 of the paper, omega*(alpha).
    """
    return torch.lerp(compressed, accurate, position.to(compressed))


def cosine_squared(pairs: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Return the squared cosine between the two ends of a line, all layers taken as one vector.

    Training adds it to the loss so that the ends stay apart; otherwise the line shrinks to a point.

    Args:
        pairs: The two ends of each layer.

    Returns:
        0-dimensional tensor in [0, 1]. Source: Eq. 3.

    Raises:
        ValueError: There is no pair, as for a point.
    """
    dot = norm_a = norm_b = None
    for a, b in pairs:
        products = ((a * b).sum(), a.square().sum(), b.square().sum())
        if dot is None:
            dot, norm_a, norm_b = products
        else:
            dot, norm_a, norm_b = dot + products[0], norm_a + products[1], norm_b + products[2]
    if dot is None:
        raise ValueError("cosine_squared needs at least one pair of ends; a point subspace has none.")
    return dot.square() / (norm_a * norm_b).clamp_min(torch.finfo(dot.dtype).tiny)


def add_end(module: nn.Module, name: str, init: Init) -> None:
    """Give a parameter of a module its second, compressed end.

    Args:
        module: Owner of the parameter.
        name: Parameter that becomes the accurate end.
        init: ``"independent"``: an independent normal draw of the same deviation, constants copied.
            ``"near"``: the accurate end plus 1 % noise, to start from trained weights. ``"upstream"``: both
            ends drawn as the published code draws them, see the note.

    Note:
        ``"upstream"`` keeps an asymmetry that looks accidental: the compressed end keeps Kaiming's fan-in
        draw and a norm scale of 1, the accurate end gets the fan-out draw and a norm scale of 0.5.
    """
    accurate = getattr(module, name)
    if accurate is None:
        module.register_parameter(name + SUFFIX, None)
        return
    values = accurate.detach()
    constant = bool((values == values.flatten()[0]).all()) if values.device.type != "meta" else True
    if init == "upstream":
        other = _upstream_ends(module, name, values)
    elif constant:
        other = values.clone()
    elif init == "near":
        other = values + 0.01 * values.std() * torch.randn_like(values)
    else:
        other = values.std() * torch.randn_like(values)
    module.register_parameter(name + SUFFIX, nn.Parameter(other, requires_grad=accurate.requires_grad))


def _upstream_ends(module: nn.Module, name: str, values: Tensor) -> Tensor:
    """Redraw the accurate end in place and return the compressed one."""
    if name == "bias":
        values.zero_()
        return torch.zeros_like(values)
    if values.ndim == 1:
        values.fill_(0.5)
        return torch.ones_like(values)
    fan_in = values[0].numel()
    receptive = values[0, 0].numel()
    other = torch.randn_like(values) * math.sqrt(2 / fan_in)
    values.normal_(0, math.sqrt(2 / (receptive * values.shape[0])))
    return other
