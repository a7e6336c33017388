"""Which stored tensor each layer computes with.

Notation of the paper (arXiv 2207.10237): L layers, P stored tensors, share rate r = L / P, and the sharing
mapping m from layer to tensor. Standard library only.
"""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Sequence

MAPPINGS = ("sequential", "strided", "random")
DISTRIBUTIONS = ("uniform", "front", "middle", "back", "pyramid")


def sharing_mapping(
    depth: int,
    rate: int = 2,
    mapping: str | Sequence[int] = "sequential",
    distribution: str = "uniform",
    *,
    seed: int = 0,
) -> tuple[int, ...]:
    """Work out the tensor index of every layer.

    Example:
        >>> sharing_mapping(6, 2)
        (0, 0, 1, 1, 2, 2)
        >>> sharing_mapping(6, 2, "strided")
        (0, 1, 2, 0, 1, 2)
        >>> sharing_mapping(8, 2, distribution="front")
        (0, 0, 0, 1, 1, 1, 2, 3)

    Args:
        depth: Number of layers L.
        rate: Share rate r, from 1 (nothing shared) to L (one tensor for all). Where r does not divide L, the
            last group is smaller and a warning says so.
        mapping: ``"sequential"`` (neighbours share), ``"strided"`` (layers l, l + P, ... share), ``"random"``
            (a seeded permutation of sequential) or the tensor index of every layer, which then replaces
            `rate` and `distribution`.
        distribution: Where sharing happens. ``"uniform"``: everywhere. ``"front"``, ``"middle"``, ``"back"``:
            groups of about r + 1 layers in that region, the other layers private. ``"pyramid"``: in the
            middle, with the largest groups at its centre. P is the same for all five.
        seed: Of ``"random"``.

    Returns:
        L tensor indices, covering 0 to P - 1.

    Raises:
        ValueError: An argument is out of range or unknown.

    Note:
        The paper compares distributions at P = L / 2. Groups of r + 1 layers are this package's choice; at a
        depth of 32 they leave 8 layers private. The released code offers the uniform mappings only, and its
        random one does not run.
    """
    if depth < 1:
        raise ValueError(f"depth must be at least 1, got {depth}.")
    if not isinstance(mapping, str):
        return _explicit(depth, mapping, distribution)
    if isinstance(rate, bool) or not isinstance(rate, int) or not 1 <= rate <= depth:
        raise ValueError(
            f"rate must be a whole number from 1 (nothing shared) to the depth {depth} (one tensor for all "
            f"layers), got {rate!r}."
        )
    if mapping not in MAPPINGS:
        raise ValueError(
            f"mapping must be one of {', '.join(MAPPINGS)} or a list of {depth} indices, got {mapping!r}."
        )
    if distribution not in DISTRIBUTIONS:
        raise ValueError(f"distribution must be one of {', '.join(DISTRIBUTIONS)}, got {distribution!r}.")
    if rate == 1:
        return tuple(range(depth))
    stored = math.ceil(depth / rate)
    if depth % rate:
        last = depth - rate * (stored - 1)
        warnings.warn(
            f"rate {rate} does not divide the depth {depth}: {stored} tensors are stored, and a uniform "
            f"distribution ends in a smaller group of {last} layer(s).",
            stacklevel=2,
        )
    before, sizes, after = _regions(depth, rate, stored, distribution)
    shared = _assign(sizes, mapping, seed)
    return (
        *range(before),
        *(before + index for index in shared),
        *range(before + len(sizes), before + len(sizes) + after),
    )


def groups_of(mapping: Sequence[int]) -> list[list[int]]:
    """Invert a mapping: the layers S_i that share each tensor i.

    Example:
        >>> groups_of((0, 1, 0, 1))
        [[0, 2], [1, 3]]

    Args:
        mapping: Tensor index of every layer.

    Returns:
        For each tensor its layers, in order of depth.
    """
    groups: list[list[int]] = [[] for _ in range(max(mapping, default=-1) + 1)]
    for layer, index in enumerate(mapping):
        groups[index].append(layer)
    return groups


def _explicit(depth: int, mapping: Sequence[int], distribution: str) -> tuple[int, ...]:
    indices = tuple(int(index) for index in mapping)
    if len(indices) != depth:
        raise ValueError(
            f"mapping has {len(indices)} entries, but the network has {depth} layers: give one index each."
        )
    if distribution != "uniform":
        raise ValueError(
            f"an explicit mapping already says where sharing happens, so distribution={distribution!r} "
            "cannot apply: leave distribution out."
        )
    missing = set(range(max(indices) + 1)) - set(indices)
    if min(indices) < 0 or missing:
        raise ValueError(
            f"mapping must use every tensor index from 0 to P - 1, got {list(indices)}"
            + (f"; {sorted(missing)} is never used." if missing else "; negative indices have no meaning.")
        )
    return indices


def _regions(depth: int, rate: int, stored: int, distribution: str) -> tuple[int, list[int], int]:
    """Split the depth into private layers, the sizes of the shared groups, and private layers again."""
    if distribution == "uniform":
        return 0, [rate] * (stored - 1) + [depth - rate * (stored - 1)], 0
    if distribution == "pyramid":
        sizes = _pyramid(depth, stored)
    else:
        # k groups in a region of s layers and L - s private layers must store P tensors: s = L - P + k.
        # Groups of r + 1 layers give k = (L - P) / r.
        count = max(1, round((depth - stored) / rate))
        length = depth - stored + count
        sizes = [length // count + (i < length % count) for i in range(count)]
    private = stored - len(sizes)
    before = {"front": 0, "back": private}.get(distribution, private // 2)
    return before, sizes, private - before


def _pyramid(depth: int, stored: int) -> list[int]:
    """Group sizes in proportion 1 : 2 : 4 : 2 : 1, the remainder at the centre."""
    for steps in ((1, 2, 4, 2, 1), (1, 2, 1)):
        length = depth - stored + len(steps)
        unit = length // sum(steps)
        # Rounding down must leave every group shared by at least two layers.
        sizes = [max(2, unit * step) for step in steps]
        centre = len(sizes) // 2
        sizes[centre] += length - sum(sizes)
        if len(steps) <= stored and sizes[centre] > max(sizes[:centre]):
            return sizes
    return [depth - stored + 1]


def _assign(sizes: list[int], mapping: str, seed: int) -> list[int]:
    """Give every layer of the shared region its group."""
    if mapping == "strided":
        left, order = list(sizes), []
        while any(left):
            for index, remaining in enumerate(left):
                if remaining:
                    order.append(index)
                    left[index] -= 1
        return order
    order = [index for index, size in enumerate(sizes) for _ in range(size)]
    if mapping == "random":
        # Sorting by random() is reproducible on every Python version; random.shuffle is not promised to be.
        draw = random.Random(seed)
        order = [index for _, index in sorted((draw.random(), index) for index in order)]
    return order
