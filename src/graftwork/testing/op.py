"""The contract of an operator: its kernel against a readable reference, and both against torch."""

# ruff: noqa: D102  the name of a check is its sentence

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import pytest
import torch
from torch import Tensor

from graftwork.testing.compare import relative_error

Arguments = tuple[Any, ...]
DEVICES = [pytest.param("cpu"), pytest.param("cuda", marks=pytest.mark.gpu)]
HALF_NAMES = {torch.float16: "float16|Half", torch.bfloat16: "bfloat16|BFloat16"}
REFUSALS = (TypeError, ValueError, RuntimeError, NotImplementedError)


def tensors_of(output: Any) -> list[Tensor]:
    """Return the tensors of an output, which may be one tensor or a sequence."""
    return [output] if isinstance(output, Tensor) else [item for item in output if isinstance(item, Tensor)]


def each_tensor(arguments: Arguments, change: Callable[[Tensor], Tensor]) -> Arguments:
    """Apply a function to the tensors among the arguments."""
    return tuple(change(item) if isinstance(item, Tensor) else item for item in arguments)


def strided(tensor: Tensor) -> Tensor:
    """Return equal values in memory that is not contiguous."""
    return torch.stack([tensor, torch.zeros_like(tensor)], dim=-1)[..., 0]


class OpContract:
    """What an operator owes the code that calls it.

    Example:
        >>> class TestTrace(OpContract):
        ...     op = trace
        ...     reference = trace_reference
        ...     custom_op = torch.ops.graftwork_power_foam.trace.default
        ...
        ...     def samples(self, *, device, dtype):
        ...         return {"three rays": (torch.rand(3, 6, device=device, dtype=dtype),)}

    Args:
        op: The public function, or the custom operator itself.
        reference: PyTorch twin with the same signature.
        custom_op: What ``torch.library.custom_op`` or ``torch.ops`` gives, if ``op`` is a function around it.
        devices: Devices with a kernel. The checks on ``cuda`` are marked ``gpu``.
        differentiable: Positions of the arguments that carry gradients; empty if none do, None for every
            floating-point tensor.
        empty: Whether an empty first tensor works, or is refused with an error that says so.
        half: Whether float16 and bfloat16 work, or are refused with an error that names the type.
        value_tolerance: Relative L2 error of float32 outputs against the reference.
        gradient_tolerance: The same for gradients.
        half_tolerance: The same for half-precision inputs, against the reference in float32.
        boundary_fraction: Largest share of output elements that ``boundary`` may exempt.
    """

    op: ClassVar[Any] = None
    reference: ClassVar[Any] = None
    custom_op: ClassVar[Any] = None
    devices: ClassVar[Sequence[str]] = ("cpu",)
    differentiable: ClassVar[Sequence[int] | None] = None
    empty: ClassVar[Literal["works", "refuses"]] = "works"
    half: ClassVar[Literal["works", "refuses"]] = "works"
    value_tolerance: ClassVar[float] = 1e-5
    gradient_tolerance: ClassVar[float] = 1e-4
    half_tolerance: ClassVar[float] = 2e-2
    boundary_fraction: ClassVar[float] = 0.0

    def samples(self, *, device: torch.device, dtype: torch.dtype) -> Mapping[str, Arguments]:
        """Return named, valid, small arguments; floating-point tensors in the given type."""
        raise NotImplementedError(f"{type(self).__name__} must override samples(self, *, device, dtype)")

    def gradcheck_samples(self) -> Mapping[str, Arguments]:
        """Return float64 arguments for the numerical check of the reference; override to make them tiny."""
        return self.samples(device=torch.device("cpu"), dtype=torch.float64)

    def custom_op_samples(self) -> Mapping[str, Arguments]:
        """Return arguments of the custom operator; override if they differ from the public function's."""
        return self.samples(device=torch.device("cpu"), dtype=torch.float32)

    def empty_samples(self) -> Mapping[str, Arguments]:
        """Return arguments whose first tensor has no rows; override if others must shrink with it."""
        found = {}
        for name, arguments in self.samples(device=torch.device("cpu"), dtype=torch.float32).items():
            first = next(index for index, item in enumerate(arguments) if isinstance(item, Tensor))
            found[name] = (*arguments[:first], arguments[first][:0], *arguments[first + 1 :])
        return found

    def boundary(self, arguments: Arguments) -> Tensor | None:
        """Return a mask of output elements that are not compared, because the function jumps there."""
        return None

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Refuse to be collected before the author has named operator and reference."""
        cls = type(self)
        missing = [name for name in ("op", "reference") if getattr(cls, name) is None]
        if missing:
            pytest.fail(
                f"{cls.__name__} does not say what to test: set {' and '.join(missing)}.", pytrace=False
            )

    def function(self, name: str) -> Callable[..., Any]:
        """Return a class attribute without binding it to this object."""
        found = inspect.getattr_static(type(self), name)
        function: Callable[..., Any] = found.__func__ if isinstance(found, staticmethod) else found
        return function

    def on(self, device: str) -> torch.device:
        """Return a device, or skip where there is no kernel for it or no such hardware."""
        if device not in self.devices:
            pytest.skip(f"no kernel for {device}")
        if device == "cuda" and not torch.cuda.is_available():
            pytest.skip("no CUDA device")
        return torch.device(device)

    def with_gradients(self, arguments: Arguments) -> tuple[Arguments, list[Tensor]]:
        """Return fresh arguments and those among them that carry gradients."""
        carriers: list[Tensor] = []
        fresh: list[Any] = []
        for index, item in enumerate(arguments):
            if isinstance(item, Tensor):
                item = item.detach().clone()
                chosen = (
                    item.is_floating_point() if self.differentiable is None else index in self.differentiable
                )
                if chosen:
                    carriers.append(item.requires_grad_())
            fresh.append(item)
        return tuple(fresh), carriers

    def compare(self, actual: Any, expected: Any, arguments: Arguments, tolerance: float, what: str) -> None:
        """Fail unless two outputs have equal shapes and close values outside the boundary."""
        ours, theirs = tensors_of(actual), tensors_of(expected)
        assert len(ours) == len(theirs), f"{what}: {len(ours)} outputs, the reference gives {len(theirs)}"
        mask = self.boundary(arguments)
        assert mask is None or any(mask.shape == value.shape for value in ours), "boundary() fits no output"
        for index, (value, other) in enumerate(zip(ours, theirs)):
            assert value.shape == other.shape, (
                f"{what}, output {index}: {tuple(value.shape)}, {tuple(other.shape)}"
            )
            value, other = value.detach().double(), other.detach().double()
            if mask is not None and mask.shape == value.shape:
                share = float(mask.double().mean()) if mask.numel() else 0.0
                assert share <= self.boundary_fraction, (
                    f"{what}: the boundary covers {share:.2%}, allowed is {self.boundary_fraction:.2%}"
                )
                value, other = value.masked_fill(mask, 0.0), other.masked_fill(mask, 0.0)
            error = relative_error(value, other)
            assert error <= tolerance, (
                f"{what}, output {index}: relative error {error:.3g}, allowed {tolerance:.3g}"
            )

    def gradients(self, function: Callable[..., Any], arguments: Arguments) -> list[Tensor]:
        """Return the gradients of a fixed random projection of the output."""
        fresh, carriers = self.with_gradients(arguments)
        outputs = [item for item in tensors_of(function(*fresh)) if item.requires_grad]
        generator = torch.Generator().manual_seed(0)
        mask = self.boundary(arguments)
        weights = []
        for output in outputs:
            weight = torch.randn(output.shape, generator=generator).to(output)
            if mask is not None and mask.shape == output.shape:
                weight = weight.masked_fill(mask, 0.0)
            weights.append(weight)
        found = torch.autograd.grad(outputs, carriers, weights, allow_unused=True)
        return [
            torch.zeros_like(carrier) if gradient is None else gradient
            for carrier, gradient in zip(carriers, found)
        ]

    def skip_without_gradients(self) -> None:
        """Skip a check of gradients for an operator that has none."""
        if self.differentiable is not None and not self.differentiable:
            pytest.skip("the operator carries no gradients")

    def test_operator_is_registered_as_torch_expects(self) -> None:
        operator = self.function("op") if self.custom_op is None else self.function("custom_op")
        if inspect.isfunction(operator):
            pytest.fail("op is a plain function: set custom_op to what torch.library.custom_op returned")
        for arguments in self.custom_op_samples().values():
            torch.library.opcheck(operator, arguments)  # type: ignore[arg-type]
            if self.differentiable is None or self.differentiable:
                torch.library.opcheck(operator, self.with_gradients(arguments)[0])  # type: ignore[arg-type]

    def test_gradient_of_the_reference_is_right(self) -> None:
        self.skip_without_gradients()
        for name, arguments in self.gradcheck_samples().items():
            fresh, carriers = self.with_gradients(arguments)
            assert carriers, f"{name}: no argument carries a gradient; set differentiable = ()"
            assert torch.autograd.gradcheck(self.function("reference"), fresh), name

    @pytest.mark.parametrize("device", DEVICES)
    def test_values_equal_the_reference(self, device: str) -> None:
        for name, arguments in self.samples(device=self.on(device), dtype=torch.float32).items():
            expected = self.function("reference")(*arguments)
            self.compare(self.function("op")(*arguments), expected, arguments, self.value_tolerance, name)

    @pytest.mark.parametrize("device", DEVICES)
    def test_gradients_equal_the_reference(self, device: str) -> None:
        self.skip_without_gradients()
        for name, arguments in self.samples(device=self.on(device), dtype=torch.float32).items():
            ours = self.gradients(self.function("op"), arguments)
            theirs = self.gradients(self.function("reference"), arguments)
            for index, (gradient, expected) in enumerate(zip(ours, theirs)):
                assert gradient.shape == expected.shape
                error = relative_error(gradient, expected)
                assert error <= self.gradient_tolerance, (
                    f"{name}, gradient {index}: relative error {error:.3g}, "
                    f"allowed {self.gradient_tolerance:.3g}"
                )

    @pytest.mark.parametrize("device", DEVICES)
    def test_memory_layout_does_not_matter(self, device: str) -> None:
        for name, arguments in self.samples(device=self.on(device), dtype=torch.float32).items():
            expected = self.function("op")(*arguments)
            found = self.function("op")(*each_tensor(arguments, strided))
            self.compare(found, expected, arguments, self.value_tolerance, f"{name}, not contiguous")

    def test_empty_input_works_or_is_refused(self) -> None:
        for name, arguments in self.empty_samples().items():
            if self.empty == "refuses":
                with pytest.raises(REFUSALS, match=r"(?i)empty|zero|at least"):
                    self.function("op")(*arguments)
                continue
            expected = self.function("reference")(*arguments)
            self.compare(self.function("op")(*arguments), expected, arguments, 0.0, f"{name}, empty")
            if self.differentiable is None or self.differentiable:
                assert all(
                    bool(gradient.isfinite().all())
                    for gradient in self.gradients(self.function("op"), arguments)
                )

    @pytest.mark.parametrize("device", DEVICES)
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
    def test_half_precision_works_or_is_refused(self, device: str, dtype: torch.dtype) -> None:
        for name, arguments in self.samples(device=self.on(device), dtype=dtype).items():
            if self.half == "refuses":
                with pytest.raises(REFUSALS, match=HALF_NAMES[dtype]):
                    self.function("op")(*arguments)
                continue
            widened = each_tensor(arguments, lambda item: item.float() if item.is_floating_point() else item)
            expected = self.function("reference")(*widened)
            self.compare(
                self.function("op")(*arguments), expected, widened, self.half_tolerance, f"{name}, {dtype}"
            )

    def test_compiled_graph_equals_eager(self) -> None:
        torch._dynamo.reset()
        compiled = torch.compile(self.function("op"), fullgraph=True, backend="aot_eager")
        for name, arguments in self.samples(device=torch.device("cpu"), dtype=torch.float32).items():
            expected = self.function("op")(*arguments)
            self.compare(compiled(*arguments), expected, arguments, self.value_tolerance, f"{name}, compiled")
        torch._dynamo.reset()

    @pytest.mark.gpu
    def test_kernel_runs_on_the_current_stream(self) -> None:
        device = self.on("cuda")
        for name, arguments in self.samples(device=device, dtype=torch.float32).items():
            expected = self.function("op")(*arguments)
            torch.cuda.synchronize()
            stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            with torch.cuda.stream(stream):
                staged = each_tensor(arguments, torch.zeros_like)
                # a kernel on another stream would read the zeros meanwhile
                torch.cuda._sleep(200_000_000)  # type: ignore[no-untyped-call]
                for item, source in zip(staged, arguments):
                    if isinstance(item, Tensor):
                        item.copy_(source)
                found = self.function("op")(*staged)
            stream.synchronize()
            self.compare(found, expected, arguments, self.value_tolerance, f"{name}, on a side stream")

    @pytest.mark.gpu
    def test_kernel_runs_on_the_device_of_its_inputs(self) -> None:
        self.on("cuda")
        if torch.cuda.device_count() < 2:
            pytest.skip("one CUDA device only")
        for name, arguments in self.samples(device=torch.device("cuda:1"), dtype=torch.float32).items():
            expected = self.function("reference")(*arguments)
            with torch.cuda.device(0):
                found = self.function("op")(*arguments)
            assert all(item.device.index == 1 for item in tensors_of(found)), (
                f"{name}: output on another device"
            )
            self.compare(found, expected, arguments, self.value_tolerance, f"{name}, on the second device")
