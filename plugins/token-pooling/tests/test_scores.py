"""Attention scores: every way of computing them against the full attention matrix."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from graftwork_token_pooling.scores import attend_with_scores, block_shape, column_scores

SCALE = 8**-0.5


def reference(
    q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None, exclude_self: bool = False
) -> tuple[Tensor, Tensor]:
    logits = SCALE * q @ k.transpose(2, 3)
    attn = (logits if mask is None else logits + mask).softmax(3)
    received = attn * (1 - torch.eye(q.shape[2])) if exclude_self else attn
    return attn @ v, received.sum((1, 2))


@pytest.fixture
def qkv() -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = torch.randn(3, 5, 4, 37, 8).unbind(0)
    return 3 * q, k, v


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("exclude_self", [True, False])
def test_scores_are_the_column_sums_of_attention(
    qkv, gradients: bool, fused: bool, exclude_self: bool
) -> None:
    with torch.set_grad_enabled(gradients):
        out, scores = attend_with_scores(*qkv, SCALE, fused, exclude_self=exclude_self)
    expected_out, expected = reference(*qkv, exclude_self=exclude_self)
    torch.testing.assert_close(out, expected_out)
    torch.testing.assert_close(scores, expected)


def test_scores_of_all_tokens_add_up_to_the_queries(qkv) -> None:
    scores = column_scores(qkv[0], qkv[1], SCALE)
    torch.testing.assert_close(scores.sum(1), torch.full((5,), 4.0 * 37))


@pytest.mark.parametrize("exclude_self", [True, False])
def test_many_tokens_are_taken_in_blocks_of_queries(exclude_self: bool) -> None:
    q = torch.randn(1, 2, 1300, 8)
    assert block_shape(1, 2, 1300, 1 << 18) == (1, 1, 201)
    with torch.no_grad():
        out, scores = attend_with_scores(q, q, q, SCALE, exclude_self=exclude_self)
    expected_out, expected = reference(q, q, q, exclude_self=exclude_self)
    torch.testing.assert_close(out, expected_out)
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(column_scores(q, q, SCALE, exclude_self), scores)


def test_blocks_stay_within_their_budget() -> None:
    for batch, heads, tokens in ((1, 1, 1), (8, 6, 197), (32, 12, 197), (64, 3, 50), (2, 16, 5000)):
        images, group, rows = block_shape(batch, heads, tokens, 1 << 18)
        assert 1 <= images <= batch
        assert 1 <= group <= heads
        assert 1 <= rows <= tokens
        assert images * group * rows * tokens <= 1 << 18


def test_a_mask_applies_to_output_and_scores(qkv) -> None:
    keep = torch.rand(5, 1, 1, 37) > 0.3
    additive = torch.zeros(5, 1, 1, 37).masked_fill(~keep, float("-inf"))
    expected_out, expected = reference(*qkv, mask=additive)
    for mask in (keep, additive):
        out, scores = attend_with_scores(*qkv, SCALE, attn_mask=mask)
        torch.testing.assert_close(out, expected_out)
        torch.testing.assert_close(scores, expected)
    assert bool((scores[~keep.view(5, 37)] == 0).all())


def test_causal_attention_gives_the_last_token_only_its_own(qkv) -> None:
    _, scores = attend_with_scores(*qkv, SCALE, is_causal=True)
    triangle = torch.full((37, 37), float("-inf")).triu(1)
    torch.testing.assert_close(scores, reference(*qkv, mask=triangle)[1])


def test_scores_carry_no_gradient_and_the_output_does(qkv) -> None:
    q, k, v = (t.requires_grad_() for t in qkv)
    out, scores = attend_with_scores(q, k, v, SCALE)
    assert not scores.requires_grad
    expected = torch.autograd.grad(reference(q, k, v)[0].square().sum(), (q, k, v))
    for ours, theirs in zip(torch.autograd.grad(out.square().sum(), (q, k, v)), expected):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("fused", [True, False])
def test_dropout_acts_on_the_output_and_not_on_the_scores(qkv, fused: bool) -> None:
    out, scores = attend_with_scores(*qkv, SCALE, fused, dropout=0.5)
    expected_out, expected = reference(*qkv)
    assert not torch.allclose(out, expected_out)
    torch.testing.assert_close(scores, expected)


@pytest.mark.parametrize("gradients", [True, False])
def test_torchscript_and_compile_compute_the_same(qkv, gradients: bool) -> None:
    torch._dynamo.reset()
    scripted = torch.jit.script(attend_with_scores)
    compiled = torch.compile(attend_with_scores, fullgraph=True, backend="eager")
    expected_out, expected = reference(*qkv)
    with torch.set_grad_enabled(gradients):
        for function in (scripted, compiled):
            out, scores = function(*qkv, SCALE)
            torch.testing.assert_close(out, expected_out)
            torch.testing.assert_close(scores, expected)


def test_half_precision_scores_are_summed_in_float32() -> None:
    q = torch.randn(1, 4, 300, 8)
    with torch.no_grad():
        _, scores = attend_with_scores(*(q.bfloat16(),) * 3, SCALE)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, reference(q, q, q)[1], rtol=0.05, atol=0.05)
