"""A complete, checked choice of what a network shares and how."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from graftwork_spin.layers import ONLINE_FUSIONS, TRANSFORMS
from graftwork_spin.mapping import sharing_mapping


@dataclass(frozen=True)
class Sharing:
    """A complete choice of what is shared and how.

    Args:
        mapping: Stored-tensor index of every layer.
        components: Names of what is shared; the network class says which there are.
        transform: Private transform of every layer's weight.
        fusion: None, or the online fusion of training.
    """

    mapping: tuple[int, ...]
    components: tuple[str, ...]
    transform: str = "none"
    fusion: str | None = None

    def shares_nothing(self) -> bool:
        """Say whether this is the plain network: every layer private, nothing learned beside it."""
        return (
            len(set(self.mapping)) == len(self.mapping) and self.transform == "none" and self.fusion is None
        )


def plan_sharing(
    depth: int,
    available: Mapping[str, Sequence[str]],
    default: Sequence[str],
    *,
    rate: int = 2,
    mapping: str | Sequence[int] = "sequential",
    distribution: str = "uniform",
    components: str | Sequence[str] | None = None,
    transform: str = "none",
    fusion: str | None = None,
    mapping_seed: int = 0,
) -> Sharing:
    """Check a choice and complete it.

    Args:
        depth: Number of blocks.
        available: The family's components.
        default: What the paper shares.
        rate: Share rate.
        mapping: See :func:`graftwork_spin.mapping.sharing_mapping`.
        distribution: As `mapping`.
        components: What is shared; None for `default`.
        transform: ``"none"``, ``"affine_channel"`` or ``"affine_group"``.
        fusion: None or an online fusion.
        mapping_seed: Of the random mapping.

    Returns:
        The complete choice.

    Raises:
        ValueError: Something is unknown or out of range.
    """
    chosen = default if components is None else components
    chosen = (chosen,) if isinstance(chosen, str) else tuple(chosen)
    if not chosen or not set(chosen) <= set(available) or len(set(chosen)) < len(chosen):
        raise ValueError(
            f"components are some of {', '.join(available)}, each once; got {', '.join(chosen) or 'none'}."
        )
    if transform not in TRANSFORMS:
        raise ValueError(f"transform must be one of {', '.join(TRANSFORMS)}, got {transform!r}.")
    if fusion == "choose_first":
        raise ValueError(
            "choose_first is an initialisation, not an online fusion: its other tensors would get no "
            "gradient. Use graftwork_spin.fuse(model, 'choose_first')."
        )
    if fusion is not None and fusion not in ONLINE_FUSIONS:
        raise ValueError(f"fusion must be None or one of {', '.join(ONLINE_FUSIONS)}, got {fusion!r}.")
    layers = sharing_mapping(depth, rate, mapping, distribution, seed=mapping_seed)
    return Sharing(layers, chosen, transform, fusion)
