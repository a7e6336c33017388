"""The clustering: a worked example, properties, and the native loop against the readable one."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from graftwork import extension
from graftwork_token_pooling import k_means, k_medoids, native, reconstruction_error, weighted_means
from graftwork_token_pooling.clustering import (
    farthest_seeds,
    inner_products,
    medoid_rounds,
    squared_distances,
)

POINTS = torch.tensor([[[0, 0], [1, 0], [0, 1], [10, 10], [11, 10], [10, 12], [5, 5]]], dtype=torch.float32)
WEIGHTS = torch.tensor([[1, 2, 1, 3, 1, 1, 0.5]])

needs_native = pytest.mark.skipif(
    extension.status(native.CLUSTER).state == "unavailable", reason="no compiler for the native loop"
)


def partition(assignment: Tensor) -> set[frozenset[int]]:
    labels = assignment[0].tolist()
    return {frozenset(i for i, label in enumerate(labels) if label == one) for one in set(labels)}


def take(features: Tensor, index: Tensor) -> Tensor:
    return features.gather(1, index.unsqueeze(2).expand(-1, -1, features.shape[2]))


def test_two_medoids_of_the_worked_example() -> None:
    assignment, medoids = k_medoids(POINTS, 2, WEIGHTS)
    assert partition(assignment) == {frozenset({3, 4, 5}), frozenset({0, 1, 2, 6})}
    assert medoids.tolist() == [[3, 1]]
    means = weighted_means(POINTS, assignment, 2, WEIGHTS)
    torch.testing.assert_close(means, torch.tensor([[[10.2, 10.4], [1.0, 0.7778]]]), atol=1e-4, rtol=0)
    assert reconstruction_error(POINTS, take(POINTS, medoids), WEIGHTS).item() == pytest.approx(28.5)
    assert reconstruction_error(POINTS, means, WEIGHTS).item() == pytest.approx(24.7778, abs=1e-4)


def test_two_means_of_the_worked_example() -> None:
    assignment, centers = k_means(POINTS, 2, WEIGHTS)
    assert partition(assignment) == {frozenset({3, 4, 5}), frozenset({0, 1, 2, 6})}
    assert reconstruction_error(POINTS, centers, WEIGHTS).item() == pytest.approx(24.7778, abs=1e-4)


def test_three_medoids_of_the_worked_example_stay_in_a_local_optimum() -> None:
    assignment, medoids = k_medoids(POINTS, 3, WEIGHTS)
    assert partition(assignment) == {frozenset({3, 4, 5}), frozenset({1, 6}), frozenset({0, 2})}
    means = weighted_means(POINTS, assignment, 3, WEIGHTS)
    torch.testing.assert_close(means, torch.tensor([[[10.2, 10.4], [1.8, 1.0], [0.0, 0.5]]]))
    assert reconstruction_error(POINTS, take(POINTS, medoids), WEIGHTS).item() == pytest.approx(26.5)
    assert reconstruction_error(POINTS, means, WEIGHTS).item() == pytest.approx(20.12, abs=1e-4)


def test_three_means_of_the_worked_example_leave_it() -> None:
    _, centers = k_means(POINTS, 3, WEIGHTS)
    assert reconstruction_error(POINTS, centers, WEIGHTS).item() == pytest.approx(5.75)


@pytest.mark.parametrize("weighted", [False, True])
def test_more_medoid_rounds_never_raise_the_error(weighted: bool) -> None:
    features, weights = torch.randn(4, 60, 8), torch.rand(4, 60) if weighted else None
    errors = [
        reconstruction_error(
            features, take(features, k_medoids(features, 9, weights, iterations)[1]), weights
        )
        for iterations in range(6)
    ]
    for before, after in pairwise(errors):
        assert (after <= before + 1e-4).all()
    assert errors[-1].sum() < errors[0].sum()


@pytest.mark.parametrize("weighted", [False, True])
def test_more_mean_rounds_never_raise_the_error(weighted: bool) -> None:
    features, weights = torch.randn(4, 60, 8), torch.rand(4, 60) if weighted else None
    errors = [
        reconstruction_error(features, k_means(features, 9, weights, iterations)[1], weights)
        for iterations in range(6)
    ]
    for before, after in pairwise(errors):
        assert (after <= before + 1e-4).all()
    assert errors[-1].sum() < errors[0].sum()


def test_the_error_is_that_of_the_definition() -> None:
    features, centers, weights = torch.randn(2, 20, 5), torch.randn(2, 4, 5), torch.rand(2, 20)
    every = (features.unsqueeze(2) - centers.unsqueeze(1)).square().sum(3)
    torch.testing.assert_close(reconstruction_error(features, centers), every.amin(2).sum(1))
    torch.testing.assert_close(
        reconstruction_error(features, centers, weights), (every.amin(2) * weights).sum(1)
    )


def test_a_medoid_is_the_best_member_of_its_cluster() -> None:
    features, weights = torch.randn(2, 40, 6), torch.rand(2, 40)
    assignment, medoids = k_medoids(features, 5, weights, iterations=20)
    distance = squared_distances(inner_products(features, features))
    for image in range(2):
        for cluster, medoid in enumerate(medoids[image].tolist()):
            members = (assignment[image] == cluster).nonzero().flatten()
            cost = (distance[image][members][:, members] * weights[image, members]).sum(1)
            assert medoid == members[cost.argmin()]


@pytest.mark.parametrize("cluster", [k_medoids, k_means])
def test_scaling_the_weights_changes_nothing(cluster) -> None:
    features, weights = torch.randn(2, 50, 8), torch.rand(2, 50)
    assert torch.equal(cluster(features, 12, weights)[0], cluster(features, 12, 1000 * weights)[0])


@pytest.mark.parametrize("cluster", [k_medoids, k_means])
def test_images_of_a_batch_are_clustered_alone(cluster) -> None:
    features, weights = torch.randn(8, 49, 16), torch.rand(8, 49)
    together = cluster(features, 20, weights)[0]
    alone = torch.cat([cluster(features[i : i + 1], 20, weights[i : i + 1])[0] for i in range(8)])
    assert torch.equal(together, alone)


def test_duplicate_tokens_are_merged_without_error() -> None:
    distinct = torch.randn(2, 10, 4)
    features = distinct.repeat(1, 3, 1)
    for cluster in (k_medoids, k_means):
        assignment, _ = cluster(features, 10, init="farthest")
        centers = weighted_means(features, assignment, 10)
        assert reconstruction_error(features, centers).amax() < 1e-9
        assert torch.cdist(distinct, centers).amin(2).amax() < 1e-3


def test_an_empty_cluster_keeps_its_medoid() -> None:
    features = torch.tensor([[[0.0], [0.0], [5.0], [6.0]]])
    weights = torch.tensor([[4.0, 3.0, 2.0, 1.0]])
    assignment, medoids = k_medoids(features, 3, weights)
    assert assignment.tolist() == [[0, 0, 2, 2]]
    assert medoids.tolist() == [[0, 1, 2]]


def test_an_empty_cluster_keeps_its_mean() -> None:
    features = torch.tensor([[[0.0], [0.0], [5.0], [6.0]]])
    weights = torch.tensor([[4.0, 3.0, 2.0, 1.0]])
    _, centers = k_means(features, 3, weights)
    torch.testing.assert_close(centers, torch.tensor([[[0.0], [0.0], [16 / 3]]]))


def test_ties_go_to_the_lowest_index() -> None:
    features = torch.tensor([[[0.0], [2.0], [1.0]]])
    weights = torch.tensor([[1.0, 1.0, 1.0]])
    assignment, medoids = k_medoids(features, 2, weights, iterations=0)
    assert medoids.tolist() == [[0, 1]]
    assert assignment.tolist() == [[0, 1, 0]]


def test_seeds_by_stride_are_evenly_spaced_and_distinct() -> None:
    _, medoids = k_medoids(torch.randn(1, 10, 3), 4, iterations=0)
    assert medoids.tolist() == [[0, 2, 5, 7]]


def test_seeds_far_apart_spread_and_count_weight() -> None:
    line = torch.tensor([[[0.0], [1.0], [2.0], [10.0]]])
    for weights, expected in ((None, [0, 3, 2]), (torch.tensor([[1.0, 2.0, 1.0, 1e-6]]), [1, 0, 2])):
        _, medoids = k_medoids(line, 3, weights, iterations=0, init="farthest")
        assert medoids.tolist() == [expected]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_clustered_in_float32(dtype: torch.dtype) -> None:
    features, weights = (100 * torch.randn(2, 50, 64)).to(dtype), torch.rand(2, 50)
    half = k_medoids(features, 12, weights.to(dtype))[0]
    assert torch.equal(half, k_medoids(features.float(), 12, weights.to(dtype).float())[0])


@pytest.mark.parametrize("cluster", [k_medoids, k_means])
def test_autocast_does_not_touch_the_distances(cluster) -> None:
    features, weights = torch.randn(4, 100, 64), torch.rand(4, 100)
    scripted = torch.jit.script(cluster)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(cluster(features, 30, weights)[0], scripted(features, 30, weights)[0])
    assert torch.equal(cluster(features, 30, weights)[0], scripted(features, 30, weights)[0])


@needs_native
@pytest.mark.parametrize(("tokens", "k"), [(196, 137), (96, 67), (49, 1), (16, 16)])
@pytest.mark.parametrize("iterations", [0, 1, 5])
def test_the_native_loop_equals_the_reference(tokens: int, k: int, iterations: int) -> None:
    features, weights = torch.randn(3, tokens, 32), torch.rand(3, tokens)
    gram = inner_products(features, features)
    seeds = torch.argsort(weights, dim=1, descending=True, stable=True)[:, :k]
    before = seeds.clone()
    assignment, medoids = native.k_medoids(gram, weights, seeds, iterations)
    expected_assignment, expected_medoids = medoid_rounds(gram, weights, seeds, iterations)
    assert torch.equal(assignment, expected_assignment)
    assert torch.equal(medoids, expected_medoids)
    assert torch.equal(seeds, before)


@needs_native
@pytest.mark.parametrize(("tokens", "k"), [(196, 137), (49, 1), (16, 16)])
def test_native_seeds_far_apart_equal_the_reference(tokens: int, k: int) -> None:
    features, weights = torch.randn(3, tokens, 32), torch.rand(3, tokens)
    gram = inner_products(features, features)
    expected = farthest_seeds(squared_distances(gram), weights, k)
    assert torch.equal(native.farthest_seeds(gram, weights, k), expected)


def test_the_reference_serves_where_native_code_is_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    features, weights = torch.randn(2, 30, 8), torch.rand(2, 30)
    expected = k_medoids(features, 7, weights)
    monkeypatch.setenv("GRAFTWORK_EXTENSION", "reference")
    assert not native.serves(features)
    assert torch.equal(k_medoids(features, 7, weights)[0], expected[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, "between 1 and the number of tokens 7, got 0"),
        ({"k": 8}, "between 1 and the number of tokens 7, got 8"),
        ({"k": 2, "iterations": -1}, "iterations must not be negative"),
        ({"k": 2, "init": "luck"}, "init must be auto, score, farthest or stride, got luck"),
        ({"k": 2, "weights": torch.ones(1, 8)}, "leave the prefix tokens out"),
    ],
)
@pytest.mark.parametrize("cluster", [k_medoids, k_means])
def test_bad_arguments_are_explained(cluster, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cluster(POINTS, **arguments)


def test_features_without_a_batch_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(B, N, M\)"):
        k_medoids(POINTS[0], 2)
