"""Putting an ordinary model on a subspace of compressible networks."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal, cast

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
from graftwork_subspaces.heads import head_names, stem_names
from graftwork_subspaces.layers import OnSubspace, Role, SubspaceLinear, SubspaceNorm, adopt, make_conv
from graftwork_subspaces.levels import LevelContext
from graftwork_subspaces.net import CompressibleNet
from graftwork_subspaces.propagate import UnsupportedGraph, find_plan
from graftwork_subspaces.samplers import Sampler
from graftwork_subspaces.settings import Init, Norm, Settings, Subspace, default_sampler, make_map
from graftwork_subspaces.spaces import ChannelPlan
from graftwork_subspaces.subspace import add_end

_BATCH = (nn.BatchNorm2d, BatchNormAct2d)
_GROUP = (nn.GroupNorm, GroupNorm, GroupNormAct, GroupNorm1, GroupNorm1Act)
_LAYER = (nn.LayerNorm, LayerNorm, LayerNormAct)
_LAYER_2D = (LayerNorm2d, LayerNormAct2d)


def wrap(
    model: nn.Module,
    *,
    regime: Literal["sparse", "width", "quant"],
    subspace: Subspace = "line",
    norm: Norm = "auto",
    skip: Sequence[str] = ("stem", "head"),
    levels: dict[str, float] | None = None,
    sampler: Sampler | None = None,
    beta: float = 1.0,
    warmup: float = 0.8,
    ramp: bool = False,
    alpha_map: Literal["affine", "upstream"] | None = None,
    init: Init | None = None,
    multiple: int | None = None,
    bits_per: Literal["model", "layer"] | None = None,
    line_scope: Literal["norm", "all"] = "norm",
    outside: Literal["refuse", "warn"] = "refuse",
    parity: Literal["upstream"] | None = None,
    input_size: tuple[int, int, int] | None = None,
) -> CompressibleNet:
    """Make one network that can be moved to any compression level at run time; train it with `loss_step`.

    Example:
        >>> import timm
        >>> net = wrap(timm.create_model("resnet18"), regime="sparse")
        >>> with net.at(kept=0.05):
        ...     logits = net(torch.randn(1, 3, 224, 224))

    Args:
        model: Model of timm, or any model of convolutions, linear layers and norms. It is taken over and
            changed.
        regime: ``"sparse"``: weights of small magnitude are zeroed. ``"width"``: only the first channels of
            every layer are kept. ``"quant"``: weights and layer inputs are rounded to a few bits.
        subspace: ``"line"`` between two sets of parameters, or a single ``"point"``.
        norm: What replaces batch norm: ``"group"`` (32 groups, or fewer where 32 do not divide the channels),
            ``"instance"``, or ``"batch"`` to keep it with statistics shared by all levels. ``"auto"``:
            instance norm for widths, group norm otherwise. Other norms stay what they are.
        skip: ``"stem"``, ``"head"`` or patterns of module names (``"blocks.0.*"``): layers that stay
            uncompressed. A width always cuts the stem's output and the head's input.
        levels: Trained range ``{"lo": ..., "hi": ...}`` of the kept fraction, the width or the bits.
        sampler: Levels of a training step; the paper's for the regime when None.
        beta: Weight of the squared cosine between the ends of a line.
        warmup: Share of the training before the final compression.
        ramp: Sparse point: let the kept fraction fall during the warm-up as a line's does, instead of dense
            training first.
        alpha_map: ``"affine"`` or ``"upstream"``, see :class:`LevelMap`.
        init: Second end of a line: ``"independent"``, ``"near"`` (for trained weights) or ``"upstream"``.
        multiple: Kept channel counts are a multiple of this where a layer is large enough; 8 by default.
        bits_per: Draw bit widths per ``"model"`` or per ``"layer"`` (point only).
        line_scope: Width lines: two ends for the ``"norm"`` parameters only, or for ``"all"``.
        outside: ``"refuse"`` levels that were not trained, or ``"warn"``.
        parity: ``"upstream"`` takes the published code's choice for every argument left at its default:
            ``alpha_map="upstream"``, ``init="upstream"``, ``multiple=1``, ``bits_per="layer"``.
        input_size: Channels, height, width of an image, to trace widths with; timm's record when None.

    Returns:
        The network.

    Raises:
        ValueError: An argument is wrong, modules are shared, or a batch norm would stay unnoticed.
        UnsupportedGraph: ``regime="width"`` and the model's channels cannot be followed.

    Note:
        Replacing batch norm by a norm without statistics changes the function of a trained model; train on.
    """
    if parity not in (None, "upstream"):
        raise ValueError(f"parity must be None or 'upstream', got {parity!r}.")
    if subspace not in ("line", "point"):
        raise ValueError(f"subspace must be 'line' or 'point', got {subspace!r}.")
    if norm not in ("auto", "group", "instance", "batch"):
        raise ValueError(f"norm must be 'auto', 'group', 'instance' or 'batch', got {norm!r}.")
    if not 0 <= warmup <= 1:
        raise ValueError(f"warmup is a share of the training from 0 to 1, got {warmup}.")
    upstream = parity == "upstream"
    level_map = make_map(regime, levels, alpha_map or ("upstream" if upstream else "affine"))
    _refuse_shared(model)
    heads, stems = head_names(model), stem_names(model)
    skipped = _skipped(model, skip, stems, heads)
    kind = norm if norm != "auto" else ("instance" if regime == "width" else "group")
    plan = ChannelPlan((), {}, {}, {})
    if regime == "width":
        size = input_size or image_size(model)
        plan = find_plan(
            model, size, whole={*heads, *skipped} - set(stems), multiple=multiple or (1 if upstream else 8)
        )
    settings = Settings(
        map=level_map,
        subspace=subspace,
        norm=kind,
        sampler=sampler or default_sampler(level_map, subspace),
        beta=beta,
        warmup=warmup,
        ramp=ramp,
        line_scope=line_scope,
        bits_per=bits_per or ("layer" if upstream else "model"),
        outside=outside,
        plan=plan,
    )
    context = LevelContext()
    _convert(model, settings, context, skipped, init or ("upstream" if upstream else "independent"))
    net = CompressibleNet(model, settings, context)
    if regime == "width":
        _try_narrow(net, input_size or image_size(model))
    return net


def image_size(model: nn.Module) -> tuple[int, int, int]:
    """Return the image size a model is made for, from timm's record."""
    cfg = getattr(model, "pretrained_cfg", None)
    size = cfg.get("input_size") if isinstance(cfg, dict) else getattr(cfg, "input_size", None)
    if size is None:
        raise ValueError(
            f"{type(model).__name__} carries no timm record of its image size; name it with "
            "input_size=(channels, height, width)."
        )
    return cast("tuple[int, int, int]", tuple(size))


def _refuse_shared(model: nn.Module) -> None:
    for kind, items in (
        ("module", model.named_modules(remove_duplicate=False)),
        ("parameter", model.named_parameters(remove_duplicate=False)),
    ):
        seen: dict[int, str] = {}
        for name, item in cast("Any", items):
            stateless = isinstance(item, nn.Module) and not any(True for _ in item.parameters())
            if id(item) in seen and not stateless:
                raise ValueError(
                    f"the {kind} {name!r} is the same object as {seen[id(item)]!r}. A layer on the subspace "
                    "has one "
                    "place in the network; give each place its own copy, or keep the sharing out of this "
                    "model."
                )
            seen[id(item)] = name


def _skipped(
    model: nn.Module, skip: Sequence[str], stems: Collection[str], heads: Collection[str]
) -> set[str]:
    names = [name for name, _ in model.named_modules()]
    skipped: set[str] = set()
    for pattern in (skip,) if isinstance(skip, str) else skip:
        found = {"stem": stems, "head": heads}.get(pattern)
        if found is None:
            found = [name for name in names if fnmatchcase(name, pattern)]
            if not found:
                raise ValueError(f"skip={pattern!r} matches no module; names look like {names[1:6]}.")
        skipped.update(found)
    return skipped


def _convert(
    model: nn.Module, settings: Settings, context: LevelContext, skipped: set[str], init: Init
) -> None:
    """Replace layers and norms in place, then the blocks of timm whose code depends on channel counts."""
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


def _try_narrow(net: CompressibleNet, input_size: tuple[int, int, int]) -> None:
    """Run narrow levels without memory, so that a wrong plan fails here and not during training."""
    import copy

    import torch

    trial = copy.deepcopy(net).to("meta").eval()
    for width in (net.settings.map.lo, (net.settings.map.lo + net.settings.map.hi) / 2):
        try:
            with torch.no_grad(), trial.at(width=width):
                trial(torch.zeros(2, *input_size, device="meta"))
        except RuntimeError as error:
            raise UnsupportedGraph(
                f"{type(net.model).__name__} does not run at width {width:g}: {error}. Some code in it "
                "counts on a "
                "fixed number of channels; keep that part whole with skip=, or choose another regime."
            ) from error
