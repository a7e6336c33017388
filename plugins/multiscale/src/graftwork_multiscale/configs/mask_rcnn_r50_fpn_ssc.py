"""Mask R-CNN, ResNet-50 with a feature pyramid, SSc-FBS: one scale, fixed batch."""

_base_ = [
    "./parts/mask_rcnn_fpn.py",
    "./parts/coco.py",
    "./parts/schedule_100e.py",
    "./parts/runtime.py",
]

train_dataloader = dict(batch_sampler=dict(mode="SSc-FBS"))
