"""Power Foam (arXiv 2604.24994): scenes of power-diagram cells, rasterized or ray traced, differentiably."""

from __future__ import annotations
