"""Putting an ordinary model on a subspace of compressible networks."""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from graftwork_subspaces.convert import convert
from graftwork_subspaces.heads import head_names, stem_names
from graftwork_subspaces.layers import SubspaceNorm
from graftwork_subspaces.levels import LevelContext
from graftwork_subspaces.net import CompressibleNet
from graftwork_subspaces.propagate import UnsupportedGraph, find_plan
from graftwork_subspaces.samplers import Sampler
from graftwork_subspaces.settings import Init, Norm, Settings, Subspace, default_sampler, make_map
from graftwork_subspaces.spaces import ChannelPlan


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
    skip = (skip,) if isinstance(skip, str) else skip
    heads, stems = head_names(model), stem_names(model)
    skipped = _skipped(model, skip, stems, heads)
    kind = norm if norm != "auto" else ("instance" if regime == "width" else "group")
    plan = ChannelPlan((), {}, {}, {})
    if regime == "width":
        size = input_size or image_size(model)
        whole = {*heads, *_skipped(model, [name for name in skip if name != "stem"], stems, heads)}
        plan = find_plan(model, size, whole=whole, multiple=multiple or (1 if upstream else 8))
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
    convert(model, settings, context, skipped, init or ("upstream" if upstream else "independent"))
    net = CompressibleNet(model, settings, context)
    if regime == "width":
        _try_narrow(net, input_size or image_size(model))
    return net


def image_size(model: nn.Module) -> tuple[int, int, int]:
    """Return the image size a model was built for: that of its patches, or timm's record."""
    fixed = getattr(getattr(model, "patch_embed", None), "img_size", None)
    if fixed is not None:
        return (getattr(model, "in_chans", 3), *fixed)
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
    for pattern in skip:
        found = {"stem": stems, "head": heads}.get(pattern)
        if found is None:
            found = [name for name in names if fnmatchcase(name, pattern)]
            if not found:
                raise ValueError(f"skip={pattern!r} matches no module; names look like {names[1:6]}.")
        skipped.update(found)
    return skipped


def _try_narrow(net: CompressibleNet, input_size: tuple[int, int, int]) -> None:
    """Run narrow levels without memory, so that a wrong plan fails here and not during training."""
    trial = copy.deepcopy(net).to("meta").eval()
    single: list[str] = []
    for name, layer in trial.named_layers().items():
        if isinstance(layer, SubspaceNorm) and layer.kind == "instance":

            def look(module: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
                if inputs[0].shape[2:].numel() == 1:
                    single.append(name)

            layer.register_forward_pre_hook(look)
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
    if single:
        raise ValueError(
            f"{', '.join(dict.fromkeys(single))} would normalise a single position per channel, which "
            "instance norm "
            "turns into a constant. Use larger images, replace that norm, or take norm='batch'."
        )
