"""Mask R-CNN, ResNet-50 with a feature pyramid, MSc-VBSWC: ten scales, variable batch, curriculum."""

_base_ = [
    "./parts/mask_rcnn_fpn.py",
    "./parts/coco.py",
    "./parts/schedule_100e.py",
    "./parts/runtime.py",
]

train_dataloader = dict(batch_sampler=dict(mode="MSc-VBSWC", curriculum="grow_max", epochs=100))
