"""The contract of a render backend: it serves like the scene's reference, or says why it cannot."""

# ruff: noqa: D102  the name of a check is its sentence

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from graftwork.backends import NoBackend, choose
from graftwork.catalog import Entry, load, plugins
from graftwork.extension import Status, Unavailable
from graftwork.spec import RenderBackend, RenderKind
from graftwork.testing.compare import relative_error
from graftwork.testing.interpreter import run_python

Arguments = tuple[Any, ...]
KINDS = ("rasterize", "raytrace")
DEVICES = [pytest.param("cpu"), pytest.param("cuda", marks=pytest.mark.gpu)]

_LOOK_WITHOUT_TOUCHING = """
import json, os, sys
from graftwork.backends import explain
from graftwork.catalog import load, plugins

backend = plugins().backends[sys.argv[1]].description
load(backend)
devices = ("cpu", "cuda") if backend.device == "any" else (backend.device,)
for kind in sorted(backend.kinds):
    for device in devices:
        explain(backend.scene, kind, device)
import torch
built = [name for _, _, names in os.walk(os.environ["GRAFTWORK_CACHE"]) for name in names]
print(json.dumps({"built": built, "cuda": torch.cuda.is_initialized()}))
"""

_CHOOSE = """
import json, sys
from graftwork.backends import NoBackend, choose
name, scene, kind, device = sys.argv[1:]
try:
    chosen = choose(scene, kind, device, name)
except NoBackend as error:
    print(json.dumps({"reason": error.reason, "fix": error.fix}))
else:
    print(json.dumps({"served": chosen.entry.name}))
"""


class BackendContract:
    """What a render backend owes the scenes that it renders.

    Example:
        >>> class TestMine(BackendContract):
        ...     backend = "power-foam:mine"
        ...
        ...     def samples(self, *, kind, device):
        ...         return {"one ball": (cells.to(device), camera.to(device))}
        ...
        ...     def parameters(self, arguments):
        ...         return {"centers": arguments[0].centers}
        ...
        ...     def images(self, output):
        ...         return {"rgb": output.rgb}

    Args:
        backend: Its name in the catalogue, ``"<scene>:<backend>"``.
        reference: The backend it is compared with; ``"<scene>:reference"`` if left empty.
        value_tolerance: Relative L2 error of every image against the reference.
        gradient_tolerance: The same for the gradient of every parameter.
    """

    backend: ClassVar[str] = ""
    reference: ClassVar[str] = ""
    value_tolerance: ClassVar[float] = 1e-3
    gradient_tolerance: ClassVar[float] = 1e-2

    def samples(self, *, kind: RenderKind, device: torch.device) -> Mapping[str, Arguments]:
        """Return named positional arguments of a renderer of this kind; parameters must require gradients."""
        raise NotImplementedError(f"{type(self).__name__} must override samples(self, *, kind, device)")

    def parameters(self, arguments: Arguments) -> Mapping[str, Tensor]:
        """Return the leaves among the arguments whose gradients are compared."""
        raise NotImplementedError(f"{type(self).__name__} must override parameters(self, arguments)")

    def images(self, output: Any) -> Mapping[str, Tensor]:
        """Return the differentiable images of what a renderer returns."""
        raise NotImplementedError(f"{type(self).__name__} must override images(self, output)")

    def for_reference(self, arguments: Arguments) -> Arguments:
        """Return the arguments as the reference gets them; override to compare with float64."""
        return arguments

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Refuse to be collected before the author has named the backend."""
        if not type(self).backend:
            pytest.fail(
                f'{type(self).__name__} does not say what to test: set backend = "<scene>:<backend>".',
                pytrace=False,
            )

    def entry(self) -> Entry:
        """Return the backend's entry in the catalogue."""
        backends = plugins().backends
        assert self.backend in backends, (
            f"no plugin offers the render backend {self.backend!r}, only "
            f"{', '.join(sorted(backends)) or 'none'}"
        )
        return backends[self.backend]

    def description(self) -> RenderBackend:
        """Return what the plugin says about the backend."""
        found = self.entry().description
        assert isinstance(found, RenderBackend)
        return found

    def devices(self) -> tuple[str, ...]:
        """Return the device types it says it serves."""
        device = self.description().device
        return ("cpu", "cuda") if device == "any" else (device,)

    def renderer(self, kind: RenderKind, device: str) -> Callable[..., Any]:
        """Return the renderer, or skip where the backend does not serve."""
        if kind not in self.description().kinds or device not in self.devices():
            pytest.skip(f"{self.backend} does not {kind} on {device}")
        if device == "cuda" and not torch.cuda.is_available():
            pytest.skip("no CUDA device")
        return choose(self.description().scene, kind, device, self.backend).callable

    def reference_renderer(self, kind: RenderKind, device: str) -> Callable[..., Any]:
        """Return the renderer it is compared with."""
        scene = self.description().scene
        name = self.reference or f"{scene}:reference"
        if name == self.backend:
            pytest.skip(f"{name} is the reference")
        return choose(scene, kind, device, name).callable

    def test_description_is_complete(self) -> None:
        description = self.description()
        assert description.name == self.backend
        assert description.kinds, "it renders nothing"
        assert callable(load(description)), f"{description.target} is not callable"

    def test_factory_takes_kind_and_device(self) -> None:
        factory = load(self.description())
        inspect.signature(factory).bind("rasterize", torch.device("cpu"))

    def test_nothing_is_built_before_first_use(self, tmp_path: Path) -> None:
        result = run_python(
            _LOOK_WITHOUT_TOUCHING, args=[self.backend], env={"GRAFTWORK_CACHE": str(tmp_path / "cache")}
        )
        assert result.returncode == 0, result.stderr
        found = json.loads(result.stdout.splitlines()[-1])
        assert not found["built"], f"describing the backend compiled {found['built']}"
        assert not found["cuda"], "describing the backend created a CUDA context"

    def test_status_is_told_without_serving(self) -> None:
        factory = load(self.description())
        if not hasattr(factory, "status"):
            pytest.skip("its factory carries no status: it is taken to need nothing")
        for kind in sorted(self.description().kinds):
            for device in self.devices():
                status = factory.status(kind, torch.device(device))
                assert isinstance(status, Status)
                assert status.state != "unavailable" or (status.detail and status.fix)

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("device", ["cpu", "cuda"])
    def test_it_serves_or_explains(self, kind: RenderKind, device: str) -> None:
        if kind not in self.description().kinds or device not in self.devices():
            pytest.skip(f"{self.backend} does not {kind} on {device}")
        try:
            renderer = load(self.description())(kind, torch.device(device))
        except Unavailable as error:
            assert error.reason.strip(), "a refusal without a reason"
            assert error.fix.strip(), f"a refusal without a fix: {error.reason}"
        else:
            assert callable(renderer)

    @pytest.mark.parametrize("kind", KINDS)
    def test_without_native_code_it_serves_or_explains(self, kind: RenderKind) -> None:
        description = self.description()
        if kind not in description.kinds:
            pytest.skip(f"{self.backend} does not {kind}")
        for device in self.devices():
            result = run_python(
                _CHOOSE,
                args=[self.backend, description.scene, kind, device],
                env={"GRAFTWORK_EXTENSION": "reference"},
            )
            assert result.returncode == 0, f"it crashed instead of refusing:\n{result.stderr}"
            answer = json.loads(result.stdout.splitlines()[-1])
            served = answer.get("served") == self.backend
            assert served or (answer.get("reason") and answer.get("fix")), answer

    def test_named_it_never_falls_back(self) -> None:
        description = self.description()
        wrong_device = {"cpu": "cuda", "cuda": "cpu"}.get(description.device)
        wrong_kinds = [kind for kind in KINDS if kind not in description.kinds]
        if wrong_device is None and not wrong_kinds:
            pytest.skip("it says it serves every kind and device")
        asked: Iterable[tuple[Any, str]] = [(kind, self.devices()[0]) for kind in wrong_kinds]
        if wrong_device is not None:
            asked = [*asked, *((kind, wrong_device) for kind in description.kinds)]
        for kind, device in asked:
            with pytest.raises(NoBackend) as caught:
                choose(description.scene, kind, device, self.backend)
            assert caught.value.reason
            assert caught.value.fix

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("device", DEVICES)
    def test_images_and_gradients_equal_the_reference(self, kind: RenderKind, device: str) -> None:
        renderer = self.renderer(kind, device)
        reference = self.reference_renderer(kind, device)
        for name, arguments in self.samples(kind=kind, device=torch.device(device)).items():
            expected_arguments = self.for_reference(arguments)
            actual = self.images(renderer(*arguments))
            expected = self.images(reference(*expected_arguments))
            assert actual.keys() == expected.keys()
            for image, value in actual.items():
                assert value.shape == expected[image].shape, f"{name}, {image}: shapes differ"
                error = relative_error(value.detach(), expected[image].detach())
                assert error <= self.value_tolerance, f"{name}, {image}: relative error {error:.2g}"
            for image, value in actual.items():
                self._compare_gradients(
                    f"{name}, {image}",
                    (value, self.parameters(arguments)),
                    (expected[image], self.parameters(expected_arguments)),
                )

    def _compare_gradients(
        self,
        what: str,
        ours: tuple[Tensor, Mapping[str, Tensor]],
        theirs: tuple[Tensor, Mapping[str, Tensor]],
    ) -> None:
        draw = torch.Generator().manual_seed(0)
        upstream = torch.randn(ours[0].shape, generator=draw)
        found = []
        for value, parameters in (ours, theirs):
            loss = (value * upstream.to(value)).sum()
            leaves = tuple(parameters.values())
            gradients = torch.autograd.grad(loss, leaves, retain_graph=True, allow_unused=True)
            found.append(
                [torch.zeros_like(leaf) if grad is None else grad for leaf, grad in zip(leaves, gradients)]
            )
        for name, gradient, expected in zip(ours[1], *found):
            error = relative_error(gradient, expected)
            assert error <= self.gradient_tolerance, f"{what} to {name}: relative error {error:.2g}"
