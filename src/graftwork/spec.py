"""What a plugin says about its methods: small frozen dataclasses and the protocols behind their targets.

Standard library only. Reading descriptions must stay instant and must survive broken method code, so a target
is an import string that nothing here resolves.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

if TYPE_CHECKING:
    import torch
    from nerfstudio.engine.trainer import TrainerConfig
    from torch import nn

ComponentKind = Literal["sampler", "batch_sampler", "dataset", "transform", "hook", "loop"]
RenderKind = Literal["rasterize", "raytrace"]
RenderDevice = Literal["cpu", "cuda", "any"]

_TARGET = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_KEBAB = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_TIMM_NAME = re.compile(r"[a-z][a-z0-9_]*")
_CLASS_NAME = re.compile(r"[A-Z][A-Za-z0-9]*")
_TAG = re.compile(r"[a-z0-9][a-z0-9_]*")


class SpecError(ValueError):
    """A description that cannot be used, with what was expected."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise SpecError(message)


@dataclass(frozen=True, slots=True, kw_only=True)
class Paper:
    """The publication a method comes from.

    Args:
        title: Full title.
        url: Where it can be read, normally the arXiv abstract.
        year: Year of first publication.
        bibtex: Citation entry, if the plugin ships one.
    """

    title: str
    url: str
    year: int
    bibtex: str = ""

    def __post_init__(self) -> None:
        _require(bool(self.title.strip()), "Paper.title is empty: give the full title.")
        _require(self.url.startswith("https://"), f"Paper.url must start with https://, got {self.url!r}.")
        _require(1950 <= self.year <= 2100, f"Paper.year must be a year, got {self.year!r}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """What every described method has.

    Args:
        name: Name under which users meet it; its form depends on the kind.
        summary: One line, shown by ``graftwork list``.
        paper: Where it comes from; None for a plain baseline.
        target: Import string ``"package.module:attribute"`` of the code, resolved only when it is used.
    """

    name: str
    summary: str
    paper: Paper | None = None
    target: str

    def __post_init__(self) -> None:
        where = f"{type(self).__name__} {self.name!r}"
        _require(isinstance(self.name, str) and bool(self.name), f"{type(self).__name__}.name is empty.")
        _require(
            bool(self.summary.strip()) and "\n" not in self.summary,
            f"{where}: summary must be one non-empty line, got {self.summary!r}.",
        )
        _require(
            isinstance(self.target, str) and _TARGET.fullmatch(self.target) is not None,
            f'{where}: target must read "package.module:attribute", got {self.target!r}.',
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelVariant(Method):
    """A model to be registered with timm.

    Example:
        >>> ModelVariant(
        ...     name="convmixer_spin",
        ...     summary="ConvMixer-768/32 with every pointwise weight shared by two layers",
        ...     target="graftwork_spin.models:convmixer_spin",
        ...     base="convmixer_768_32",
        ...     weights={"untrained": {"input_size": (3, 224, 224), "first_conv": "stem.0"}},
        ... ).name
        'convmixer_spin'

    Args:
        base: timm name of the model it departs from, or None.
        weights: Tag to fields of timm's ``PretrainedCfg``. The first tag is the default. A tag without
            ``url``, ``hf_hub_id`` or ``file`` describes the input of an untrained model.
        methods: See :class:`Method` for the inherited fields.
    """

    base: str | None = None
    weights: Mapping[str, Mapping[str, object]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        Method.__post_init__(self)
        _require(
            _TIMM_NAME.fullmatch(self.name) is not None,
            f"ModelVariant {self.name!r}: a timm name holds lower-case letters, digits and underscores.",
        )
        for tag in self.weights:
            _require(
                _TAG.fullmatch(tag) is not None or tag == "",
                f"ModelVariant {self.name!r}: weight tag {tag!r} may hold lower-case letters, digits and _.",
            )
        frozen = {tag: MappingProxyType(dict(cfg)) for tag, cfg in self.weights.items()}
        object.__setattr__(self, "weights", MappingProxyType(frozen))


@dataclass(frozen=True, slots=True, kw_only=True)
class Component(Method):
    """A training part for mmengine: a sampler or what travels with it.

    Args:
        kind: Which registry it belongs to.
    """

    kind: ComponentKind

    def __post_init__(self) -> None:
        Method.__post_init__(self)
        _require(
            _CLASS_NAME.fullmatch(self.name) is not None,
            f"Component {self.name!r}: a registry name is a CamelCase class name.",
        )
        _require(
            self.kind in get_args(ComponentKind),
            f"Component {self.name!r}: kind must be one of {', '.join(get_args(ComponentKind))}, "
            f"got {self.kind!r}.",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneMethod(Method):
    """A method for nerfstudio, trained with ``ns-train NAME``.

    Args:
        accelerator: ``"cuda"`` if it cannot run on a CPU at all.
    """

    accelerator: Literal["any", "cuda"] = "any"

    def __post_init__(self) -> None:
        Method.__post_init__(self)
        _require(
            _KEBAB.fullmatch(self.name) is not None,
            f"SceneMethod {self.name!r}: the name is kebab-case, such as 'power-foam'.",
        )
        _require(
            self.accelerator in ("any", "cuda"),
            f"SceneMethod {self.name!r}: accelerator must be 'any' or 'cuda', got {self.accelerator!r}.",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderBackend:
    """One implementation of a scene's renderers.

    Args:
        name: ``"<scene>:<backend>"``, such as ``"power-foam:cpu"``.
        target: Import string of a :class:`BackendFactory`.
        kinds: What it renders.
        device: Device type of the tensors it takes.
        priority: ``backend="auto"`` tries higher numbers first.
    """

    name: str
    target: str
    kinds: frozenset[RenderKind]
    device: RenderDevice
    priority: int = 0

    def __post_init__(self) -> None:
        scene, colon, backend = self.name.partition(":")
        _require(
            bool(colon) and _KEBAB.fullmatch(scene) is not None and _KEBAB.fullmatch(backend) is not None,
            f'RenderBackend {self.name!r}: the name reads "<scene>:<backend>", such as "power-foam:cuda".',
        )
        _require(
            _TARGET.fullmatch(self.target) is not None,
            f'RenderBackend {self.name!r}: target must read "package.module:attribute", got {self.target!r}.',
        )
        kinds = frozenset(self.kinds)
        allowed = frozenset(get_args(RenderKind))
        _require(
            bool(kinds) and kinds <= allowed,
            f"RenderBackend {self.name!r}: kinds must be a non-empty subset of {sorted(allowed)}, "
            f"got {sorted(kinds)}.",
        )
        _require(
            self.device in get_args(RenderDevice),
            f"RenderBackend {self.name!r}: device must be one of {', '.join(get_args(RenderDevice))}, "
            f"got {self.device!r}.",
        )
        object.__setattr__(self, "kinds", kinds)

    @property
    def scene(self) -> str:
        """The representation it renders: the part of the name before the colon."""
        return self.name.partition(":")[0]


class ModelFactory(Protocol):
    """What the target of a :class:`ModelVariant` resolves to: an ordinary timm entry point."""

    def __call__(self, pretrained: bool = False, **kwargs: Any) -> nn.Module:
        """Build the model through ``timm.models.build_model_with_cfg``."""


class Sampler(Protocol):
    """What the target of a ``sampler`` or ``batch_sampler`` component builds."""

    def __iter__(self) -> Iterator[Any]: ...
    def __len__(self) -> int: ...
    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration follows."""


class SceneFactory(Protocol):
    """What the target of a :class:`SceneMethod` resolves to."""

    def __call__(self) -> TrainerConfig:
        """Build the complete nerfstudio configuration."""


class BackendFactory(Protocol):
    """What the target of a :class:`RenderBackend` resolves to.

    It raises :class:`graftwork.extension.Unavailable` with a reason and a fix where it cannot serve.
    """

    def __call__(self, kind: str, device: torch.device) -> Callable[..., Any]:
        """Return a renderer with the signature of the scene's reference of that kind."""
