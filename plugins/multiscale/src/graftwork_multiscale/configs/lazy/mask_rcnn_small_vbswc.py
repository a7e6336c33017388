"""A small Mask R-CNN for one machine, MSc-VBSWC: four scales, variable batch, curriculum."""

from mmengine.config import read_base

with read_base():
    from ..parts.runtime import *
    from ..parts.small import *

custom_hooks = [dict(type="graftwork.MultiScaleHook")]
train_dataloader["batch_sampler"].update(mode="MSc-VBSWC", curriculum="grow_max", epochs=12)
