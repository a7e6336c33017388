"""The operator contract: a correct operator passes it, and each fault fails the check that is about it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from graftwork.testing import OpContract
from graftwork.testing.outcomes import run_contract


def scaled_square_reference(x: Tensor, weight: Tensor) -> Tensor:
    """(N, C) and (C,) to (N, C)."""
    return weight * x * x


def declare(
    name: str, *, gradient: float = 1.0, value: float = 1.0, fake_columns: int = 0, checks: bool = True
):
    """Make a custom operator of the reference, with faults on demand."""

    @torch.library.custom_op(f"graftwork_test::{name}", mutates_args=())
    def op(x: Tensor, weight: Tensor) -> Tensor:
        if checks and x.dtype in (torch.float16, torch.bfloat16):
            raise TypeError(f"x must be float32 or float64, got {x.dtype}")
        return value * weight * x.contiguous() * x

    @op.register_fake
    def _(x: Tensor, weight: Tensor) -> Tensor:
        return x.new_empty(x.shape[0], x.shape[1] + fake_columns)

    def backward(ctx, grad: Tensor):
        x, weight = ctx.saved_tensors
        return gradient * 2 * grad * weight * x, (grad * x * x).sum(0)

    op.register_autograd(backward, setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs))
    return op


class SquareContract(OpContract):
    op = declare("square")
    reference = scaled_square_reference
    half = "refuses"

    def samples(self, *, device, dtype):
        generator = torch.Generator().manual_seed(0)
        x, weight = torch.randn(5, 3, generator=generator), torch.rand(3, generator=generator)
        return {"five rows": (x.to(device, dtype), weight.to(device, dtype))}


def test_correct_operator_passes_every_check():
    outcomes = run_contract(SquareContract)
    assert not outcomes.checks("failed"), outcomes.messages
    # the checks with a CUDA device skip themselves
    assert len(outcomes.checks("passed")) == 8
    assert all(
        "cuda" in name or "kernel_runs" in name for name, found in outcomes.items() if found == "skipped"
    )


def test_wrong_gradient_is_found():
    wrong = type("WrongGradient", (SquareContract,), {"op": declare("wrong_gradient", gradient=1.01)})
    assert run_contract(wrong).checks("failed") == {"test_gradients_equal_the_reference"}


def test_wrong_value_is_found():
    wrong = type("WrongValue", (SquareContract,), {"op": declare("wrong_value", value=1.001)})
    assert run_contract(wrong).checks("failed") == {"test_values_equal_the_reference"}


def test_wrong_fake_kernel_is_found():
    wrong = type("WrongFake", (SquareContract,), {"op": declare("wrong_fake", fake_columns=1)})
    assert "test_operator_is_registered_as_torch_expects" in run_contract(wrong).checks("failed")


def test_wrong_gradient_of_the_reference_is_found():
    def detached(x: Tensor, weight: Tensor) -> Tensor:
        return weight * x * x.detach()

    wrong = type("WrongReference", (SquareContract,), {"reference": staticmethod(detached)})
    assert run_contract(wrong).checks("failed") == {
        "test_gradient_of_the_reference_is_right",
        "test_gradients_equal_the_reference",
    }


def test_declared_refusal_must_happen():
    accepting = type("Accepting", (SquareContract,), {"op": declare("accepting", checks=False)})
    assert run_contract(accepting).checks("failed") == {"test_half_precision_works_or_is_refused"}
    serving = type("Serving", (accepting,), {"half": "works"})
    assert not run_contract(serving, "-k", "half").checks("failed")


def test_memory_layout_fault_is_found():
    def reads_memory(x: Tensor, weight: Tensor) -> Tensor:
        rows = torch.as_strided(x, x.shape, (x.shape[1], 1))
        return weight * rows * rows

    wrong = type("ReadsMemory", (SquareContract,), {"op": staticmethod(reads_memory), "half": "works"})
    assert run_contract(wrong, "-k", "layout or values").checks("failed") == {
        "test_memory_layout_does_not_matter"
    }


def test_boundary_exempts_no_more_than_allowed():
    def jumping(x: Tensor, weight: Tensor) -> Tensor:
        return weight * x * x + (x > 1.0)

    def boundary(self, arguments):
        return arguments[0] > 1.0

    attributes = {"op": staticmethod(jumping), "boundary": boundary}
    for allowed, outcome in ((0.5, "passed"), (0.01, "failed")):
        contract = type("Jumping", (SquareContract,), {**attributes, "boundary_fraction": allowed})
        assert run_contract(contract, "-k", "values").checks(outcome) == {"test_values_equal_the_reference"}


def test_plain_function_must_name_its_custom_operator():
    plain = type("Plain", (SquareContract,), {"op": scaled_square_reference})
    outcomes = run_contract(plain, "-k", "registered")
    assert "set custom_op" in "".join(outcomes.messages.values())


@pytest.mark.parametrize("missing", ["op", "reference"])
def test_incomplete_contract_says_what_is_missing(missing):
    outcomes = run_contract(type("Incomplete", (SquareContract,), {missing: None}))
    assert outcomes == {"collection": "failed"}
    assert f"set {missing}" in outcomes.messages["collection"]
