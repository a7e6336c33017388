"""The native kernels against the reference, values and gradients, in every layout they take."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from graftwork import extension
from graftwork_butterfly import kernels, native
from graftwork_butterfly.functional import apply_staged
from graftwork_butterfly.structure import structure

pytestmark = pytest.mark.skipif(
    not native.available("cpu"), reason="no native library: " + str(extension.status(native.CPU))
)

# squares, mixed radix, padding, every radix the kernels know, more and fewer outputs, ragged last squares
SHAPES = [
    *((n, n, 4) for n in (4, 16, 24, 40, 56, 58, 64, 128, 144)),
    *((64, 64, base) for base in (2, 8)),
    *((36, 36, 6), (7, 7, 8), (25, 25, 5), (27, 27, 3)),
    *((64, 128, 4), (64, 150, 4), (58, 100, 4), (2, 9, 4)),
    *((128, 64, 4), (150, 64, 4), (100, 58, 4), (88, 24, 4)),
]
# fewer pixels than a vector, ragged tiles of every width
PIXELS = [(1, 1), (1, 5), (4, 4), (7, 7), (14, 14), (9, 15)]


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.detach().double() - expected.detach()).norm() / expected.detach().norm())


def reference(x: Tensor, weight: Tensor, layout: list[int]) -> Tensor:
    return apply_staged(x.flatten(2), weight, layout).view(x.shape[0], -1, *x.shape[2:])


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("residual", ["first_last", "none"])
@pytest.mark.parametrize(("inputs", "outputs", "base"), SHAPES)
def test_values_and_gradients_equal_the_float64_reference(
    inputs: int, outputs: int, base: int, residual: str, memory: torch.memory_format, threads: int
) -> None:
    plan = structure(inputs, outputs, base, residual)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for size in PIXELS:
            x = torch.randn(3, inputs, *size, generator=generator).contiguous(memory_format=memory)
            weight = torch.randn(plan.weights, generator=generator)
            probe = torch.randn(3, outputs, *size, generator=generator)
            exact = x.double().requires_grad_(), weight.double().requires_grad_()
            y = reference(*exact, plan.layout)
            gradients = torch.autograd.grad(y, exact, probe.double())
            x.requires_grad_()
            weight.requires_grad_()
            found = kernels.fused(x, weight, plan.layout)
            assert found.is_contiguous(memory_format=memory)
            assert relative(found, y) < 2e-6
            for one, other in zip(torch.autograd.grad(found, (x, weight), probe), gradients):
                assert relative(one, other) < 2e-6
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize(("inputs", "outputs"), [(64, 64), (40, 58), (58, 40)])
def test_bfloat16_is_rounded_once_on_the_way_out(
    inputs: int, outputs: int, memory: torch.memory_format
) -> None:
    plan = structure(inputs, outputs)
    x = torch.randn(2, inputs, 9, 7).bfloat16().contiguous(memory_format=memory)
    weight = torch.randn(plan.weights) / 2
    y = kernels.fused(x, weight, plan.layout)
    assert y.dtype == torch.bfloat16
    exact = kernels.fused(x.float(), weight, plan.layout)
    assert torch.equal(y, exact.bfloat16())


def test_bfloat16_gradients_have_the_dtype_of_what_they_belong_to() -> None:
    plan = structure(24, 24)
    x = torch.randn(2, 24, 6, 6).bfloat16().requires_grad_()
    weight = torch.randn(plan.weights, requires_grad=True)
    kernels.fused(x, weight, plan.layout).float().sum().backward()
    assert x.grad is not None and weight.grad is not None
    assert (x.grad.dtype, weight.grad.dtype) == (torch.bfloat16, torch.float32)
    exact = x.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    reference(*exact, plan.layout).sum().backward()
    assert relative(x.grad, exact[0].grad) < 5e-3
    assert relative(weight.grad, exact[1].grad) < 5e-3


def test_nan_and_infinity_pass_through() -> None:
    plan = structure(16, 16)
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.zeros(1, 16, 1, 20, dtype=dtype)
        x[0, 3, 0, 2] = float("nan")
        x[0, 5, 0, 17] = float("inf")
        y = kernels.fused(x, torch.ones(plan.weights), plan.layout)
        assert y[0, :, 0, 2].isnan().all()
        assert y[0, :, 0, 17].isinf().all()
        assert not y[0, :, 0, [0, 1, 3, 16, 18, 19]].any()


def test_other_memory_layouts_are_copied() -> None:
    plan = structure(16, 24)
    weight = torch.randn(plan.weights)
    x = torch.randn(2, 10, 16, 6).transpose(1, 2)[..., ::2]
    assert torch.allclose(
        kernels.fused(x, weight, plan.layout), kernels.fused(x.contiguous(), weight, plan.layout)
    )
    strided = torch.randn(2 * plan.weights)[::2]
    assert torch.allclose(
        kernels.fused(x, strided, plan.layout), kernels.fused(x, strided.contiguous(), plan.layout)
    )


@pytest.mark.parametrize("shape", [(0, 16, 4, 4), (2, 16, 0, 4)])
def test_empty_inputs_give_empty_outputs_and_zero_gradients(shape: tuple[int, ...]) -> None:
    plan = structure(16, 40)
    weight = torch.randn(plan.weights, requires_grad=True)
    x = torch.randn(shape, requires_grad=True)
    y = kernels.fused(x, weight, plan.layout)
    assert y.shape == (shape[0], 40, *shape[2:])
    y.sum().backward()
    assert weight.grad is not None and not weight.grad.any()


def test_frozen_weights_get_no_gradient() -> None:
    plan = structure(16, 16)
    x = torch.randn(1, 16, 3, 3, requires_grad=True)
    weight = torch.randn(plan.weights)
    kernels.fused(x, weight, plan.layout).sum().backward()
    frozen = x.grad
    x.grad = None
    kernels.fused(x, weight.requires_grad_(), plan.layout).sum().backward()
    assert frozen is not None and x.grad is not None
    assert torch.equal(frozen, x.grad)


def test_gradients_can_be_differentiated_again() -> None:
    plan = structure(8, 12)
    x = torch.randn(1, 8, 2, 2, requires_grad=True)
    weight = torch.randn(plan.weights, requires_grad=True)
    results = []
    for run in (kernels.fused, reference):
        (gx,) = torch.autograd.grad(run(x, weight, plan.layout).square().sum(), x, create_graph=True)
        results.append(torch.autograd.grad(gx.square().sum(), weight)[0])
    assert relative(results[0], results[1].double()) < 1e-5


@pytest.mark.parametrize("shape", [(2, 16, 5, 5), (6, 16)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_operator_satisfies_opcheck(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    plan = structure(16, 24)
    x = torch.randn(shape).to(dtype)
    weight = torch.randn(plan.weights)
    operators = torch.ops.graftwork_butterfly
    for grad in (False, True):
        arguments = (x.clone().requires_grad_(grad), weight.clone().requires_grad_(grad), plan.layout)
        torch.library.opcheck(operators.transform, arguments)
    if len(shape) == 4:
        last = x.contiguous(memory_format=torch.channels_last)
        torch.library.opcheck(operators.transform, (last, weight, plan.layout))
    grad_y = torch.randn(shape[0], 24, *shape[2:]).to(dtype)
    for need in (False, True):
        torch.library.opcheck(operators.transform_backward, (grad_y, x, weight, plan.layout, need))


def test_results_do_not_depend_on_the_run() -> None:
    plan = structure(64, 64)
    x = torch.randn(2, 64, 20, 20, requires_grad=True)
    weight = torch.randn(plan.weights, requires_grad=True)
    runs = [torch.autograd.grad(kernels.fused(x, weight, plan.layout).sum(), (x, weight)) for _ in range(3)]
    for run in runs[1:]:
        assert all(torch.equal(one, other) for one, other in zip(runs[0], run))


def test_wrong_shapes_are_refused_before_native_code_runs() -> None:
    plan = structure(16, 16)
    weight = torch.randn(plan.weights)
    with pytest.raises(
        ValueError, match=r"takes 16 channels and 128 weights .* got an input of shape \(1, 8,"
    ):
        kernels.fused(torch.randn(1, 8, 2, 2), weight, plan.layout)
    with pytest.raises(ValueError, match="and 127 weights"):
        kernels.fused(torch.randn(1, 16, 2, 2), weight[1:], plan.layout)


def test_refusals_name_the_reason() -> None:
    x = torch.randn(1, 32, 2, 2)
    for plan, dtype, reason in (
        (structure(32, 32, 32), torch.float32, "radix 32 is beyond"),
        (structure(32, 32, 4, "every_other"), torch.float32, "'every_other' is not built in"),
        (structure(32, 32), torch.float64, "float64, the kernels take float32 and bfloat16"),
    ):
        with pytest.raises(ValueError, match=reason):
            kernels.fused(x.to(dtype), torch.randn(plan.weights), plan.layout)
