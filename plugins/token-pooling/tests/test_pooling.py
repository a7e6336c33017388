"""The operator on its own: what passes, what is averaged, what carries a gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from graftwork_token_pooling import (
    METHODS,
    reconstruction_error,
    token_pool,
    token_pool_with_assignment,
    unpool,
)

CLUSTERING = ("wk_medoids", "k_medoids", "wk_means", "k_means")
DETERMINISTIC = tuple(method for method in METHODS if method not in ("random", "importance"))


@pytest.fixture
def tokens() -> Tensor:
    return torch.randn(3, 1 + 49, 16)


@pytest.fixture
def scores() -> Tensor:
    return torch.rand(3, 49) + 0.1


@pytest.mark.parametrize("method", METHODS)
def test_every_method_leaves_k_tokens_and_the_prefix(tokens: Tensor, scores: Tensor, method: str) -> None:
    pooled, assignment, sizes = token_pool_with_assignment(tokens, scores, 20, method=method)
    assert pooled.shape == (3, 21, 16)
    assert torch.equal(pooled[:, 0], tokens[:, 0])
    assert assignment.shape == (3, 49)
    assert assignment.amin() == 0
    assert assignment.amax() == 19
    assert torch.equal(sizes, torch.stack([row.bincount(minlength=20) for row in assignment]).float())
    assert bool(pooled.isfinite().all())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("k", [49, 50, 1000])
def test_as_many_tokens_as_there_are_is_the_identity(
    tokens: Tensor, scores: Tensor, method: str, k: int
) -> None:
    assert torch.equal(token_pool(tokens, scores, k, method=method), tokens)


@pytest.mark.parametrize("method", METHODS)
def test_a_single_token_can_be_left(tokens: Tensor, scores: Tensor, method: str) -> None:
    assert token_pool(tokens, scores, 1, method=method).shape == (3, 2, 16)


@pytest.mark.parametrize("method", [*CLUSTERING, "power_bert"])
def test_the_order_of_the_tokens_does_not_matter(tokens: Tensor, scores: Tensor, method: str) -> None:
    if method.startswith("k_"):
        pytest.skip("seeds at equal steps depend on the order by design")
    order = torch.randperm(49)
    shuffled = torch.cat([tokens[:, :1], tokens[:, 1:][:, order]], dim=1)
    first = token_pool(tokens, scores, 20, method=method)
    second = token_pool(shuffled, scores[:, order], 20, method=method)
    for one, other in zip(first, second):
        gap = torch.cdist(one, other).amin(1)
        assert gap.amax() < 1e-3


@pytest.mark.parametrize("method", DETERMINISTIC)
def test_images_of_a_batch_are_pooled_alone(tokens: Tensor, scores: Tensor, method: str) -> None:
    together = token_pool(tokens, scores, 20, method=method)
    alone = torch.cat([token_pool(tokens[i : i + 1], scores[i : i + 1], 20, method=method) for i in range(3)])
    torch.testing.assert_close(together, alone)


def test_a_mean_is_weighted_by_the_scores(tokens: Tensor, scores: Tensor) -> None:
    pooled, assignment, _ = token_pool_with_assignment(tokens, scores, 20)
    patches = tokens[:, 1:]
    for cluster in range(20):
        members = (assignment[0] == cluster).nonzero().flatten()
        weight = scores[0, members] / scores[0, members].sum()
        torch.testing.assert_close(pooled[0, 1 + cluster], weight @ patches[0, members])


def test_the_gradient_of_a_mean_is_the_share_of_each_member(tokens: Tensor, scores: Tensor) -> None:
    tokens.requires_grad_()
    scores.requires_grad_()
    pooled, assignment, _ = token_pool_with_assignment(tokens, scores, 20)
    pooled[:, 1:].sum().backward()
    total = torch.zeros(3, 20).scatter_add(1, assignment, scores.detach())
    share = scores.detach() / total.gather(1, assignment)
    torch.testing.assert_close(tokens.grad[:, 1:], share.unsqueeze(2).expand(-1, -1, 16))
    assert torch.equal(tokens.grad[:, 0], torch.zeros(3, 16))
    assert scores.grad is None


def test_the_gradient_agrees_with_finite_differences(scores: Tensor) -> None:
    tokens = torch.randn(1, 1 + 12, 3, dtype=torch.float64, requires_grad=True)
    # distances are taken in float32 and means too, so the step must be large; assignments are constant in it
    assert torch.autograd.gradcheck(
        lambda x: token_pool(x, scores[:1, :12], 8), (tokens,), eps=1e-2, atol=1e-3, nondet_tol=0.0
    )


def test_a_medoid_is_one_of_the_tokens(tokens: Tensor, scores: Tensor) -> None:
    pooled = token_pool(tokens, scores, 20, output="medoid")
    for image in range(3):
        known = {tuple(row) for row in tokens[image].tolist()}
        assert {tuple(row) for row in pooled[image].tolist()} <= known


@pytest.mark.parametrize("method", ["power_bert", "importance", "random"])
def test_selection_keeps_tokens_in_their_order(tokens: Tensor, scores: Tensor, method: str) -> None:
    pooled, assignment, _ = token_pool_with_assignment(tokens, scores, 20, method=method)
    for image in range(3):
        rows = [tuple(row) for row in tokens[image].tolist()]
        kept = [rows.index(tuple(row)) for row in pooled[image].tolist()]
        assert kept == sorted(set(kept))
        assert assignment[image][torch.tensor(kept[1:]) - 1].tolist() == list(range(20))


def test_dropped_tokens_belong_to_the_nearest_one_kept(tokens: Tensor, scores: Tensor) -> None:
    pooled, assignment, _ = token_pool_with_assignment(tokens, scores, 20, method="power_bert")
    distance = torch.cdist(tokens[:, 1:], pooled[:, 1:])
    assert torch.equal(assignment, distance.argmin(2))


def test_clustering_reconstructs_better_than_medoids_and_than_selection(scores: Tensor) -> None:
    centers = torch.randn(8, 30, 32)
    tokens = centers[:, torch.randint(30, (49,))] + 0.5 * torch.randn(8, 49, 32)
    weights = torch.rand(8, 49)

    def error(method: str, output: str = "mean") -> float:
        pooled = token_pool(tokens, weights, 20, num_prefix_tokens=0, method=method, output=output)
        return float(reconstruction_error(tokens, pooled, weights).mean())

    ours, means, medoids = error("wk_medoids"), error("wk_means"), error("wk_medoids", "medoid")
    assert ours < medoids < error("power_bert")
    assert means <= 1.02 * ours
    assert ours < error("tome")
    assert ours < error("random")
    assert ours < error("importance")
    assert ours < error("grid")


def test_unpooling_is_the_inverse_for_tokens_that_are_alone(tokens: Tensor, scores: Tensor) -> None:
    pooled, assignment, sizes = token_pool_with_assignment(tokens, scores, 40)
    dense = unpool(pooled, assignment)
    alone = sizes.gather(1, assignment) == 1
    assert dense.shape == tokens.shape
    assert bool(alone.any())
    torch.testing.assert_close(dense[:, 1:][alone], tokens[:, 1:][alone])
    torch.testing.assert_close(dense[:, 0], tokens[:, 0])


@pytest.mark.parametrize("prefix", [0, 2, 5])
def test_any_number_of_prefix_tokens_passes(prefix: int) -> None:
    x, scores = torch.randn(2, prefix + 16, 8), torch.rand(2, 16)
    pooled = token_pool(x, scores, 4, num_prefix_tokens=prefix)
    assert pooled.shape == (2, prefix + 4, 8)
    assert torch.equal(pooled[:, :prefix], x[:, :prefix])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_dtype_is_kept(tokens: Tensor, scores: Tensor, dtype: torch.dtype) -> None:
    pooled = token_pool(tokens.to(dtype), scores, 20)
    assert pooled.dtype == dtype
    torch.testing.assert_close(
        pooled.float(), token_pool(tokens.to(dtype).float(), scores, 20), atol=2e-2, rtol=1e-2
    )


def test_tokens_without_any_attention_do_not_divide_by_zero(tokens: Tensor) -> None:
    pooled = token_pool(tokens, torch.zeros(3, 49), 20)
    assert bool(pooled.isfinite().all())


@pytest.mark.parametrize("method", METHODS)
def test_a_captured_graph_pools_alike(tokens: Tensor, scores: Tensor, method: str) -> None:
    torch._dynamo.reset()
    captured = {
        "script": torch.jit.script(token_pool),
        "compile": torch.compile(token_pool, fullgraph=True, backend="eager"),
    }
    torch.manual_seed(3)
    expected = token_pool(tokens, scores, 20, 1, method)
    for how, function in captured.items():
        torch.manual_seed(3)
        torch.testing.assert_close(function(tokens, scores, 20, 1, method), expected, msg=how)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, "k must be at least 1, got 0"),
        ({"k": -3}, "k must be at least 1, got -3"),
        ({"k": 4, "method": "magic"}, "unknown method magic"),
        ({"k": 4, "output": "median"}, "output must be mean, or medoid"),
        ({"k": 4, "output": "medoid", "method": "wk_means"}, "medoid with method wk_medoids or k_medoids"),
        ({"k": 4, "scores": None}, "needs scores"),
        ({"k": 4, "scores": torch.ones(3, 50)}, "leave the prefix tokens out"),
        ({"k": 4, "num_prefix_tokens": 50}, "N > 0"),
    ],
)
def test_bad_arguments_are_explained(tokens: Tensor, scores: Tensor, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        token_pool(tokens, **{"scores": scores, **arguments})


def test_a_grid_that_is_not_square_is_refused() -> None:
    with pytest.raises(ValueError, match="square token grid"):
        token_pool(torch.randn(1, 1 + 12, 4), None, 4, method="grid")
