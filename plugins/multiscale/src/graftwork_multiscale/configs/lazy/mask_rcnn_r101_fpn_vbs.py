"""Mask R-CNN, ResNet-101 with a feature pyramid, MSc-VBS: ten scales, variable batch."""

from mmengine.config import read_base

with read_base():
    from ..parts.coco import *
    from ..parts.mask_rcnn_fpn import *
    from ..parts.runtime import *
    from ..parts.schedule_100e import *

model["backbone"]["depth"] = 101
model["backbone"]["init_cfg"]["checkpoint"] = "torchvision://resnet101"
