"""The layers: initialisation, backends, graph capture, and what a training loop does to them."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from timm.optim import create_optimizer_v2
from torch import nn

from graftwork import extension
from graftwork_butterfly import ButterflyConv1x1, ButterflyLinear, native
from graftwork_butterfly.dispatch import BACKENDS, choose
from graftwork_butterfly.layers import initial_bound
from graftwork_butterfly.structure import structure

needs_kernel = pytest.mark.skipif(not native.available("cpu"), reason="no native library on this machine")


@pytest.mark.parametrize("n", [128, 256, 1024])
def test_initial_entries_are_as_large_as_xavier_weights(n: int) -> None:
    xavier = math.sqrt(6 / (2 * n))
    means = []
    for seed in range(4):
        torch.manual_seed(seed)
        means.append(float(ButterflyConv1x1(n, n, residual="none").matrix().detach().abs().mean()))
    assert sum(means) / len(means) == pytest.approx(xavier / 2, rel=0.1)


def test_initial_bound_follows_equation_9() -> None:
    plan = structure(256, 256)  # four stages
    x = math.sqrt(6 / 512)
    assert initial_bound(plan) == pytest.approx(2 ** (3 / 4) * x ** (1 / 4))
    released = math.sqrt(2 / 256)
    assert initial_bound(plan, "code") == pytest.approx(2 ** (3 / 4) * released ** (1 / 4))
    assert released / x == pytest.approx(0.816, abs=1e-3)


def test_released_initialisation_gives_the_mean_entry_its_code_gives() -> None:
    torch.manual_seed(0)
    mean = ButterflyConv1x1(256, 256, residual="none", init="code").matrix().abs().mean()
    assert float(mean) == pytest.approx(0.0442, rel=0.1)


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize(("inputs", "outputs"), [(32, 32), (24, 60), (60, 24), (58, 58)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_backends_agree_in_values_and_gradients(
    backend: str, inputs: int, outputs: int, memory: torch.memory_format
) -> None:
    if backend == "fused" and not native.available("cpu"):
        pytest.skip("no native library on this machine")
    layer = ButterflyConv1x1(inputs, outputs, backend=backend)
    x = torch.randn(2, inputs, 5, 6).contiguous(memory_format=memory).requires_grad_()
    y = layer(x)
    probe = torch.randn_like(y)
    found = torch.autograd.grad(y, (x, layer.weight), probe)
    exact = copy.deepcopy(layer).double()
    z = x.detach().double().requires_grad_()
    expected = torch.einsum("oi,bihw->bohw", exact.matrix(), z)
    gradients = torch.autograd.grad(expected, (z, exact.weight), probe.double())
    for one, other in zip((y, *found), (expected, *gradients)):
        assert float((one.double() - other).norm() / other.norm()) < 1e-5


@pytest.mark.parametrize("backend", ["auto", "dense", "staged"])
def test_every_other_residual_is_served(backend: str) -> None:
    layer = ButterflyConv1x1(16, 16, residual="every_other", backend=backend)
    x = torch.randn(1, 16, 3, 3)
    assert torch.allclose(layer(x), torch.einsum("oi,bihw->bohw", layer.matrix(), x), atol=1e-5)


@pytest.mark.parametrize("bias", [False, True])
def test_convolution_equals_its_materialized_form(bias: bool) -> None:
    for inputs, outputs in ((16, 16), (20, 50), (50, 20)):
        layer = ButterflyConv1x1(inputs, outputs, bias=bias).eval()
        if layer.bias is not None:
            nn.init.normal_(layer.bias)
        conv = layer.materialize()
        assert type(conv) is nn.Conv2d
        assert not conv.training
        x = torch.randn(2, inputs, 4, 4)
        assert torch.allclose(layer(x), conv(x), atol=1e-5)


def test_linear_serves_any_leading_axes_and_equals_its_materialized_form() -> None:
    layer = ButterflyLinear(30, 20)
    assert layer.bias is not None
    nn.init.normal_(layer.bias)
    linear = layer.materialize()
    for shape in ((30,), (4, 30), (2, 3, 30), (2, 0, 30)):
        x = torch.randn(shape)
        assert torch.allclose(layer(x), linear(x), atol=1e-5)
        assert layer(x).shape == (*shape[:-1], 20)


@needs_kernel
def test_kernel_is_chosen_for_float32_and_bfloat16_on_the_cpu() -> None:
    layout = structure(64, 64).layout
    assert choose(layout, "cpu", torch.float32) == choose(layout, "cpu", torch.bfloat16) == "fused"
    assert choose(layout, "cpu", torch.float64) == "two_factor"
    assert choose(structure(16, 16).layout, "cpu", torch.float64) == "dense"
    assert choose(structure(16, 16, 16).layout, "cpu", torch.float32) == "dense"
    assert choose(layout, "cuda", torch.float16) == "two_factor"


def test_auto_works_without_native_code_and_fused_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GRAFTWORK_EXTENSION", "reference")
    monkeypatch.setattr(native, "_loaded", {})
    x = torch.randn(1, 64, 5, 5)
    assert ButterflyConv1x1(64, 64)(x).shape == x.shape
    for _ in range(2):  # the refusal is remembered, and explained each time
        with pytest.raises(extension.Unavailable, match="switched off by GRAFTWORK_EXTENSION=reference"):
            ButterflyConv1x1(64, 64, backend="fused")(x)


def test_a_device_without_kernel_is_named() -> None:
    with pytest.raises(extension.Unavailable, match="no kernel for devices of type 'xpu'"):
        native.library("xpu")


def test_timm_optimizer_does_not_decay_butterfly_weights() -> None:
    model = nn.Sequential(ButterflyConv1x1(16, 16), nn.Flatten(), nn.Linear(64, 3))
    optimizer = create_optimizer_v2(model, opt="sgd", lr=0.1, weight_decay=0.1)
    decayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    assert id(model[0].weight) not in decayed
    assert id(model[2].weight) in decayed


def test_layer_follows_updates_in_place() -> None:
    layer = ButterflyConv1x1(16, 16)
    x = torch.randn(1, 16, 2, 2)
    with torch.no_grad():
        for change in (lambda: layer.weight.mul_(2), lambda: layer.weight.data.add_(0.1)):
            change()
            assert torch.allclose(layer(x), layer.materialize()(x), atol=1e-5)


def test_copies_are_equal_and_independent() -> None:
    layer = ButterflyConv1x1(16, 24)
    x = torch.randn(1, 16, 2, 2)
    y = layer(x)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x), y)
        with torch.no_grad():
            twin.weight.zero_()
        assert torch.equal(layer(x), y)


@needs_kernel
def test_threads_of_python_may_share_a_layer() -> None:
    from concurrent.futures import ThreadPoolExecutor

    layer = ButterflyConv1x1(64, 64)
    inputs = [torch.randn(1, 64, 9 + i, 11) for i in range(8)]
    with torch.no_grad():
        expected = [layer(x) for x in inputs]

        def run(x: torch.Tensor) -> torch.Tensor:
            with torch.inference_mode():
                return layer(x)

        with ThreadPoolExecutor(4) as pool:
            for y, other in zip(pool.map(run, inputs * 5), expected * 5):
                assert torch.equal(y, other)


def test_autocast_gives_bfloat16_like_a_convolution() -> None:
    layer, x = ButterflyConv1x1(64, 64), torch.randn(2, 64, 5, 5)
    exact = layer(x)
    for backend in BACKENDS:
        if backend == "fused" and not native.available("cpu"):
            continue
        layer.backend = backend
        with torch.autocast("cpu", torch.bfloat16):
            y = layer(x)
        assert y.dtype == torch.bfloat16
        assert float((y.float() - exact).norm() / exact.norm()) < 2e-2


@pytest.mark.parametrize(
    "layer", [ButterflyConv1x1(64, 96), ButterflyConv1x1(16, 16, residual="every_other")]
)
def test_captured_graphs_equal_eager(layer: ButterflyConv1x1) -> None:
    x = torch.randn(2, layer.in_channels, 6, 5)
    y = layer(x)
    captured = {
        "script": torch.jit.script(layer),
        "trace": torch.jit.trace(layer, x),
        "fx": torch.fx.symbolic_trace(layer),
        "export": torch.export.export(layer, (x,)).module(),
    }
    for name, graph in captured.items():
        assert torch.allclose(graph(x), y, atol=1e-5), name


def test_exported_graph_needs_no_operator_of_ours() -> None:
    program = torch.export.export(ButterflyConv1x1(64, 64), (torch.randn(1, 64, 4, 4),))
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert targets
    assert all(target.startswith("aten.") for target in targets)


def test_linear_layer_can_be_scripted_and_exported() -> None:
    layer, x = ButterflyLinear(64, 64), torch.randn(3, 2, 64)
    assert torch.allclose(torch.jit.script(layer)(x), layer(x), atol=1e-5)
    assert torch.allclose(torch.export.export(layer, (x,)).module()(x), layer(x), atol=1e-5)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_layer_is_one_graph_with_gradients(dynamic: bool) -> None:
    torch._dynamo.reset()
    layer = ButterflyConv1x1(32, 32)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for size in (4, 7):
        x = torch.randn(2, 32, size, size)
        y = compiled(x)
        assert torch.allclose(y, layer(x), atol=1e-6)
        found = torch.autograd.grad(y.square().sum(), layer.weight)[0]
        assert torch.allclose(found, torch.autograd.grad(layer(x).square().sum(), layer.weight)[0], rtol=1e-4)
    torch._dynamo.reset()


def test_function_transforms_see_through_the_layer() -> None:
    layer = ButterflyConv1x1(8, 8)
    x = torch.randn(3, 8, 2, 2)
    tangent = torch.randn_like(x)
    _, derivative = torch.func.jvp(layer, (x,), (tangent,))
    assert torch.allclose(derivative, layer(tangent), atol=1e-5)  # the layer is linear
    with torch.autograd.forward_ad.dual_level():
        dual = layer(torch.autograd.forward_ad.make_dual(x, tangent))
        derivative = torch.autograd.forward_ad.unpack_dual(dual).tangent
    assert torch.allclose(derivative, layer(tangent), atol=1e-5)
    stacked = torch.func.vmap(layer)(x.unsqueeze(1))
    assert torch.allclose(stacked.squeeze(1), layer(x), atol=1e-5)
    parameters = {"weight": layer.weight.detach()}

    def loss(parameters: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(layer, parameters, (x.unsqueeze(0),)).square().sum()

    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x)["weight"]
    layer(x).square().sum().backward()
    assert torch.allclose(each.sum(0), layer.weight.grad, rtol=1e-4, atol=1e-4)


def test_flop_counter_counts_what_the_stages_execute() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    for device in ("cpu", "meta"):
        if device == "cpu" and not native.available("cpu"):
            continue
        layer = ButterflyConv1x1(64, 128, device=device)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            layer(torch.zeros(2, 64, 3, 5, device=device))
        assert counter.get_total_flops() == 2 * 1536 * 2 * 15


def test_wrong_inputs_and_options_are_refused_with_the_reason() -> None:
    layer = ButterflyConv1x1(16, 16)
    with pytest.raises(ValueError, match=r"takes an input of shape \(batch, 16, ...\), got \(1, 8, 2, 2\)"):
        layer(torch.randn(1, 8, 2, 2))
    for options, message in (
        ({"base": 1}, "base must be an integer of at least 2"),
        ({"backend": "cuda"}, "backend must be one of auto, dense, staged, two_factor, fused, got 'cuda'"),
        ({"init": "xavier"}, 'init must be "paper" or "code"'),
        ({"residual": "all"}, "residual must be one of"),
        ({"residual": "every_other", "backend": "two_factor"}, "no two-factor form"),
        ({"base": 16, "backend": "fused"}, "radix 16 is beyond"),
    ):
        with pytest.raises(ValueError, match=message):
            ButterflyConv1x1(16, 16, **options)  # type: ignore[arg-type]
    for channels in ((0, 8), (1, 8), (8, 1)):
        with pytest.raises(ValueError, match="at least 2"):
            ButterflyConv1x1(*channels)
