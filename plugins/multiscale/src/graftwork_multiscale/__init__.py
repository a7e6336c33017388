"""Multi-scale, variable-batch samplers (Nunez et al. 2023) for plain PyTorch, timm and MMDetection.

Example:
    >>> from graftwork_multiscale import MultiScaleBatchSampler, ScaledDataset  # doctest: +SKIP
    >>> sampler = MultiScaleBatchSampler(data, 128, base_size=224, min_size=128, max_size=320)  # doctest:
    +SKIP
    >>> loader = DataLoader(ScaledDataset(data, transforms), batch_sampler=sampler)  # doctest: +SKIP

Importing this package imports torch but no framework and registers nothing. The parts for mmengine are
imported when they are named.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from graftwork_multiscale.cost import PlanCost, plan_cost
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
from graftwork_multiscale.data import ScaledDataset, resize_batch
from graftwork_multiscale.indices import RankSampler, ScaledIndex, rank_indices
from graftwork_multiscale.plan import Schedule, Step, make_schedule
from graftwork_multiscale.sampler import MultiScaleBatchSampler
from graftwork_multiscale.scales import Scale, ScaleError, effective_base, make_divisible, scale_table
from graftwork_multiscale.state import StateError

if TYPE_CHECKING:
    from graftwork_multiscale.configs import config_path
    from graftwork_multiscale.mmengine_parts import (
        MultiScaleDatasetWrapper,
        MultiScaleHook,
        MultiScaleTrainLoop,
        ResizeToSampledScale,
    )

_LAZY = {
    "MultiScaleDatasetWrapper": "graftwork_multiscale.mmengine_parts",
    "MultiScaleHook": "graftwork_multiscale.mmengine_parts",
    "MultiScaleTrainLoop": "graftwork_multiscale.mmengine_parts",
    "ResizeToSampledScale": "graftwork_multiscale.mmengine_parts",
    "config_path": "graftwork_multiscale.configs",
}

__all__ = [
    "Curriculum",
    "CurriculumError",
    "Gaussian",
    "GrowMax",
    "MultiScaleBatchSampler",
    "MultiScaleDatasetWrapper",
    "MultiScaleHook",
    "MultiScaleTrainLoop",
    "PlanCost",
    "PrefixK",
    "RankSampler",
    "ResizeToSampledScale",
    "Scale",
    "ScaleError",
    "ScaledDataset",
    "ScaledIndex",
    "Schedule",
    "Staged",
    "StateError",
    "Step",
    "Window",
    "build_curriculum",
    "config_path",
    "effective_base",
    "make_divisible",
    "make_schedule",
    "plan_cost",
    "rank_indices",
    "resize_batch",
    "scale_table",
]


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)
