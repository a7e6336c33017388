"""Graph capture: TorchScript, FX, torch.compile, torch.export and ONNX."""

# ruff: noqa: D102  the name of a check is its sentence

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from graftwork.testing.compare import relative_error
from graftwork.testing.model.subject import ModelDeclaration, Subject, agree, gradients, single


def traced(model: nn.Module, *, training: bool) -> nn.Module:
    """Return the FX graph of a model, with timm's rules for what is not traced into; it gives a dict."""
    from timm.models._features_fx import create_feature_extractor, get_graph_node_names

    training_nodes, evaluation_nodes = get_graph_node_names(model)
    last = (training_nodes if training else evaluation_nodes)[-1]
    graph: nn.Module = create_feature_extractor(model, [last])
    return graph.train(training)


def scripted(model: nn.Module) -> torch.jit.ScriptModule:
    """Compile a model to TorchScript."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch.jit is deprecated, and still asked for
        script: torch.jit.ScriptModule = torch.jit.script(model)
    return script


def exported(model: nn.Module, images: Tensor, *, dynamic: bool) -> torch.export.ExportedProgram:
    """Capture a model with ``torch.export``, with a fixed or a free batch size."""
    shapes = ({0: torch.export.Dim("batch", min=2, max=64)},) if dynamic else None
    return torch.export.export(model, (images,), dynamic_shapes=shapes)


class GraphChecks(ModelDeclaration):
    """A captured graph computes what the model computes."""

    def test_torchscript_equals_eager(self, subject: Subject) -> None:
        self.declared("torchscript")
        from timm.layers import set_scriptable

        with set_scriptable(True):
            model = subject.build()
        with torch.no_grad():
            agree(single(scripted(model)(subject.images())), subject.logits, "TorchScript and eager")

    def test_fx_trace_equals_eager(self, subject: Subject) -> None:
        self.declared("fx")
        graph = traced(subject.build(), training=False)
        with torch.no_grad():
            agree(single(graph(subject.images())), subject.logits, "FX trace and eager")

    def test_fx_trace_can_be_scripted(self, subject: Subject) -> None:
        self.declared("fx")
        self.declared("torchscript")
        from timm.layers import set_scriptable

        with set_scriptable(True):
            graph: Any = traced(subject.build(), training=False)
        text = [node.name for node in graph.graph.nodes if isinstance(node.type, str)]
        assert not text, (
            f"TorchScript cannot read from an FX graph how forward annotates {', '.join(text)}, because "
            "annotations are text: define the model in a module without `from __future__ import annotations`"
        )
        with torch.no_grad():
            agree(single(scripted(graph)(subject.images())), subject.logits, "scripted FX trace and eager")

    def test_fx_trace_carries_gradients(self, subject: Subject) -> None:
        self.declared("fx")
        model = subject.build(num_classes=42).train()
        graph = traced(model, training=True)
        single(graph(subject.images())).square().mean().backward()  # type: ignore[no-untyped-call]
        missing = [name for name, parameter in graph.named_parameters() if parameter.grad is None]
        assert not missing, f"the traced graph gives no gradient to {', '.join(missing)}"
        assert sum(p.numel() for p in graph.parameters()) == sum(p.numel() for p in model.parameters())

    def test_compile_captures_one_graph(self, subject: Subject) -> None:
        torch._dynamo.reset()
        model = subject.build()
        expected = dict(gradients(subject.build(), subject.images()))
        compiled: Any = torch.compile(model, fullgraph=True, backend=self.compile_backend)
        logits = single(compiled(subject.images()))
        agree(logits.detach(), subject.logits, "compiled and eager output")
        logits.float().square().mean().backward()  # type: ignore[no-untyped-call]
        for name, parameter in model.named_parameters():
            gradient = expected[name]
            assert parameter.grad is not None and gradient is not None, f"no compiled gradient for {name}"
            agree(parameter.grad, gradient, f"compiled and eager gradient of {name}")
        torch._dynamo.reset()

    def test_export_equals_eager(self, subject: Subject) -> None:
        program = exported(subject.build(), subject.images(), dynamic=False)
        with torch.no_grad():
            agree(single(program.module()(subject.images())), subject.logits, "exported and eager")

    def test_exported_batch_size_is_free(self, subject: Subject) -> None:
        self.declared("dynamic_batch")
        program = exported(subject.build(), subject.images(), dynamic=True)
        images = subject.images(batch=3)
        with torch.no_grad():
            agree(
                single(program.module()(images)),
                single(subject.model(images)),
                "exported at another batch size",
            )

    @pytest.mark.slow
    def test_onnx_equals_eager(self, subject: Subject) -> None:
        self.declared("onnx")
        pytest.importorskip("onnxscript")
        onnx = pytest.importorskip("onnx")
        from onnx.reference import ReferenceEvaluator

        program = torch.onnx.export(subject.build(), (subject.images(),), dynamo=True, verbose=False)
        assert program is not None
        proto = program.model_proto
        onnx.checker.check_model(proto)
        (name,) = (value.name for value in proto.graph.input)
        logits = ReferenceEvaluator(proto).run(None, {name: subject.images().numpy()})[0]
        error = relative_error(torch.from_numpy(logits), subject.logits)
        assert error <= 1e-4, f"relative error of the ONNX graph {error:.3g}, allowed 1e-4"
