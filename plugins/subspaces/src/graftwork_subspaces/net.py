"""The compressible network: an ordinary model, its settings, and the level it runs at."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn

from graftwork_subspaces.layers import OnSubspace, SubspaceNorm
from graftwork_subspaces.levels import Level, LevelContext, LevelError
from graftwork_subspaces.quant import QuantLevel
from graftwork_subspaces.settings import Settings
from graftwork_subspaces.sparse import SparseLevel, zero_count
from graftwork_subspaces.subspace import DELTA, SUFFIX, cosine_squared
from graftwork_subspaces.switching import Switcher, store_half
from graftwork_subspaces.width import WidthLevel

if TYPE_CHECKING:
    from graftwork_subspaces.stats import LevelStats


class CompressibleNet(nn.Module):
    """One network that runs at any compression level; made by :func:`graftwork_subspaces.wrap`.

    Example:
        >>> import timm
        >>> net = wrap(timm.create_model("resnet18"), regime="width")  # doctest: +SKIP
        >>> with net.at(width=0.5):  # doctest: +SKIP
        ...     logits = net(images)

    Without a level it runs at its accurate end. Attributes it does not have are looked up on the model, so
    timm's ``forward_features``, ``feature_info`` and so on work at every level.

    Args:
        model: Model whose layers are on the subspace.
        settings: How it was wrapped.
        context: Level shared by those layers.
    """

    def __init__(self, model: nn.Module, settings: Settings, context: LevelContext) -> None:
        super().__init__()
        self.model = model
        self.settings = settings
        self.context = context
        self.switcher = Switcher()
        self.settle()

    def settle(self) -> None:
        """Rebuild the level of threads that enter none, after layers were exchanged."""
        self.context.default = self.make_level(*self._accurate())

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            model = self.__dict__.get("_modules", {}).get("model")
            if model is None or name.startswith("__"):
                raise
            return getattr(model, name)

    def forward(self, x: Tensor) -> Tensor:
        """Run the model at the level of the calling thread."""
        ready = (
            nullcontext()
            if torch.compiler.is_compiling()
            or self.training
            or torch.is_grad_enabled()
            or self.context.entered()
            else self.at(self._accurate()[0])
        )
        with ready:
            return cast("Tensor", self.model(x))

    # levels

    @contextmanager
    def at(
        self,
        alpha: float | None = None,
        *,
        kept: float | None = None,
        width: float | None = None,
        bits: int | None = None,
        exact: bool | None = None,
    ) -> Iterator[Level]:
        """Run a block of the calling thread at one level.

        Enter it outside compiled code. With activation checkpointing, call ``backward`` inside. The level
        belongs to the thread: an asynchronous task must not await inside the block.

        Args:
            alpha: Position: 1 is the accurate end, 0 the compressed one.
            kept: Kept fraction of the weights, for a sparse network, instead of `alpha`.
            width: Width, for a structured one.
            bits: Bits, for a quantised one.
            exact: Sparse networks in evaluation: count zeros exactly, or use the table of :meth:`tabulate`.
                By default the table is used once it is there.

        Raises:
            LevelError: No such level, or one that was not trained.
        """
        named = {"kept": kept, "width": width, "bits": bits}
        chosen = {name: float(value) for name, value in named.items() if value is not None}
        level = self.make_level(*self.settings.map.locate(alpha, chosen, self.settings.outside), observe=True)
        if not self.training and not isinstance(level, WidthLevel):
            prepared = self.switcher.prepared(self.layers(), level, bool(exact))
            level = dataclasses.replace(level, prepared=prepared)
        with self.context.enter(level):
            yield level

    def make_level(
        self,
        alpha: float,
        value: float,
        *,
        bits: tuple[int, ...] | None = None,
        inputs_too: bool = True,
        observe: bool = False,
    ) -> Level:
        """Build the level for a position and a compression level, without checks.

        Args:
            alpha: Position.
            value: Kept fraction, width or bits.
            bits: Bits by layer index, where layers differ.
            inputs_too: Quantise what enters a layer as well.
            observe: In training, let input ranges follow.
        """
        layers = self.layers()
        device = next(self.model.parameters()).device
        position = torch.full((), alpha, device=device if device.type != "meta" else "cpu")
        if self.settings.regime == "width":
            return WidthLevel(alpha, value, position, sizes=self.settings.plan.sizes(value))
        slots = 1 + max((layer.index for layer in layers), default=-1)
        if self.settings.regime == "sparse":
            counts = [0] * slots
            for layer in layers:
                if layer.role == "block" and layer.weight is not None:
                    counts[layer.index] = zero_count(value, layer.weight.numel())
            zeros = tuple(counts)
            return SparseLevel(
                alpha,
                value,
                position,
                zeros=zeros,
                zeros_tensor=torch.tensor(zeros, dtype=torch.int64),
                dense=not any(zeros),
            )
        bits = (int(value),) * slots if bits is None else bits
        halves = torch.tensor([2.0 ** (b - 1) for b in bits], device=position.device)
        return QuantLevel(
            alpha, value, position, halves=halves, bits=bits, inputs_too=inputs_too, observe=observe
        )

    def _accurate(self) -> tuple[float, float]:
        alpha = self.settings.map.spread(1.0)
        return alpha, self.settings.map.value(alpha)

    def layers(self) -> list[OnSubspace]:
        """Return the layers on the subspace, by index."""
        return sorted(
            (module for module in self.model.modules() if isinstance(module, OnSubspace)),
            key=lambda layer: layer.index,
        )

    def named_layers(self) -> dict[str, OnSubspace]:
        """Return the layers on the subspace by module name, in order of index."""
        found = [(n, m) for n, m in self.model.named_modules() if isinstance(m, OnSubspace)]
        return dict(sorted(found, key=lambda item: item[1].index))

    # training

    def ends(self) -> list[tuple[Tensor, Tensor]]:
        """Return the pairs of ends that the regulariser keeps apart; norm scales for a width line."""
        norms = self.settings.regime == "width" and self.settings.line_scope == "norm"
        pairs = []
        for layer in self.layers():
            other = getattr(layer, "weight" + SUFFIX, None)
            if other is not None and isinstance(layer, SubspaceNorm) == norms:
                pairs.append((cast("Tensor", layer.weight), other))
        return pairs

    def regulariser(self) -> Tensor | None:
        """Return beta times the squared cosine between the ends, Eq. 3; None for a point or beta = 0."""
        pairs = self.ends() if self.settings.beta else []
        return self.settings.beta * cosine_squared(pairs) if pairs else None

    # serving

    def tabulate(self, points: int = 33) -> None:
        """Tabulate magnitude thresholds, so that evaluation switches to any sparsity without a selection.

        Between grid points the kept fraction is then off by less than 0.2 %; ``at(..., exact=True)`` still
        counts exactly. Changing a parameter makes the table void.

        Args:
            points: Grid points over the trained range.

        Raises:
            LevelError: The network is not sparse; other regimes need no table.
        """
        if self.settings.regime != "sparse":
            raise LevelError(
                f"only sparse networks have thresholds to tabulate; this is {self.settings.regime}."
            )
        if points < 2:
            raise LevelError(f"a table needs at least 2 points, got {points}.")
        units = [(i / (points - 1)) ** 2 for i in range(points)]
        alphas = [self.settings.map.spread(unit) for unit in units]
        levels = [self.make_level(alpha, self.settings.map.value(alpha)) for alpha in alphas]
        self.switcher.tabulate(self.layers(), cast("list[SparseLevel]", levels))

    def store_half(self) -> CompressibleNet:
        """Keep the ends of a line as one end and the difference, both in half precision; for serving only."""
        store_half(self.layers())
        return self.eval()

    def materialize(
        self,
        alpha: float | None = None,
        *,
        format: Literal["dense", "sliced", "csr", "int8"] | None = None,
        pattern: Literal["2:4"] | None = None,
        **level: float,
    ) -> nn.Module:
        """Return one level as an ordinary model without any trace of the subspace.

        Args:
            alpha: Position; or name the level, as in ``materialize(width=0.5)``.
            format: ``"dense"``: ordinary layers, zeros and rounded weights stored as floats. ``"sliced"``:
                smaller ordinary layers, the only form of a width. ``"csr"``: sparse matrices, for sparse
                networks. ``"int8"``: integer kernels of the CPU, for quantised networks. By default the
                ordinary form.
            pattern: ``"2:4"`` keeps the two largest of every four remaining weights along the input.
            level: ``kept``, ``width`` or ``bits``.

        Returns:
            The model, in evaluation mode, on the same device.

        Raises:
            LevelError: No such level.
            ValueError: The format does not fit the regime.
        """
        from graftwork_subspaces.materialize import materialize

        position, value = self.settings.map.locate(alpha, level, self.settings.outside)
        return materialize(self, self.make_level(position, value), format, pattern)

    def stats(
        self,
        alpha: float | None = None,
        *,
        input_size: tuple[int, int, int] | None = None,
        measure: bool = True,
        **level: float,
    ) -> LevelStats:
        """Return what a level costs: nominal compression, bytes, multiply-accumulates and measured latency.

        Args:
            alpha: Position; or name the level, as in ``stats(bits=4)``.
            input_size: Channels, height and width of an image; timm's record when None.
            measure: Time one image on the network's device; False leaves the latency out.
            level: ``kept``, ``width`` or ``bits``.
        """
        from graftwork_subspaces.stats import level_stats

        position, value = self.settings.map.locate(alpha, level, self.settings.outside)
        return level_stats(self, self.make_level(position, value), input_size, measure)

    # checkpoints and timm

    def get_extra_state(self) -> Tensor:
        """Return the settings as bytes, stored in the checkpoint."""
        return self.settings.encode()

    def set_extra_state(self, state: Tensor) -> None:
        """Refuse a checkpoint whose settings differ."""
        self.settings.check(state)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Give the network a new classifier, on the subspace as the old one was."""
        from graftwork_subspaces.heads import renew_head

        renew_head(self, num_classes, global_pool)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return the model's own parameter groups for layer-wise decay, under the names used here."""
        from graftwork_subspaces.heads import prefixed

        return prefixed(cast("Any", self.model).group_matcher(coarse=coarse))

    def no_weight_decay(self) -> set[str]:
        """Return the parameters that the model itself keeps from weight decay, with both their ends."""
        names = cast("Any", self.model).no_weight_decay() if hasattr(self.model, "no_weight_decay") else set()
        known = {name for name, _ in self.named_parameters()}
        return {n for name in names for n in (f"model.{name}", f"model.{name}{SUFFIX}") if n in known}

    def extra_repr(self) -> str:
        """Name regime, subspace and range."""
        level_map = self.settings.map
        levels = f"{level_map.value_name} {level_map.lo:g} to {level_map.hi:g}"
        return f"{self.settings.regime} {self.settings.subspace}, {levels}"


def is_half(net: CompressibleNet) -> bool:
    """Say whether the ends are stored in half precision."""
    return any(hasattr(layer, "weight" + DELTA) for layer in net.layers())
