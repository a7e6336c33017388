"""Mask R-CNN, ResNet-50 with a feature pyramid, MSc-VBSWC: ten scales, variable batch, curriculum."""

from mmengine.config import read_base

with read_base():
    from ..parts.coco import *
    from ..parts.mask_rcnn_fpn import *
    from ..parts.runtime import *
    from ..parts.schedule_100e import *

train_dataloader["batch_sampler"].update(mode="MSc-VBSWC", curriculum="grow_max", epochs=100)
