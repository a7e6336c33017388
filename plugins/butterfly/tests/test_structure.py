"""The layout of a butterfly and what it costs, against the paper's definitions and tables."""

from __future__ import annotations

import math

import pytest

from graftwork_butterfly.structure import count_paper_macs, structure

# Multiply-adds of one B(n, k), which are k n ceil(log_k n), for k = 2, 4, 8; n^2 over that of k = 4.
EDGES = {
    16: (128, 128, 256, 2.0),
    24: (240, 288, 384, 2.0),
    32: (320, 384, 512, 2.67),
    64: (768, 768, 1024, 5.33),
    128: (1792, 2048, 3072, 8.0),
    256: (4096, 4096, 6144, 16.0),
    512: (9216, 10240, 12288, 25.6),
    1024: (20480, 20480, 32768, 51.2),
}


@pytest.mark.parametrize("n", EDGES)
def test_paper_count_is_k_n_log_n(n: int) -> None:
    *counts, saving = EDGES[n]
    assert [count_paper_macs(n, n, base) for base in (2, 4, 8)] == counts
    assert n * n / count_paper_macs(n, n, 4) == pytest.approx(saving, abs=0.005)


@pytest.mark.parametrize(("n", "executed"), [(32, 320), (64, 768), (128, 1792), (512, 9216), (1024, 20480)])
def test_mixed_radix_costs_no_more_than_the_paper_counts(n: int, executed: int) -> None:
    assert structure(n, n).weights == executed <= count_paper_macs(n, n)
    exponent = round(math.log2(n))
    assert executed == n * (4 * (exponent // 2) + 2 * (exponent % 2))


@pytest.mark.parametrize("base", [2, 3, 4, 8])
def test_stages_connect_every_input_to_every_output(base: int) -> None:
    for n in range(2, 300):
        plan = structure(n, n, base)
        assert math.prod(plan.radices) == plan.padded >= n
        assert max(plan.radices) <= max(8, base)
        strides = [stage.stride for stage in plan.stages]
        assert strides == sorted(strides, reverse=True)
        assert strides[-1] == 1
        assert sum(stage.size for stage in plan.stages) == plan.weights


@pytest.mark.parametrize("n", [24, 40, 64, 96, 144, 512, 1000])
def test_orders_of_small_factors_are_not_padded(n: int) -> None:
    assert structure(n, n).padded == n


def test_an_order_with_a_large_prime_is_padded_to_the_cheapest_order() -> None:
    assert structure(58, 58).padded == 60
    assert structure(88, 88).padded == 90


def test_a_base_of_n_is_one_dense_matrix() -> None:
    assert structure(24, 24, base=24).radices == (24,)
    assert structure(24, 24, base=100).weights == 24 * 24


def test_rectangular_layers_are_several_squares() -> None:
    wide = structure(32, 100)
    assert (wide.copies, wide.order, wide.sums_copies) == (4, 32, False)
    assert [wide.piece(c) for c in (0, 3)] == [(slice(0, 32), slice(0, 32)), (slice(0, 32), slice(96, 100))]
    narrow = structure(100, 32)
    assert (narrow.copies, narrow.order, narrow.sums_copies) == (4, 32, True)
    assert narrow.piece(3) == (slice(96, 100), slice(0, 32))


@pytest.mark.parametrize("channels", [0, 1, -4, 2.5])
def test_fewer_than_two_channels_are_refused(channels: float) -> None:
    with pytest.raises(ValueError, match="in_channels must be an integer of at least 2, got"):
        structure(channels, 8)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="out_channels must be an integer of at least 2, got"):
        structure(8, channels)  # type: ignore[arg-type]


@pytest.mark.parametrize("base", [1, 0, -2])
def test_a_base_below_two_is_refused(base: int) -> None:
    with pytest.raises(ValueError, match=f"base must be an integer of at least 2 .* got {base}"):
        structure(8, 8, base)


def test_an_unknown_residual_is_refused() -> None:
    with pytest.raises(ValueError, match="residual must be one of none, first_last, every_other, got 'all'"):
        structure(8, 8, 4, "all")  # type: ignore[arg-type]
