"""A small Mask R-CNN for one machine, SSc-FBS: one scale, fixed batch."""

_base_ = ["./parts/runtime.py", "./parts/small.py"]

custom_hooks = [dict(type="graftwork.MultiScaleHook")]
train_dataloader = dict(batch_sampler=dict(mode="SSc-FBS"))
