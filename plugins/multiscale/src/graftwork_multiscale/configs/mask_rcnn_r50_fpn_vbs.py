"""Mask R-CNN, ResNet-50 with a feature pyramid, MSc-VBS: ten scales, variable batch."""

_base_ = [
    "./parts/mask_rcnn_fpn.py",
    "./parts/coco.py",
    "./parts/schedule_100e.py",
    "./parts/runtime.py",
]
