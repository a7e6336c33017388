"""The scale table: which image sizes are trained on, and how many images of each fit one step.

Notation: a scale s has height H_s, width W_s, area A_s = H_s W_s and batch b_s, counted per rank. The base
scale is (H_0, W_0) with batch b; the pixel budget of a step is B = H_0 W_0 b.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

Size = int | Sequence[int]


class Scale(NamedTuple):
    """One row of the table.

    Args:
        height: Pixels.
        width: Pixels.
        batch: Images per step and rank.
    """

    height: int
    width: int
    batch: int


class ScaleError(ValueError):
    """Sizes, divisor or batch that give no usable table."""


def make_divisible(value: Fraction | float, divisor: int) -> int:
    """Round to the nearest multiple, ties up, never losing more than a tenth.

    Example:
        >>> make_divisible(300, 32), make_divisible(208, 32)
        (288, 224)

    Args:
        value: Pixels.
        divisor: What the result is a multiple of.

    Returns:
        The multiple, at least `divisor`.
    """
    exact = Fraction(value)
    multiple = max(divisor, math.floor((exact + Fraction(divisor, 2)) / divisor) * divisor)
    return multiple + divisor if 10 * multiple < 9 * exact else multiple


def scale_table(
    base_size: Size,
    base_batch: int,
    min_size: Size,
    max_size: Size,
    max_scales: int = 5,
    divisor: int = 32,
    *,
    pixel_budget: float | None = None,
    cost_model: str | Mapping[str, Any] = "area",
    model_stride: int = 1,
    min_batch: int = 1,
) -> list[Scale]:
    """Build the scale table: evenly spaced sizes, each with the batch that fits the budget of the base.

    Example:
        >>> [(s.height, s.batch) for s in scale_table(224, 128, 128, 320, max_scales=5)]
        [(128, 392), (192, 174), (224, 128), (288, 77), (320, 62)]

    Args:
        base_size: Side of the base scale, or (height, width), in pixels. It is rounded like every other side,
            but the budget is computed from the size as given.
        base_batch: Images per step and rank at the base scale.
        min_size: Smallest side. For a base that is not square it refers to the longer side and the other one
            follows from the aspect ratio; of a pair the entry of the longer side counts.
        max_size: Largest side, likewise.
        max_scales: Number of evenly spaced sizes before the base is added and rounding merges neighbours.
        divisor: Every side is a multiple of it.
        pixel_budget: Pixels per step and rank, in place of H_0 W_0 b. To state the batch at the largest scale
            instead of the base, pass its pixels times that batch.
        cost_model: What b_s images may cost together: ``"area"``, pixels; or
            ``{"type": "affine", "fixed": c0, "at_base": c1}``, a cost per image (RoI heads) besides the one
            that grows with the area; or ``{"type": "table", "costs": [...]}``, the measured cost of one image
            at every scale, smallest first. Only ratios matter.
        model_stride: The sides the model takes are multiples of it (64 for a feature pyramid with five
            levels, the patch size of a vision transformer).
        min_batch: Smallest batch that the model can be trained with; 2 with batch normalisation.

    Returns:
        Scales, smallest first, without duplicates, the base among them.

    Raises:
        ScaleError: No usable table comes out, with the reason.

    Source: the sampler of the authors' library, whose tables are reproduced exactly.

    Note:
        Three defects of that construction are mended: the batch is the plain floor of B / A_s and never
        exceeds the budget; sides of other aspect ratios come from one list of factors, so pairs keep the
        ratio and the base is never lost; a divisor that the model cannot take is refused.
    """
    base = _pair(base_size, "base_size")
    longer = 0 if base[0] > base[1] else 1
    low, high = _pair(min_size, "min_size")[longer], _pair(max_size, "max_size")[longer]
    _check_range(base, longer, low, high, divisor, model_stride)
    if max_scales < 1:
        raise ScaleError(f"max_scales is {max_scales}; at least 1 is needed.")
    if base_batch < 1:
        raise ScaleError(f"base_batch is {base_batch}; it is the number of images per step, at least 1.")
    # fractions, because a side that lies between two multiples must round the same way on every machine
    spaced = (low + Fraction(i * (high - low), max(1, max_scales - 1)) for i in range(max_scales))
    sides = {*spaced, Fraction(base[longer])}
    sizes = sorted({_rounded(base, side / base[longer], divisor) for side in sides})
    batches = _batches(sizes, base, base_batch, divisor, pixel_budget, cost_model)
    table = [Scale(height, width, batch) for (height, width), batch in zip(sizes, batches, strict=True)]
    small = [scale for scale in table if scale.batch < min_batch]
    if small:
        raise ScaleError(
            f"at {small[0].height}x{small[0].width} the budget holds {small[0].batch} images per step, "
            f"fewer than min_batch={min_batch}. Raise the base batch ({base_batch}) or lower max_size "
            f"({max_size})."
        )
    return table


def effective_base(base_size: Size, divisor: int) -> tuple[int, int]:
    """Return the (height, width) that the base scale has in the table, after rounding.

    Example:
        >>> effective_base(300, 32)
        (288, 288)
    """
    return _rounded(_pair(base_size, "base_size"), Fraction(1), divisor)


def base_index(scales: Sequence[Scale], base_size: Size, divisor: int) -> int:
    """Return the position of the base scale in a table built with the same arguments."""
    return [(scale.height, scale.width) for scale in scales].index(effective_base(base_size, divisor))


def _rounded(base: tuple[int, int], factor: Fraction, divisor: int) -> tuple[int, int]:
    return make_divisible(factor * base[0], divisor), make_divisible(factor * base[1], divisor)


def _pair(size: Size, name: str) -> tuple[int, int]:
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or not all(isinstance(side, int) and side > 0 for side in pair):
        raise ScaleError(f"{name} must be a side or (height, width) in whole pixels, got {size!r}.")
    return pair[0], pair[1]


def _check_range(base: tuple[int, int], longer: int, low: int, high: int, divisor: int, stride: int) -> None:
    if divisor < 1 or stride < 1:
        raise ScaleError(f"divisor and model_stride are positive, got {divisor} and {stride}.")
    if divisor % stride:
        raise ScaleError(
            f"divisor {divisor} is no multiple of the model's stride {stride}, so feature maps would be "
            f"cropped. Take divisor={math.lcm(divisor, stride)} or {stride}."
        )
    if low < divisor:
        below = "the model's stride" if divisor == stride else "the divisor"
        raise ScaleError(f"min_size {low} is below {below}, {divisor}: images would vanish. Raise min_size.")
    if low > high:
        raise ScaleError(f"min_size {low} is larger than max_size {high}; swap them.")
    if not low <= base[longer] <= high:
        raise ScaleError(
            f"the base side {base[longer]} lies outside the range {low} to {high}. The base is the size "
            "the model is tested at and always trained on; widen the range or choose another base."
        )


def _batches(
    sizes: Sequence[tuple[int, int]],
    base: tuple[int, int],
    base_batch: int,
    divisor: int,
    pixel_budget: float | None,
    cost_model: str | Mapping[str, Any],
) -> list[int]:
    kind = cost_model if isinstance(cost_model, str) else cost_model.get("type")
    options = {} if isinstance(cost_model, str) else {k: v for k, v in cost_model.items() if k != "type"}
    if kind == "area" and not options:
        budget = base[0] * base[1] * base_batch if pixel_budget is None else pixel_budget
        if budget <= 0:
            raise ScaleError(f"pixel_budget is {budget}; it is the number of pixels per step.")
        return [max(1, _floor(Fraction(budget) / (height * width))) for height, width in sizes]
    if pixel_budget is not None:
        raise ScaleError(
            f"pixel_budget counts pixels, cost_model={cost_model!r} counts something else; drop one."
        )
    cost = _image_cost(kind, options, sizes, base)
    at_base = sizes.index(_rounded(base, Fraction(1), divisor)) if kind == "table" else None
    budget = base_batch * (cost(at_base, base) if at_base is not None else cost(0, base))
    return [max(1, _floor(budget / cost(i, size))) for i, size in enumerate(sizes)]


def _floor(value: Fraction | float) -> int:
    # a float budget may lie a rounding error below a whole number of images
    return math.floor(value) if isinstance(value, Fraction) else math.floor(value + 1e-9)


def _image_cost(
    kind: object, options: Mapping[str, Any], sizes: Sequence[tuple[int, int]], base: tuple[int, int]
) -> Callable[[int, tuple[int, int]], float]:
    """Return (position, size) -> cost of one image."""
    if kind == "affine" and set(options) == {"fixed", "at_base"}:
        fixed, at_base = float(options["fixed"]), float(options["at_base"])
        if fixed >= 0 and at_base > 0:
            return lambda _, size: fixed + at_base * size[0] * size[1] / (base[0] * base[1])
        raise ScaleError(f"affine costs are not negative and at_base is positive, got {fixed} and {at_base}.")
    if kind == "table" and set(options) == {"costs"}:
        costs = [float(cost) for cost in options["costs"]]
        if len(costs) == len(sizes) and min(costs) > 0:
            return lambda position, _: costs[position]
        raise ScaleError(
            f"a cost table holds one positive cost per scale, smallest scale first: {len(sizes)} for "
            f"{', '.join(f'{h}x{w}' for h, w in sizes)}; got {costs}."
        )
    raise ScaleError(
        f"unknown cost_model {kind!r} with {dict(options)}. Write 'area', "
        "{'type': 'affine', 'fixed': c0, 'at_base': c1} or {'type': 'table', 'costs': [...]}."
    )
