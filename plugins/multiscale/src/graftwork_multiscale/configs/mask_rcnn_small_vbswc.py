"""A small Mask R-CNN for one machine, MSc-VBSWC: four scales, variable batch, curriculum."""

_base_ = ["./parts/runtime.py", "./parts/small.py"]

custom_hooks = [dict(type="graftwork.MultiScaleHook")]
train_dataloader = dict(batch_sampler=dict(mode="MSc-VBSWC", curriculum="grow_max", epochs=12))
