"""FLOPs of one image at any size, counted by torch on meta tensors: no memory, no data, no weights.

One multiplication with its addition counts as two. Only ratios between sizes matter here, and training costs
three times the forward pass at every size, so the forward pass is counted.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from graftwork_multiscale.cost import ImageCost


def count(run: Callable[[], object]) -> int:
    """Return the FLOPs of a call that computes on meta tensors."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run()
    return int(counter.get_total_flops())


def model_flops(build: Callable[[], nn.Module]) -> ImageCost:
    """Count the forward pass of a classifier.

    Example:
        >>> import torchvision
        >>> cost = model_flops(torchvision.models.resnet50)
        >>> round(cost(224, 224) / 2e9, 3)
        4.089

    Args:
        build: Makes the model; called once, on the meta device.

    Returns:
        (height, width) -> FLOPs of one image.
    """
    with torch.device("meta"):
        model = build().eval()

    @cache
    def cost(height: int, width: int) -> float:
        image = torch.empty(1, 3, height, width, device="meta")
        return float(count(lambda: model(image)))

    return cost


class DetectorFlops:
    """FLOPs of a two-stage detector of MMDetection, part by part.

    Example:
        >>> parts = DetectorFlops(config.model)  # doctest: +SKIP
        >>> parts.whole(positives=128)(1024, 1024)  # doctest: +SKIP

    Args:
        model: Its configuration, such as that of Mask R-CNN.
    """

    def __init__(self, model: Any) -> None:
        from mmdet.registry import MODELS
        from mmdet.utils import register_all_modules

        register_all_modules(init_default_scope=True)
        with torch.device("meta"):
            self.model: Any = MODELS.build(model).eval()
        rcnn = model["train_cfg"]["rcnn"]["sampler"]
        self.rois = int(rcnn["num"])
        self.most_positives = int(rcnn["num"] * rcnn["pos_fraction"])
        self._trunk = lru_cache(maxsize=None)(self._count_trunk)
        self._box = count(lambda: self.model.roi_head.bbox_head(self._pooled("bbox", 1)))
        has_mask = getattr(self.model.roi_head, "with_mask", False)
        self._mask = count(lambda: self.model.roi_head.mask_head(self._pooled("mask", 1))) if has_mask else 0

    def _pooled(self, part: str, rois: int) -> torch.Tensor:
        extractor = getattr(self.model.roi_head, f"{part}_roi_extractor")
        height, width = extractor.roi_layers[0].output_size
        return torch.empty(rois, extractor.out_channels, height, width, device="meta")

    def _count_trunk(self, height: int, width: int) -> tuple[int, int]:
        image = torch.empty(1, 3, height, width, device="meta")
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            levels = self.model.extract_feat(image)
            features = int(counter.get_total_flops())
            self.model.rpn_head(levels)
        return features, int(counter.get_total_flops()) - features

    def features(self, height: int, width: int) -> float:
        """Backbone and pyramid only."""
        return float(self._trunk(height, width)[0])

    def whole(self, positives: int) -> ImageCost:
        """Everything a training step runs on an image.

        Args:
            positives: Regions of interest that reach the mask head; at most `most_positives`.

        Returns:
            (height, width) -> FLOPs of one image: backbone, pyramid, region proposals, the box head on all
            sampled regions, the mask head on the positive ones.
        """
        heads = self.rois * self._box + positives * self._mask
        return lambda height, width: float(sum(self._trunk(height, width)) + heads)
