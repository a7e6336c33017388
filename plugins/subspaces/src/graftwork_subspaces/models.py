"""timm variants: the paper's three networks on every kind of subspace.

``<network>_lcs_<regime>_<subspace>``; every argument of :func:`graftwork_subspaces.wrap` may be passed on,
as in ``timm.create_model("resnet18_lcs_sparse_line", levels={"lo": 0.005, "hi": 0.05})``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Literal

from timm.models import PretrainedCfg, build_model_with_cfg, is_model

from graftwork_subspaces import networks
from graftwork_subspaces.net import CompressibleNet
from graftwork_subspaces.plugin import untrained
from graftwork_subspaces.wrap import wrap

_NETWORKS: dict[str, Callable[..., networks.PaperNet]] = {
    "cpreresnet20": networks.cpreresnet20,
    "resnet18": networks.resnet18,
    "vgg19": networks.vgg19,
}
_CLASSES = {"cpreresnet20": 10, "resnet18": 1000, "vgg19": 1000}
_SIDES = {"cpreresnet20": 32, "resnet18": 224, "vgg19": 224}
_WRAP_OPTIONS = set(inspect.signature(wrap).parameters) - {"model", "regime", "subspace", "input_size"}

Factory = Callable[..., CompressibleNet]


def _build(
    network: str,
    regime: Literal["sparse", "width", "quant"],
    subspace: Literal["line", "point"],
    num_classes: int | None = None,
    in_chans: int = 3,
    global_pool: str = "avg",
    drop_rate: float = 0.0,
    **kwargs: Any,
) -> CompressibleNet:
    options = {key: kwargs.pop(key) for key in list(kwargs) if key in _WRAP_OPTIONS}
    model = _NETWORKS[network](
        num_classes=_CLASSES[network] if num_classes is None else num_classes,
        in_chans=in_chans,
        global_pool=global_pool,
        drop_rate=drop_rate,
        **kwargs,
    )
    side = _SIDES[network]
    # the paper rounds widths to single channels
    options = {"multiple": 1, "input_size": (in_chans, side, side), **options}
    return wrap(model, regime=regime, subspace=subspace, **options)


def _variant(
    network: str, regime: Literal["sparse", "width", "quant"], subspace: Literal["line", "point"]
) -> Factory:
    name = f"{network}_lcs_{regime}_{subspace}"

    def create(pretrained: bool = False, **kwargs: Any) -> CompressibleNet:
        stages = {"cpreresnet20": 3, "resnet18": 4, "vgg19": 5}[network]
        if kwargs.get("pretrained_cfg") is None and not is_model(name):
            # called without `import graftwork.timm`, so timm's registry does not have the record
            kwargs["pretrained_cfg"] = PretrainedCfg(**untrained(network), architecture=name)  # type: ignore
        net: CompressibleNet = build_model_with_cfg(
            _build,
            name,
            pretrained,
            feature_cfg={"out_indices": tuple(range(stages)), "feature_cls": "getter"},
            network=network,
            regime=regime,
            subspace=subspace,
            **kwargs,
        )
        return net

    create.__name__ = create.__qualname__ = name
    create.__doc__ = f"Build {network} on a {regime} {subspace}; see :func:`graftwork_subspaces.wrap`."
    return create


cpreresnet20_lcs_sparse_line = _variant("cpreresnet20", "sparse", "line")
cpreresnet20_lcs_sparse_point = _variant("cpreresnet20", "sparse", "point")
cpreresnet20_lcs_width_line = _variant("cpreresnet20", "width", "line")
cpreresnet20_lcs_width_point = _variant("cpreresnet20", "width", "point")
cpreresnet20_lcs_quant_line = _variant("cpreresnet20", "quant", "line")
cpreresnet20_lcs_quant_point = _variant("cpreresnet20", "quant", "point")
resnet18_lcs_sparse_line = _variant("resnet18", "sparse", "line")
resnet18_lcs_sparse_point = _variant("resnet18", "sparse", "point")
resnet18_lcs_width_line = _variant("resnet18", "width", "line")
resnet18_lcs_width_point = _variant("resnet18", "width", "point")
resnet18_lcs_quant_line = _variant("resnet18", "quant", "line")
resnet18_lcs_quant_point = _variant("resnet18", "quant", "point")
vgg19_lcs_sparse_line = _variant("vgg19", "sparse", "line")
vgg19_lcs_sparse_point = _variant("vgg19", "sparse", "point")
vgg19_lcs_width_line = _variant("vgg19", "width", "line")
vgg19_lcs_width_point = _variant("vgg19", "width", "point")
vgg19_lcs_quant_line = _variant("vgg19", "quant", "line")
vgg19_lcs_quant_point = _variant("vgg19", "quant", "point")
