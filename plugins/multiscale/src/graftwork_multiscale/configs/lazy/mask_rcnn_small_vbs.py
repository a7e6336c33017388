"""A small Mask R-CNN for one machine, MSc-VBS: four scales, variable batch."""

from mmengine.config import read_base

with read_base():
    from ..parts.runtime import *
    from ..parts.small import *

custom_hooks = [dict(type="graftwork.MultiScaleHook")]
