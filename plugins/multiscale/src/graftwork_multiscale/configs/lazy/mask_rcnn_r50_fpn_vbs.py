"""Mask R-CNN, ResNet-50 with a feature pyramid, MSc-VBS: ten scales, variable batch."""

from mmengine.config import read_base

with read_base():
    from ..parts.coco import *
    from ..parts.mask_rcnn_fpn import *
    from ..parts.runtime import *
    from ..parts.schedule_100e import *
