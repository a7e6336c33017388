"""Multi-scale, variable-batch samplers (Nunez et al. 2023) for plain PyTorch, timm and MMDetection.

Example:
    >>> from graftwork_multiscale import MultiScaleBatchSampler, ScaledDataset  # doctest: +SKIP
    >>> sampler = MultiScaleBatchSampler(data, 128, base_size=224, min_size=128, max_size=320)  # doctest:
    +SKIP
    >>> loader = DataLoader(ScaledDataset(data, transforms), batch_sampler=sampler)  # doctest: +SKIP

Importing this package imports nothing heavy and registers nothing: each part is imported when it is named.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from graftwork_multiscale.configs import config_path
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
    from graftwork_multiscale.mmengine_parts import (
        MultiScaleDatasetWrapper,
        MultiScaleHook,
        MultiScaleTrainLoop,
        ResizeToSampledScale,
    )
    from graftwork_multiscale.plan import Schedule, Step, make_schedule
    from graftwork_multiscale.sampler import MultiScaleBatchSampler
    from graftwork_multiscale.scales import Scale, ScaleError, effective_base, make_divisible, scale_table
    from graftwork_multiscale.state import StateError

_LAZY = {
    "Curriculum": "graftwork_multiscale.curriculum",
    "CurriculumError": "graftwork_multiscale.curriculum",
    "Gaussian": "graftwork_multiscale.curriculum",
    "GrowMax": "graftwork_multiscale.curriculum",
    "MultiScaleBatchSampler": "graftwork_multiscale.sampler",
    "MultiScaleDatasetWrapper": "graftwork_multiscale.mmengine_parts",
    "MultiScaleHook": "graftwork_multiscale.mmengine_parts",
    "MultiScaleTrainLoop": "graftwork_multiscale.mmengine_parts",
    "PlanCost": "graftwork_multiscale.cost",
    "PrefixK": "graftwork_multiscale.curriculum",
    "RankSampler": "graftwork_multiscale.indices",
    "ResizeToSampledScale": "graftwork_multiscale.mmengine_parts",
    "Scale": "graftwork_multiscale.scales",
    "ScaleError": "graftwork_multiscale.scales",
    "ScaledDataset": "graftwork_multiscale.data",
    "ScaledIndex": "graftwork_multiscale.indices",
    "Schedule": "graftwork_multiscale.plan",
    "Staged": "graftwork_multiscale.curriculum",
    "StateError": "graftwork_multiscale.state",
    "Step": "graftwork_multiscale.plan",
    "Window": "graftwork_multiscale.curriculum",
    "build_curriculum": "graftwork_multiscale.curriculum",
    "config_path": "graftwork_multiscale.configs",
    "effective_base": "graftwork_multiscale.scales",
    "make_divisible": "graftwork_multiscale.scales",
    "make_schedule": "graftwork_multiscale.plan",
    "plan_cost": "graftwork_multiscale.cost",
    "rank_indices": "graftwork_multiscale.indices",
    "resize_batch": "graftwork_multiscale.data",
    "scale_table": "graftwork_multiscale.scales",
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
