"""How a network was wrapped: what travels in its checkpoint and what is filled in for the caller."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from graftwork_subspaces.levels import DEFAULT_RANGES, REGIMES, LevelError, LevelMap
from graftwork_subspaces.samplers import BiasedEndpoints, Discrete, Sampler, Sandwich, Uniform
from graftwork_subspaces.spaces import ChannelPlan
from graftwork_subspaces.subspace import Init

Subspace = Literal["line", "point"]
Norm = Literal["auto", "group", "instance", "batch"]
CHECKPOINT_FORMAT = 1


class CheckpointMismatch(RuntimeError):
    """A checkpoint of a network that was wrapped in another way."""


@dataclass(frozen=True)
class Settings:
    """Everything that :func:`graftwork_subspaces.wrap` decided.

    Args:
        map: Compression level by position.
        subspace: ``"line"`` or ``"point"``.
        norm: Kind of norm that replaced batch norm.
        sampler: Levels of a training step.
        beta: Weight of the squared cosine between the ends.
        warmup: Share of the steps before the final compression.
        ramp: A point's kept fraction falls linearly during the warm-up, as a line's, instead of staying
            dense.
        line_scope: Width only: ``"norm"`` or ``"all"`` parameters have two ends.
        bits_per: ``"model"`` or ``"layer"``: who shares a drawn bit width.
        outside: ``"refuse"`` or ``"warn"`` about untrained levels.
        plan: Channels of every width.
    """

    map: LevelMap
    subspace: Subspace
    norm: str
    sampler: Sampler
    beta: float = 1.0
    warmup: float = 0.8
    ramp: bool = False
    line_scope: Literal["norm", "all"] = "norm"
    bits_per: Literal["model", "layer"] = "model"
    outside: Literal["refuse", "warn"] = "refuse"
    plan: ChannelPlan = field(default_factory=lambda: ChannelPlan((), {}, {}, {}))

    @property
    def regime(self) -> str:
        """What is compressed: ``sparse``, ``width`` or ``quant``."""
        return self.map.regime

    def record(self) -> dict[str, Any]:
        """Return what a checkpoint says about the network."""
        from importlib.metadata import PackageNotFoundError, version

        try:
            library = version("graftwork-subspaces")
        except PackageNotFoundError:
            library = "unknown"
        return {
            "format": CHECKPOINT_FORMAT,
            "library": f"graftwork-subspaces {library}",
            "regime": self.regime,
            "subspace": self.subspace,
            "orientation": "alpha=1 is the accurate end",
            "alpha_map": self.map.kind,
            "levels": [self.map.lo, self.map.hi],
            "norm": self.norm,
            "line_scope": self.line_scope if self.regime == "width" else None,
            "spaces": [[space.blocks, space.step] for space in self.plan.spaces],
        }

    def encode(self) -> Tensor:
        """Return the record as bytes in a tensor, so that safetensors and weights-only loading carry it."""
        return torch.tensor(list(json.dumps(self.record()).encode()), dtype=torch.uint8)

    def check(self, encoded: Tensor) -> None:
        """Refuse the record of a checkpoint that does not fit.

        Raises:
            CheckpointMismatch: Regime, subspace, orientation, map, levels, norm or channel steps differ.
        """
        theirs = json.loads(bytes(encoded.cpu().tolist()).decode())
        ours = self.record()
        if theirs.get("format") != CHECKPOINT_FORMAT:
            raise CheckpointMismatch(
                f"the checkpoint has format {theirs.get('format')!r}, written by {theirs.get('library')!r}; "
                "this "
                f"version reads format {CHECKPOINT_FORMAT}. Load it with the version that wrote it."
            )
        different = [key for key in ours if key != "library" and ours[key] != theirs.get(key)]
        if different:
            lines = "; ".join(
                f"{key}: checkpoint {theirs.get(key)!r}, network {ours[key]!r}" for key in different
            )
            raise CheckpointMismatch(
                f"the checkpoint belongs to a network wrapped differently ({lines}). Wrap the model with the "
                "checkpoint's settings, then load."
            )


def default_sampler(level_map: LevelMap, subspace: Subspace) -> Sampler:
    """Return the sampler of the paper's code for a regime."""
    if level_map.regime == "width":
        return Sandwich(4)
    if level_map.regime == "quant":
        return Discrete([level_map.alpha(bits) for bits in range(int(level_map.lo), int(level_map.hi) + 1)])
    return BiasedEndpoints(0.5) if subspace == "line" else Uniform()


def make_map(regime: str, levels: dict[str, float] | None, kind: str) -> LevelMap:
    """Return the level map for ``levels={"lo": ..., "hi": ...}``, either end optional."""
    if regime not in REGIMES:
        raise LevelError(f"regime must be one of {', '.join(REGIMES)}, got {regime!r}.")
    unknown = sorted(set(levels or {}) - {"lo", "hi"})
    if unknown:
        raise LevelError(f"levels takes the keys 'lo' and 'hi', got {', '.join(map(repr, unknown))}.")
    lo, hi = DEFAULT_RANGES[regime]
    chosen = {"lo": lo, "hi": hi, **(levels or {})}
    return LevelMap(regime, chosen["lo"], chosen["hi"], kind)  # type: ignore[arg-type]


__all__ = ["CheckpointMismatch", "Init", "Norm", "Settings", "Subspace", "default_sampler", "make_map"]
