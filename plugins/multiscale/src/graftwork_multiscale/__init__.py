"""Multi-scale, variable-batch samplers (Nunez et al. 2023) for plain PyTorch, timm and MMDetection.

Example:
    >>> from graftwork_multiscale import MultiScaleBatchSampler, ScaledDataset  # doctest: +SKIP
    >>> sampler = MultiScaleBatchSampler(data, 128, base_size=224, min_size=128, max_size=320)  # doctest:
    +SKIP
    >>> loader = DataLoader(ScaledDataset(data, transforms), batch_sampler=sampler)  # doctest: +SKIP

Importing this package imports torch but no framework and registers nothing.
"""

from __future__ import annotations

from graftwork_multiscale.curriculum import (
    Curriculum,
    CurriculumError,
    Gaussian,
    GrowMax,
    PrefixK,
    Staged,
    Window,
    build_curriculum,
)
from graftwork_multiscale.indices import RankSampler, ScaledIndex, rank_indices
from graftwork_multiscale.plan import Schedule, Step, make_schedule
from graftwork_multiscale.sampler import MultiScaleBatchSampler
from graftwork_multiscale.scales import Scale, ScaleError, effective_base, make_divisible, scale_table
from graftwork_multiscale.state import StateError

__all__ = [
    "Curriculum",
    "CurriculumError",
    "Gaussian",
    "GrowMax",
    "MultiScaleBatchSampler",
    "PrefixK",
    "RankSampler",
    "Scale",
    "ScaleError",
    "ScaledIndex",
    "Schedule",
    "Staged",
    "StateError",
    "Step",
    "Window",
    "build_curriculum",
    "effective_base",
    "make_divisible",
    "make_schedule",
    "rank_indices",
    "scale_table",
]
