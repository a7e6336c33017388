"""Operators of mmcv, served by torchvision."""
