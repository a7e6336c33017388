"""Butterfly Transform: pointwise convolutions in O(n log n). Importing registers nothing."""

from __future__ import annotations

from graftwork_butterfly.layers import ButterflyConv1x1, ButterflyLinear

__all__ = ["ButterflyConv1x1", "ButterflyLinear"]
