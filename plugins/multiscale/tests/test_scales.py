"""The scale table: published tables bit for bit, the pixel budget, other aspect ratios, bad input."""

from __future__ import annotations

import pytest

from graftwork_multiscale import ScaleError, effective_base, make_divisible, scale_table

# (base, base batch, min, max, max scales, divisor) -> side: batch, from the configurations of the authors'
# library
PUBLISHED = {
    "resnet, 10 scales": (
        (224, 128, 128, 320, 10, 32),
        {128: 392, 160: 250, 192: 174, 224: 128, 256: 98, 288: 77, 320: 62},
    ),
    "classification, 5 scales": (
        (224, 128, 128, 320, 5, 32),
        {128: 392, 192: 174, 224: 128, 288: 77, 320: 62},
    ),
    "vit, 25 scales": (
        (224, 128, 128, 320, 25, 32),
        {128: 392, 160: 250, 192: 174, 224: 128, 256: 98, 288: 77, 320: 62},
    ),
    "mobilevit": ((256, 128, 160, 320, 5, 32), {160: 327, 192: 227, 256: 128, 288: 101, 320: 81}),
    "mask r-cnn, batch 4": (
        (1024, 4, 512, 1280, 10, 32),
        {512: 16, 608: 11, 672: 9, 768: 7, 864: 5, 928: 4, 1024: 4, 1120: 3, 1184: 2, 1280: 2},
    ),
    "mask r-cnn, batch 2": (
        (1024, 2, 512, 1280, 10, 32),
        {512: 8, 608: 5, 672: 4, 768: 3, 864: 2, 928: 2, 1024: 2, 1120: 1, 1184: 1, 1280: 1},
    ),
}
RANGES = [
    ((224, 160), 7, 96, 320, 9, 16),
    ((160, 224), 7, 96, 320, 9, 16),
    (300, 24, 128, 448, 12, 32),
    (64, 1, 16, 128, 20, 8),
    ((1333, 800), 2, 640, 1600, 6, 64),
]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_tables_are_reproduced_exactly(name: str) -> None:
    arguments, expected = PUBLISHED[name]
    assert scale_table(*arguments) == [(side, side, batch) for side, batch in expected.items()]


@pytest.mark.parametrize("arguments", [*RANGES, *(arguments for arguments, _ in PUBLISHED.values())])
def test_a_table_is_sorted_unique_divisible_and_holds_the_base(arguments: tuple) -> None:
    table = scale_table(*arguments)
    sizes = [(scale.height, scale.width) for scale in table]
    assert sizes == sorted(set(sizes))
    assert all(side % arguments[5] == 0 for size in sizes for side in size)
    assert effective_base(arguments[0], arguments[5]) in sizes


@pytest.mark.parametrize("arguments", [*RANGES, *(arguments for arguments, _ in PUBLISHED.values())])
def test_every_batch_is_the_largest_within_the_pixel_budget(arguments: tuple) -> None:
    base, batch = arguments[0], arguments[1]
    budget = (base * base if isinstance(base, int) else base[0] * base[1]) * batch
    for scale in scale_table(*arguments):
        area = scale.height * scale.width
        assert scale.batch == 1 or scale.batch * area <= budget
        assert (scale.batch + 1) * area > budget


def test_batches_stay_within_the_budget_where_rounding_to_two_decimals_leaves_it() -> None:
    # 300 * 300 * 479 / 320**2 = 420.996: the original construction takes 421 images
    batches = {scale.height: scale.batch for scale in scale_table(300, 479, 128, 320, 5)}
    assert int(round(300 * 300 * 479 / 320**2, 2)) == 421
    assert batches[320] == 420


@pytest.mark.parametrize("base", [(224, 320), (320, 224), (256, 320)])
def test_other_aspect_ratios_keep_their_ratio_and_their_base(base: tuple[int, int]) -> None:
    table = scale_table(base, 8, 128, 320, 5)
    assert [scale[:2] for scale in table].count(base) == 1
    for scale in table:  # both sides are within half a step of the same factor
        factor = max(scale.height, scale.width) / max(base)
        assert abs(scale.height - factor * base[0]) <= 32
        assert abs(scale.width - factor * base[1]) <= 32
    assert max(max(scale.height, scale.width) for scale in table) == 320


def test_a_pair_as_range_refers_to_the_longer_side() -> None:
    assert scale_table((256, 320), 8, (160, 192), (320, 448)) == scale_table((256, 320), 8, 192, 448)


def test_the_base_is_rounded_but_its_budget_is_not() -> None:
    assert effective_base(300, 32) == (288, 288)
    table = {scale.height: scale.batch for scale in scale_table(300, 13, 128, 320, 5)}
    assert table[288] == 300 * 300 * 13 // (288 * 288) == 14


@pytest.mark.parametrize(
    ("value", "expected"), [(300, 288), (208, 224), (16, 32), (47, 64), (1, 32), (79, 96)]
)
def test_rounding_goes_to_the_nearest_multiple_without_losing_a_tenth(value: int, expected: int) -> None:
    assert make_divisible(value, 32) == expected


def test_a_pixel_budget_states_the_batch_at_the_largest_scale() -> None:
    table = scale_table(224, 128, 128, 320, 5, pixel_budget=320 * 320 * 64)
    assert [scale.batch for scale in table] == [320 * 320 * 64 // scale.height**2 for scale in table]
    assert table[-1].batch == 64


def test_affine_costs_count_what_every_image_costs_besides_its_area() -> None:
    # RoI heads cost per image: the figures are those of a Mask R-CNN with ResNet-101, in GMACs
    cost = {"type": "affine", "fixed": 133.8, "at_base": 325.8}
    table = scale_table(1024, 4, 512, 1280, 10, cost_model=cost)
    assert [scale.batch for scale in table] == [8, 7, 6, 5, 5, 4, 4, 3, 3, 2]
    assert scale_table(224, 8, 128, 320, cost_model={"type": "affine", "fixed": 0, "at_base": 5}) == (
        scale_table(224, 8, 128, 320)
    )


def test_measured_costs_replace_the_area() -> None:
    table = scale_table(64, 10, 32, 96, 3, 32, cost_model={"type": "table", "costs": [2, 5, 10]})
    assert table == [(32, 32, 25), (64, 64, 10), (96, 96, 5)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_size": 16}, "below the divisor, 32"),
        ({"min_size": 32, "model_stride": 64, "divisor": 64}, "below the model's stride, 64"),
        ({"base_size": 352}, "outside the range 128 to 320"),
        ({"base_size": 96}, "outside the range"),
        ({"divisor": 32, "model_stride": 14}, "no multiple of the model's stride 14"),
        ({"base_batch": 0}, "at least 1"),
        ({"base_batch": 3, "min_batch": 2}, "fewer than min_batch=2"),
        ({"min_size": 320, "max_size": 128}, "swap them"),
        ({"max_scales": 0}, "at least 1"),
        ({"base_size": (224, 224, 3)}, "side or \\(height, width\\)"),
        ({"cost_model": "flops"}, "unknown cost_model 'flops'"),
        ({"cost_model": {"type": "affine", "fixed": 1}}, "unknown cost_model 'affine'"),
        ({"cost_model": {"type": "table", "costs": [1, 2]}}, "one positive cost per scale"),
        ({"cost_model": {"type": "affine", "fixed": 1, "at_base": 1}, "pixel_budget": 5}, "drop one"),
        ({"pixel_budget": 0}, "number of pixels per step"),
    ],
)
def test_impossible_tables_are_refused_with_the_reason(options: dict, message: str) -> None:
    arguments = {"base_size": 224, "base_batch": 128, "min_size": 128, "max_size": 320} | options
    with pytest.raises(ScaleError, match=message):
        scale_table(**arguments)
