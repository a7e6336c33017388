"""Mask R-CNN, ResNet-50 with a feature pyramid, SSc-FBS: one scale, fixed batch."""

from mmengine.config import read_base

with read_base():
    from ..parts.coco import *
    from ..parts.mask_rcnn_fpn import *
    from ..parts.runtime import *
    from ..parts.schedule_100e import *

train_dataloader["batch_sampler"].update(mode="SSc-FBS")
