"""A small Mask R-CNN for one machine, MSc-VBS: four scales, variable batch."""

_base_ = ["./parts/runtime.py", "./parts/small.py"]

custom_hooks = [dict(type="graftwork.MultiScaleHook")]
