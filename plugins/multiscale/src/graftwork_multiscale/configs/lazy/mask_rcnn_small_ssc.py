"""A small Mask R-CNN for one machine, SSc-FBS: one scale, fixed batch."""

from mmengine.config import read_base

with read_base():
    from ..parts.runtime import *
    from ..parts.small import *

custom_hooks = [dict(type="graftwork.MultiScaleHook")]
train_dataloader["batch_sampler"].update(mode="SSc-FBS")
