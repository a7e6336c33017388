"""Weight fusion: a shared network from a trained one that shares nothing."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from typing import Any, overload

import torch
from torch import Tensor, nn

from graftwork_spin.checkpoint import convert_released, from_timm, unwrap
from graftwork_spin.convmixer import SpinConvMixer
from graftwork_spin.convnext import SpinConvNeXt
from graftwork_spin.layers import INITIALISATIONS, ONLINE_FUSIONS, SharedLayer
from graftwork_spin.network import SharedNetwork, slot_of
from graftwork_spin.plan import Sharing
from graftwork_spin.sharing import shared_form
from graftwork_spin.vit import SpinVisionTransformer

FUSIONS = (*INITIALISATIONS, *(name for name in ONLINE_FUSIONS if name not in INITIALISATIONS))
_KEYS: tuple[tuple[str, type[SharedNetwork]], ...] = (
    ("blocks.0.pw.weight", SpinConvMixer),
    ("blocks.0.attn.qkv.weight", SpinVisionTransformer),
    ("blocks.0.conv_dw.weight", SpinConvNeXt),
)


@overload
def fuse(source: nn.Module, how: str = ..., **options: Any) -> SharedNetwork: ...
@overload
def fuse(source: Mapping[str, Tensor], how: str = ..., **options: Any) -> dict[str, Tensor]: ...
def fuse(
    source: nn.Module | Mapping[str, Tensor],
    how: str = "mean",
    *,
    rate: int = 2,
    mapping: str | Sequence[int] = "sequential",
    distribution: str = "uniform",
    components: str | Sequence[str] | None = None,
    transform: str = "none",
    online: bool | None = None,
    mapping_seed: int = 0,
) -> SharedNetwork | dict[str, Tensor]:
    """Make a shared network of a trained one, the tensors of each group fused into one.

    Example:
        >>> import timm
        >>> plain = timm.create_model("convmixer_768_32", pretrained=True)      # doctest: +SKIP
        >>> shared = fuse(plain, "mean", rate=2)                                # doctest: +SKIP

    Args:
        source: A trained network that shares nothing, or its state dict: of timm, of this package or of the
            released layout. Left as it is.
        how: ``"mean"`` of each group, ``"choose_first"``, ``"scalar_weighted_mean"`` or
            ``"channel_weighted_mean"`` (one learned factor per layer, or per layer and output channel; biases
            are averaged plainly).
        rate: Share rate r.
        mapping: See :func:`graftwork_spin.share`.
        distribution: As `mapping`.
        components: As `mapping`.
        transform: As `mapping`.
        online: Whether all L tensors stay stored and are fused in every forward pass, so that training moves
            them and their factors; :func:`collapse` ends that. None: for the weighted means only, which learn
            nothing otherwise. ``"mean"`` trained online moves like one tensor, so its cheap form is default.
        mapping_seed: Of the random mapping.

    Returns:
        A new network, or a new state dict for a network of that sharing.

    Raises:
        TypeError: The architecture is not supported.
        ValueError: An argument is unknown or does not fit the others, or the network shares already.

    Note:
        The groups are those of the mapping; the released code always fuses neighbours. Weights are not
        normalised and the sum is divided by the group size, as there, so that all means agree at the start.
    """
    if how not in FUSIONS:
        raise ValueError(f"how must be one of {', '.join(FUSIONS)}, got {how!r}.")
    online = how not in INITIALISATIONS if online is None else online
    if online and how not in ONLINE_FUSIONS:
        raise ValueError(
            f"{how} cannot be fused online: all but the first tensor of a group would get no gradient. "
            "Leave online out."
        )
    if not online and how not in INITIALISATIONS:
        raise ValueError(
            f"{how} has factors to learn and starts equal to 'mean': use online=True, or how='mean'."
        )
    options = {
        "rate": rate,
        "mapping": mapping,
        "distribution": distribution,
        "components": components,
        "transform": transform,
        "fusion": how if online else None,
        "mapping_seed": mapping_seed,
    }
    init = how if how in INITIALISATIONS else "mean"
    if isinstance(source, nn.Module):
        form = shared_form(source)
        return form.from_unshared(source, form.plan(len(source.blocks), **options), init)
    state, form, depth = _unshared(source)
    sharing = form.plan(depth, **options)
    if sharing.shares_nothing():
        return state
    paths = [path for component in sharing.components for path in form.COMPONENTS[component]]
    return _shared_state_dict(state, paths, sharing, init)


def collapse(model: SharedNetwork) -> SharedNetwork:
    """End online fusion: make the network that stores only the P fused tensors, for export and inference.

    Example:
        >>> trained = fuse(SpinConvMixer(16, 4, rate=1), "channel_weighted_mean")
        >>> len(trained.shared["pw"].weight), len(collapse(trained).shared["pw"].weight)
        (4, 2)

    Args:
        model: A network in online fusion; left as it is.

    Returns:
        A new network that computes the same.

    Raises:
        ValueError: The network is not in online fusion.
    """
    if not isinstance(model, SharedNetwork) or model.sharing.fusion is None:
        raise ValueError(
            f"there is no online fusion to end in this {type(model).__name__}: fuse(..., online=True) or "
            "fusion='mean' begins one."
        )
    return copy.deepcopy(model).collapse_()


def _shared_state_dict(
    plain: Mapping[str, Tensor], paths: Sequence[str], sharing: Sharing, init: str
) -> dict[str, Tensor]:
    """Turn the state dict of a network that shares nothing into that of its shared form.

    Args:
        plain: Keys as in the networks of this package, ``blocks.{layer}.{path}.weight``.
        paths: Paths of the shared layers inside a block.
        sharing: What to share.
        init: How a stored tensor starts from those of its layers.

    Returns:
        A new state dict.
    """
    state = dict(plain)
    depth = len(sharing.mapping)
    for path in paths:
        tensors = {
            kind: [state.pop(f"blocks.{layer}.{path}.{kind}", None) for layer in range(depth)]
            for kind in ("weight", "bias")
        }
        biases = None if tensors["bias"][0] is None else tensors["bias"]
        layer = SharedLayer(
            tensors["weight"],
            biases,
            sharing.mapping,
            init=init,
            fusion=sharing.fusion,
            transform=sharing.transform,
        )
        for name, value in layer.state_dict().items():
            state[f"shared.{slot_of(path)}.{name}"] = value
    state["layer_map"] = torch.tensor(sharing.mapping)
    return state


def _unshared(state_dict: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], type[SharedNetwork], int]:
    """Bring a state dict into this package's layout; say whose it is and how deep."""
    state = unwrap(state_dict, "the state dict")
    if any(name.startswith("shared.") for name in state):
        raise ValueError("the state dict shares tensors already: start from the network that shares nothing.")
    if "pwise_w.0" in state:
        stored = sum(name.startswith("pwise_w.") for name in state)
        depth = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
        if stored != depth:
            raise ValueError(f"the state dict shares tensors already: {stored} for {depth} layers.")
        state = convert_released(state, range(depth))
    state = from_timm(state)
    for key, form in _KEYS:
        if key in state:
            return (
                state,
                form,
                1 + max(int(n[1]) for n in map(re.compile(r"blocks\.(\d+)\.").match, state) if n),
            )
    raise TypeError(
        f"the state dict is of no supported network: its first key is {next(iter(state))!r}; expected one of "
        f"{', '.join(key for key, _ in _KEYS)} or their names in timm and in the released code."
    )
