"""What a training script relies on: gradients, checkpointing, precision, layout and parameter groups."""

# ruff: noqa: D102  the name of a check is its sentence

from __future__ import annotations

import fnmatch
from itertools import chain
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from graftwork.testing.compare import relative_error
from graftwork.testing.model.subject import ModelDeclaration, Subject, agree, gradients, single


def saved_tensors(model: nn.Module, images: Tensor) -> int:
    """Count the tensors that a forward pass keeps for the backward pass."""
    count = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal count
        count += 1
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(images)
    return count


class TrainingChecks(ModelDeclaration):
    """One step of training, in the ways that timm's scripts offer."""

    def test_every_parameter_gets_a_gradient(self, subject: Subject) -> None:
        model = subject.build(num_classes=42).train()
        found = dict(gradients(model, subject.images()))
        missing = [name for name, gradient in found.items() if gradient is None]
        assert not missing, (
            f"no gradient reaches {', '.join(missing)}; DistributedDataParallel would wait for it"
        )
        broken = [name for name, value in found.items() if value is not None and not value.isfinite().all()]
        assert not broken, f"gradients with NaN or infinity: {', '.join(broken)}"

    def test_gradient_checkpointing_changes_nothing(self, subject: Subject) -> None:
        self.declared("grad_checkpointing")
        plain = dict(gradients(subject.build(), subject.images()))
        model: Any = subject.build()
        model.set_grad_checkpointing()
        agree(single(model(subject.images())), subject.logits, "output with and without checkpointing")
        for name, gradient in gradients(model, subject.images()):
            expected = plain[name]
            assert (gradient is None) == (expected is None), f"checkpointing loses the gradient of {name}"
            if gradient is not None and expected is not None:
                agree(gradient, expected, f"gradient of {name} with and without checkpointing")

    def test_gradient_checkpointing_keeps_fewer_tensors(self, subject: Subject) -> None:
        self.declared("grad_checkpointing")
        model: Any = subject.build()
        plain = saved_tensors(model, subject.images())
        model.set_grad_checkpointing()
        checkpointed = saved_tensors(model, subject.images())
        assert checkpointed < plain, (
            f"set_grad_checkpointing() is ignored: {checkpointed} tensors kept of {plain}"
        )
        model.set_grad_checkpointing(False)
        assert saved_tensors(model, subject.images()) == plain, "checkpointing cannot be switched off"

    def test_channels_last_gives_the_same_output(self, subject: Subject) -> None:
        model: Any = subject.build()
        model.to(memory_format=torch.channels_last)
        with torch.no_grad():
            logits = single(model(subject.images().contiguous(memory_format=torch.channels_last)))
        agree(logits, subject.logits, "output in channels-last and in the usual layout")

    def test_bfloat16_autocast_is_close(self, subject: Subject) -> None:
        model = subject.build()
        with torch.autocast("cpu", torch.bfloat16):
            logits = single(model(subject.images()))
        logits.float().square().mean().backward()  # type: ignore[no-untyped-call]
        error = relative_error(logits.detach().float(), subject.logits)
        assert error <= self.amp_tolerance, f"relative error {error:.3g}, allowed {self.amp_tolerance:.3g}"
        broken = [
            name
            for name, parameter in model.named_parameters()
            if parameter.grad is None or not bool(parameter.grad.isfinite().all())
        ]
        assert not broken, f"under autocast no finite gradient reaches {', '.join(broken)}"

    def test_bfloat16_model_stays_in_bfloat16(self, subject: Subject) -> None:
        model = subject.build().to(torch.bfloat16)
        with torch.no_grad():
            logits = single(model(subject.images().to(torch.bfloat16)))
        assert logits.dtype == torch.bfloat16
        error = relative_error(logits.float(), subject.logits)
        assert error <= self.amp_tolerance, f"relative error {error:.3g}, allowed {self.amp_tolerance:.3g}"

    @pytest.mark.gpu
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
    def test_cuda_output_is_close_to_the_cpu_output(self, subject: Subject, dtype: torch.dtype) -> None:
        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")
        model = subject.build().cuda()
        exact = torch.backends.cudnn.flags(allow_tf32=False)
        mixed = torch.autocast("cuda", dtype, enabled=dtype != torch.float32)
        with torch.no_grad(), exact, mixed:
            logits = single(model(subject.images().cuda())).float().cpu()
        error = relative_error(logits, subject.logits)
        allowed = 1e-4 if dtype == torch.float32 else self.amp_tolerance
        assert error <= allowed, f"relative error {error:.3g}, allowed {allowed:.3g}"

    @pytest.mark.parametrize("coarse", [False, True], ids=["fine", "coarse"])
    def test_group_matcher_places_every_parameter_once(self, subject: Subject, coarse: bool) -> None:
        from timm.models import group_parameters

        model: Any = subject.model
        groups = group_parameters(model, model.group_matcher(coarse=coarse))
        placed = sorted(chain.from_iterable(groups.values()))
        assert placed == sorted(name for name, _ in model.named_parameters())
        assert len(groups) >= 2, (
            "group_matcher puts everything into one group; layer-wise decay needs several"
        )

    def test_layer_decay_optimizer_updates_every_parameter(self, subject: Subject) -> None:
        from timm.optim import create_optimizer_v2

        model = subject.build()
        optimizer = create_optimizer_v2(model, "adamw", lr=1e-3, weight_decay=0.05, layer_decay=0.8)
        taken = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
        assert sorted(taken) == sorted(id(parameter) for parameter in model.parameters())
        assert len({group["lr_scale"] for group in optimizer.param_groups}) > 1

    def test_names_without_weight_decay_exist(self, subject: Subject) -> None:
        model: Any = subject.model
        if not hasattr(model, "no_weight_decay"):
            pytest.skip(f"{type(model).__name__} has no no_weight_decay")
        names = [name for name, _ in model.named_parameters()]
        # timm's base classes list optional parameters too, such as dist_token
        inherited = {
            pattern
            for base in type(model).__mro__
            if base.__module__.startswith("timm.") and "no_weight_decay" in vars(base)
            for pattern in base.no_weight_decay(model)  # type: ignore[attr-defined]
        }
        stale = [
            pattern
            for pattern in set(model.no_weight_decay()) - inherited
            if not fnmatch.filter(names, pattern)
        ]
        assert not stale, f"no_weight_decay names parameters that do not exist: {', '.join(sorted(stale))}"
