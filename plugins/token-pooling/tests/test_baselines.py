"""The methods that Token Pooling is compared with."""

from __future__ import annotations

import pytest
import torch

from graftwork_token_pooling.baselines import (
    grid_assignment,
    importance_choice,
    merge_bipartite,
    pooled_grid,
    random_choice,
    top_k,
)


def test_top_k_keeps_the_heaviest_in_order_and_the_first_of_equals() -> None:
    scores = torch.tensor([[1.0, 5.0, 3.0, 5.0, 3.0]])
    assert top_k(scores, 2).tolist() == [[1, 3]]
    assert top_k(scores, 3).tolist() == [[1, 2, 3]]


def test_random_choice_is_uniform_without_replacement_and_per_image() -> None:
    chosen = random_choice(torch.ones(4000, 5), 2)
    assert bool((chosen[:, 0] < chosen[:, 1]).all())
    frequency = chosen.flatten().bincount(minlength=5) / 4000
    torch.testing.assert_close(frequency, torch.full((5,), 0.4), atol=0.04, rtol=0)


def test_importance_choice_draws_in_proportion_to_the_scores() -> None:
    scores = torch.tensor([0.5, 0.3, 0.15, 0.05]).expand(8000, 4)
    frequency = importance_choice(scores, 1).flatten().bincount(minlength=4) / 8000
    torch.testing.assert_close(frequency, scores[0], atol=0.03, rtol=0)
    pairs = importance_choice(scores, 2)
    assert bool((pairs[:, 0] < pairs[:, 1]).all())
    # of two draws without replacement: p_i + sum_j p_j p_i / (1 - p_j)
    first = scores[0]
    ratio = first / (1 - first)
    expected = first + first * (ratio.sum() - ratio)
    torch.testing.assert_close(pairs.flatten().bincount(minlength=4) / 8000, expected, atol=0.03, rtol=0)


@pytest.mark.parametrize(
    ("grid", "k", "expected"),
    [((14, 14), 137, (11, 12)), ((14, 14), 49, (7, 7)), ((14, 14), 1, (1, 1)), ((2, 28), 14, (1, 14))],
)
def test_a_pooled_grid_fits(grid: tuple[int, int], k: int, expected: tuple[int, int]) -> None:
    assert pooled_grid(grid, k) == expected


def test_every_cell_of_a_pooled_grid_is_a_rectangle_of_neighbours() -> None:
    cells = grid_assignment((6, 4), (3, 2), torch.zeros(1, 24, 1)).view(6, 4)
    expected = torch.tensor([[0, 1], [2, 3], [4, 5]]).repeat_interleave(2, 0).repeat_interleave(2, 1)
    assert torch.equal(cells, expected)
    uneven = grid_assignment((14, 14), (11, 12), torch.zeros(1, 196, 1))
    assert uneven.unique().numel() == 132


def test_merging_joins_the_most_similar_even_and_odd_tokens() -> None:
    #                       even        odd         even        odd         even
    metric = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.1, 1.0], [1.0, 0.3], [-1.0, 0.0]]])
    assert merge_bipartite(metric, 4, torch.ones(1, 5)).tolist() == [[0, 1, 1, 2, 3]]
    assert merge_bipartite(metric, 3, torch.ones(1, 5)).tolist() == [[1, 0, 0, 1, 2]]


@pytest.mark.parametrize("k", [100, 98, 97, 30, 1])
def test_merging_leaves_exactly_k(k: int) -> None:
    owner = merge_bipartite(torch.randn(2, 196, 16), k, torch.ones(2, 196))
    for row in owner:
        assert row.unique().tolist() == list(range(k))
