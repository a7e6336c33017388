"""The contracts that a third party's plugin and sampler get."""

from __future__ import annotations

from typing import Any, ClassVar

from graftwork.testing import PluginContract, SamplerContract
from graftwork_multiscale import MultiScaleBatchSampler, RankSampler

SIZES = {"base_size": 32, "min_size": 16, "max_size": 48, "divisor": 16}


class TestPlugin(PluginContract):
    plugin = "multiscale"


class MultiScale(SamplerContract):
    options: ClassVar[dict[str, Any]] = {}

    def make(
        self, samples: int, *, rank: int = 0, world_size: int = 1, seed: int = 0
    ) -> MultiScaleBatchSampler:
        options = SIZES | self.options
        return MultiScaleBatchSampler(
            range(samples), 4, rank=rank, world_size=world_size, seed=seed, **options
        )

    def index_of(self, item: Any) -> int:
        return item[1]

    def shape_of(self, batch: Any) -> tuple[int, int]:
        return batch[0][0], len(batch)


class TestVariableBatch(MultiScale):
    options: ClassVar = {}


class TestCurriculum(MultiScale):
    options: ClassVar = {"mode": "MSc-VBSWC", "epochs": 6, "last_batch": "refit"}


class TestFixedLength(MultiScale):
    options: ClassVar = {"length_mode": "fixed", "last_batch": "trim"}


class TestDroppedTail(MultiScale):
    options: ClassVar = {"last_batch": "drop"}
    covers = False


class TestRanks(SamplerContract):
    batches = False
    resumes = False

    def make(self, samples: int, *, rank: int = 0, world_size: int = 1, seed: int = 0) -> RankSampler:
        return RankSampler(range(samples), rank=rank, world_size=world_size, seed=seed)
