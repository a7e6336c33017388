"""Replacing the layers of a model by their twins on the subspace."""

from __future__ import annotations

from typing import Any, cast

from timm.layers import (
    BatchNormAct2d,
    GroupNorm,
    GroupNorm1,
    GroupNorm1Act,
    GroupNormAct,
    LayerNorm,
    LayerNorm2d,
    LayerNormAct,
    LayerNormAct2d,
)
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from graftwork_subspaces.blocks import TWINS, make_block
from graftwork_subspaces.layers import OnSubspace, Role, SubspaceLinear, SubspaceNorm, adopt, make_conv
from graftwork_subspaces.levels import LevelContext
from graftwork_subspaces.propagate import UnsupportedGraph
from graftwork_subspaces.settings import Init, Settings
from graftwork_subspaces.spaces import ChannelPlan
from graftwork_subspaces.subspace import add_end

_BATCH = (nn.BatchNorm2d, BatchNormAct2d)
_GROUP = (nn.GroupNorm, GroupNorm, GroupNormAct, GroupNorm1, GroupNorm1Act)
_LAYER = (nn.LayerNorm, LayerNorm, LayerNormAct)
_LAYER_2D = (LayerNorm2d, LayerNormAct2d)


def convert(
    model: nn.Module, settings: Settings, context: LevelContext, skipped: set[str], init: Init
) -> None:
    """Replace layers and norms by their twins, then the blocks of timm whose code depends on channel counts.

    Args:
        model: Changed in place.
        settings: How it is wrapped.
        context: Level of the network.
        skipped: Layers that stay uncompressed.
        init: Of second ends.

    Raises:
        ValueError: There is nothing to replace, or a batch norm would stay unnoticed.
        UnsupportedGraph: A layer that widths cut has no twin.
    """
    width, line = settings.regime == "width", settings.subspace == "line"
    index = 0
    for name, module in list(model.named_modules()):
        if not isinstance(module, (nn.Conv2d, nn.Linear, _NormBase, nn.GroupNorm, nn.LayerNorm)):
            continue
        is_norm = not isinstance(module, (nn.Conv2d, nn.Linear))
        ends = line and (is_norm or not width or settings.line_scope == "all")
        role: Role = "dense" if is_norm or (name in skipped and not width) else "block"
        layer = put_on_subspace(
            model, name, context, index, role=role, line=ends, settings=settings, init=init
        )
        if layer is None:
            continue
        layer.inputs, layer.outputs = settings.plan.inputs.get(name, ()), settings.plan.outputs.get(name, ())
        index += 1
    if index == 0:
        raise ValueError(
            f"{type(model).__name__} has no convolution, linear layer or norm to put on a subspace."
        )
    left = [
        n
        for n, m in model.named_modules()
        if isinstance(m, _NormBase) or "FrozenBatchNorm" in type(m).__name__
    ]
    if left and settings.norm != "batch":
        raise ValueError(
            f"{', '.join(left[:3])} would keep batch statistics "
            f"({type(model.get_submodule(left[0])).__name__}), which "
            "differ from level to level. Use BatchNorm2d there so that it is replaced, or norm='batch' to "
            "keep "
            "statistics knowingly."
        )
    if width:
        _convert_blocks(model, settings.plan, context)


def put_on_subspace(
    model: nn.Module,
    name: str,
    context: LevelContext,
    index: int,
    *,
    role: Role,
    line: bool,
    settings: Settings | None = None,
    init: Init = "independent",
) -> OnSubspace | None:
    """Replace one layer of a model by its twin on the subspace.

    Args:
        model: Changed in place.
        name: Of the layer.
        context: Level of the network.
        index: Number of the layer.
        role: ``"block"`` or ``"dense"``.
        line: Give its parameters a second end.
        settings: How the network is wrapped; None for a layer that needs no norm and no input range.
        init: Of the second end.

    Returns:
        The twin, or None for a kind without one, which stays as it is.
    """
    module = model.get_submodule(name)
    twin: OnSubspace | None
    if isinstance(module, nn.Conv2d):
        twin = make_conv(module)
    elif isinstance(module, nn.Linear):
        twin = adopt(SubspaceLinear, module) if type(module).__name__ == "Linear" else None
    else:
        twin = _make_norm(module, settings.norm if settings else "group")
    if twin is None:
        return None
    quantised = settings is not None and settings.regime == "quant" and role == "block"
    twin.join(context, index, role, quantised=quantised)
    if line:
        for parameter in ("weight", "bias"):
            add_end(twin, parameter, init)
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, twin)
    return twin


def _make_norm(module: nn.Module, kind: str) -> SubspaceNorm | None:
    norm = cast("Any", module)
    if type(module) in _BATCH:
        channels = norm.num_features
        groups = max(d for d in range(1, min(32, channels) + 1) if channels % d == 0)
        return SubspaceNorm(cast("Any", kind), module, channels, groups, affine=norm.affine)
    if type(module) in _GROUP:
        return SubspaceNorm("group", module, norm.num_channels, norm.num_groups, affine=norm.affine)
    if type(module) in _LAYER + _LAYER_2D and len(norm.normalized_shape) == 1:
        layer_kind: Any = "layer" if type(module) in _LAYER else "layer2d"
        return SubspaceNorm(layer_kind, module, norm.normalized_shape[0], affine=norm.elementwise_affine)
    return None


def _convert_blocks(model: nn.Module, plan: ChannelPlan, context: LevelContext) -> None:
    by_depth = sorted(model.named_modules(), key=lambda item: -item[0].count("."))
    for name, module in by_depth:
        block = make_block(module, context, plan.outputs.get(name, ())) if name else None
        if block is not None:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, block)
    for name in {**plan.inputs, **plan.outputs}:
        cut = plan.inputs.get(name) or plan.outputs.get(name)
        module = model.get_submodule(name)
        if cut and not isinstance(module, (OnSubspace, *TWINS.values())):
            raise UnsupportedGraph(
                f"{name} ({type(module).__name__}) would have to run at any width and has no twin that "
                "does. Keep "
                f"its channels whole with skip=('stem', 'head', {name!r}), or choose another regime."
            )
