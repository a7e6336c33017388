"""Mask R-CNN, ResNet-101 with a feature pyramid, SSc-FBS: one scale, fixed batch."""

_base_ = [
    "./parts/mask_rcnn_fpn.py",
    "./parts/coco.py",
    "./parts/schedule_100e.py",
    "./parts/runtime.py",
]

model = dict(backbone=dict(depth=101, init_cfg=dict(checkpoint="torchvision://resnet101")))
train_dataloader = dict(batch_sampler=dict(mode="SSc-FBS"))
