"""What a model contract is told, and the small seeded model that its checks share."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

CLASSES = 10
"""Classes of the small model, so that the head costs nothing."""

Declared = bool | str


class Subject:
    """A variant under test, built small.

    Args:
        name: timm name, without a tag.
        input_size: Channels, height and width of the images.
        model_kwargs: Overrides that make the model small.
    """

    def __init__(self, name: str, input_size: tuple[int, int, int], model_kwargs: Mapping[str, Any]) -> None:
        self.name = name
        self.input_size = input_size
        self.model_kwargs = dict(model_kwargs)

    def kwargs(self, **overrides: Any) -> dict[str, Any]:
        """Return the arguments of ``timm.create_model`` for the small model."""
        kwargs: dict[str, Any] = {"num_classes": CLASSES, **self.model_kwargs}
        if getattr(self.cfg, "fixed_input_size", False):
            kwargs.setdefault("img_size", self.input_size[1:])
        return {**kwargs, **overrides}

    @property
    def cfg(self) -> Any:
        """The record timm keeps of the variant's default weights or input."""
        from timm.models import get_pretrained_cfg

        return get_pretrained_cfg(self.name)

    def raw(self, *, seed: int = 0, foreign_seed: int = 0, **overrides: Any) -> nn.Module:
        """Build the small model as timm does, from a seed of torch and one of Python and numpy."""
        import timm

        with seeded(seed, foreign_seed):
            model: nn.Module = timm.create_model(self.name, **self.kwargs(**overrides))
        return model

    def build(self, *, seed: int = 0, **overrides: Any) -> nn.Module:
        """Build the small model in evaluation mode, with nothing left at a value that hides faults."""
        model = self.raw(seed=seed, **overrides)
        return unhide(model, seed).eval()

    @cached_property
    def model(self) -> nn.Module:
        """The model shared by the checks that only read it."""
        return self.build()

    def images(self, batch: int = 2, channels: int | None = None) -> Tensor:
        """Return a batch of random images, always the same: (B, C, H, W), float32, standardised."""
        generator = torch.Generator().manual_seed(1)
        size = (batch, channels or self.input_size[0], *self.input_size[1:])
        return torch.randn(size, generator=generator)

    @cached_property
    def logits(self) -> Tensor:
        """The shared model's answer to ``images()``."""
        with torch.no_grad():
            return single(self.model(self.images()))


@contextmanager
def seeded(seed: int, foreign_seed: int) -> Iterator[None]:
    """Run a block with seeded random numbers, and leave every generator as it was."""
    import numpy

    python_state, numpy_state = random.getstate(), numpy.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        random.seed(foreign_seed)
        numpy.random.seed(foreign_seed)
        try:
            yield
        finally:
            random.setstate(python_state)
            numpy.random.set_state(numpy_state)


def unhide(model: nn.Module, seed: int) -> nn.Module:
    """Move constant parameters and batch statistics a little off their initial value.

    A head at zero, a LayerScale at 1e-6 or batch statistics at (0, 1) make a model blind to most of itself,
    and a check of its output blind as well.
    """
    generator = torch.Generator().manual_seed(seed + 1000)
    with torch.no_grad():
        for parameter in model.parameters():
            if (
                parameter.is_floating_point()
                and parameter.numel()
                and bool((parameter == parameter.max()).all())
            ):
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator).to(parameter))
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
                mean, variance = module.running_mean, module.running_var
                assert variance is not None
                mean.add_(0.1 * torch.randn(mean.shape, generator=generator).to(mean))
                variance.mul_(0.8 + 0.4 * torch.rand(variance.shape, generator=generator).to(variance))
    return model


def single(output: Tensor | Sequence[Tensor] | Mapping[str, Tensor]) -> Tensor:
    """Return an output as one tensor; distilled models give several in training, traced ones a dict."""
    if isinstance(output, Tensor):
        return output
    return torch.cat(list(output.values() if isinstance(output, Mapping) else output))


def register_variants() -> None:
    """Register what the catalogue offers with timm, also what joined it after the adapter was imported."""
    import graftwork.timm

    graftwork.timm.register_all()


def without_memory(build: Callable[[], nn.Module]) -> nn.Module:
    """Build a model on the meta device, or for real where its constructor needs values."""
    try:
        with torch.device("meta"):
            return build()
    except (RuntimeError, NotImplementedError):
        return build()


def agree(actual: Tensor, expected: Tensor, what: str, rtol: float = 1e-4, atol: float = 1e-5) -> None:
    """Fail, saying what should have been equal, unless two tensors are."""
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol, msg=lambda text: f"{what}: {text}")


def gradients(model: nn.Module, images: Tensor) -> Iterator[tuple[str, Tensor | None]]:
    """Run one step backwards from the mean square of the output; yield (name, gradient)."""
    model.zero_grad(set_to_none=True)
    single(model(images)).float().square().mean().backward()  # type: ignore[no-untyped-call]
    for name, parameter in model.named_parameters():
        yield name, parameter.grad


class ModelDeclaration:
    """What the author of a model says about it, as class attributes.

    A capability is True, or a sentence that says why the model does not have it.

    Args:
        variant: timm name of the variant under test.
        variants: Several names tested alike; their names appear in the test ids.
        input_size: Channels, height and width of the test images.
        model_kwargs: Overrides that make the model small, such as ``dict(dim=32, depth=4)``.
        parameters: Published parameter count of the full-size model, or a mapping from variant to count that
            may name further variants. None if nothing is published.
        macs: Published multiply-accumulates of one image at the full input size, likewise.
        macs_tolerance: Relative rounding of the published figure.
        global_pool: ``global_pool=""`` leaves positions unpooled.
        features: ``features_only=True`` works with at least three levels.
        torchscript: ``torch.jit.script`` works.
        fx: The model can be traced by ``timm.models.create_feature_extractor``'s rules.
        onnx: ONNX export works.
        dynamic_batch: ``torch.export`` works with a free batch size.
        grad_checkpointing: ``set_grad_checkpointing`` works.
        placement: The factory takes ``device`` and ``dtype``.
        compile_backend: Backend of ``torch.compile``. The default captures and differentiates the whole graph
            but generates no code; ``"inductor"`` does both and is slow.
        amp_tolerance: Relative L2 error allowed under bfloat16 autocast.
    """

    variant: ClassVar[str] = ""
    variants: ClassVar[Sequence[str]] = ()
    input_size: ClassVar[tuple[int, int, int]] = (3, 64, 64)
    model_kwargs: ClassVar[Mapping[str, Any]] = {}
    parameters: ClassVar[int | Mapping[str, int] | None] = None
    macs: ClassVar[int | Mapping[str, int] | None] = None
    macs_tolerance: ClassVar[float] = 0.0
    global_pool: ClassVar[Declared] = True
    features: ClassVar[Declared] = True
    torchscript: ClassVar[Declared] = True
    fx: ClassVar[Declared] = True
    onnx: ClassVar[Declared] = True
    dynamic_batch: ClassVar[Declared] = True
    grad_checkpointing: ClassVar[Declared] = True
    placement: ClassVar[Declared] = True
    compile_backend: ClassVar[str] = "aot_eager"
    amp_tolerance: ClassVar[float] = 0.05

    _subjects: ClassVar[dict[tuple[type, str], Subject]] = {}

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Return the variants under test."""
        return tuple(cls.variants) or ((cls.variant,) if cls.variant else ())

    @classmethod
    def published(cls, figure: int | Mapping[str, int] | None) -> dict[str, int]:
        """Return a published figure by variant name."""
        if figure is None:
            return {}
        return dict(figure) if isinstance(figure, Mapping) else dict.fromkeys(cls.names(), figure)

    def declared(self, capability: str) -> None:
        """Skip the test, giving the author's reason, if the model is declared to lack a capability."""
        answer: Declared = getattr(self, capability)
        if answer is False:
            pytest.fail(f"{type(self).__name__}.{capability} is False: write the reason in its place.")
        if isinstance(answer, str):
            pytest.skip(f"declared: {answer}")

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Parametrize by variant, so that test ids name it."""
        cls = type(self)
        if not cls.names():
            pytest.fail(
                f'{cls.__name__} does not say what to test: set variant = "your_timm_name".', pytrace=False
            )
        if "subject" in metafunc.fixturenames:
            metafunc.parametrize("subject", cls.names(), indirect=True)
        for figure in ("parameters", "macs"):
            fixture = f"published_{figure}"
            if fixture in metafunc.fixturenames:
                known = cls.published(getattr(cls, figure))
                metafunc.parametrize(fixture, known.items(), ids=known.keys())

    @pytest.fixture(autouse=True)
    def one_thread(self) -> Iterator[None]:
        """Compute with one thread: waking others takes longer than a model of this size."""
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(before)

    @pytest.fixture
    def subject(self, request: pytest.FixtureRequest) -> Subject:
        """The variant under test; built once per class and variant."""
        register_variants()
        key = (type(self), str(request.param))
        if key not in self._subjects:
            self._subjects[key] = Subject(key[1], self.input_size, self.model_kwargs)
        return self._subjects[key]
