"""What travels with the sampler in mmengine: dataset wrapper, transform, hook and train loop.

The sampled size goes with the index of a sample: from the batch sampler to the dataset wrapper, which puts it
into ``results["ms_scale"]`` for the pipeline, in whichever process the sample is loaded. Nothing is set from
outside, so persistent workers and refetched samples see the right size.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import DATASETS, TRANSFORMS
from mmengine.runner import EpochBasedTrainLoop

from graftwork_multiscale.indices import ScaledIndex
from graftwork_multiscale.sampler import MultiScaleBatchSampler

SCALE_KEY = "ms_scale"
CHECKPOINT_KEY = "graftwork_multiscale"


class MultiScaleDatasetWrapper:
    """Gives every sample's pipeline the size that was sampled for its batch.

    Example:
        >>> dataset = dict(  # doctest: +SKIP
        ...     type="graftwork.MultiScaleDatasetWrapper",
        ...     dataset=dict(type="CocoDataset", pipeline=[..., dict(type="graftwork.ResizeToSampledScale"),
        ...]), ... )

    A sample that the pipeline rejects, such as one without ground truth after a crop, is replaced by another
    at the same size; mmengine's own replacement would lose the size.

    Args:
        dataset: Configuration of an mmengine data set, or the data set; ConcatDataset, RepeatDataset and
            ClassBalancedDataset may lie in between.
    """

    def __init__(self, dataset: Mapping[str, Any] | Any) -> None:
        self.dataset: Any = DATASETS.build(dataset) if isinstance(dataset, Mapping) else dataset

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def metainfo(self) -> dict[str, Any]:
        """Meta information of the wrapped data set."""
        return self.dataset.metainfo  # type: ignore[no-any-return]

    def full_init(self) -> None:
        """Load the annotations of the wrapped data set."""
        self.dataset.full_init()

    def get_data_info(self, index: int) -> dict[str, Any]:
        """Return the annotations of one sample."""
        return self.dataset.get_data_info(index)  # type: ignore[no-any-return]

    def __getitem__(self, item: ScaledIndex) -> Any:
        """Load one sample at its size.

        Raises:
            TypeError: The index carries no size.
            RuntimeError: The pipeline rejected too many samples in a row.
        """
        if not isinstance(item, ScaledIndex):
            raise TypeError(
                f"MultiScaleDatasetWrapper got the index {item!r} without a size. Give the dataloader "
                "batch_sampler=dict(type='graftwork.MultiScaleBatchSampler', ...)."
            )
        source, index = _locate(self.dataset, item[1])
        height, width = item.size
        for _ in range(source.max_refetch + 1):
            info = source.get_data_info(index)
            info[SCALE_KEY] = (width, height)
            sample = source.pipeline(info)
            if sample is not None:
                _annotate(sample, (width, height))
                return sample
            if source.test_mode:
                break
            index = source._rand_another()
        raise RuntimeError(
            f"the pipeline rejected {source.max_refetch + 1} samples in a row at {height}x{width}. Check "
            "its filters, "
            "or raise max_refetch of the data set."
        )


def _locate(dataset: Any, index: int) -> tuple[Any, int]:
    """Follow mmengine's dataset wrappers down to the data set that owns the pipeline."""
    while hasattr(dataset, "_get_ori_dataset_idx"):
        if not getattr(dataset, "_fully_initialized", True):
            dataset.full_init()
        inner = dataset._get_ori_dataset_idx(index)
        if isinstance(inner, tuple):
            dataset, index = dataset.datasets[inner[0]], inner[1]
        else:
            dataset, index = dataset.dataset, inner
    if not callable(getattr(dataset, "pipeline", None)) or not hasattr(dataset, "_rand_another"):
        raise TypeError(
            f"{type(dataset).__name__} has no pipeline that takes a sample's annotations, so it cannot be "
            "told the "
            "sampled size. Wrap an mmengine BaseDataset; mixing transforms such as Mosaic are not supported."
        )
    return dataset, int(index)


def _annotate(sample: Any, scale: tuple[int, int]) -> None:
    """Note the sampled size on the packed sample, so that hooks can tell it from padding."""
    packed = sample.get("data_samples") if isinstance(sample, dict) else None
    if hasattr(packed, "set_metainfo"):
        packed.set_metainfo({SCALE_KEY: scale})


class ResizeToSampledScale:
    """Resizes image, boxes and masks to the sampled size.

    Args:
        keep_ratio: False stretches to exactly the sampled size, as in the paper's library: nothing is padded.
            True fits the image into it; the data preprocessor pads, with ``pad_size_divisor``.
        resize_type: Registered transform that does the work.
        options: Passed to it, such as ``interpolation``.
    """

    def __init__(self, keep_ratio: bool = False, resize_type: str = "mmdet.Resize", **options: Any) -> None:
        self.options = {"type": resize_type, "keep_ratio": keep_ratio, **options}
        self._resize: dict[tuple[int, int], Any] = {}

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        """Resize one sample.

        Raises:
            KeyError: No size was sampled for it.
        """
        if SCALE_KEY not in results:
            raise KeyError(
                f"ResizeToSampledScale found no {SCALE_KEY!r}: the data set must be wrapped in "
                "dict(type='graftwork.MultiScaleDatasetWrapper', dataset=...)."
            )
        scale = results[SCALE_KEY]
        if scale not in self._resize:
            self._resize[scale] = TRANSFORMS.build({**self.options, "scale": scale})
        return self._resize[scale](results)  # type: ignore[no-any-return]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self.options.items())})"


def find_sampler(dataloader: Any) -> MultiScaleBatchSampler:
    """Return the batch sampler of a dataloader, or explain what to write.

    Raises:
        TypeError: The dataloader has another batch sampler.
    """
    sampler = getattr(dataloader, "batch_sampler", None)
    if not isinstance(sampler, MultiScaleBatchSampler):
        raise TypeError(
            f"train_dataloader has the batch sampler {type(sampler).__name__}; write "
            "train_dataloader=dict(batch_sampler=dict(_delete_=True, "
            "type='graftwork.MultiScaleBatchSampler', "
            "base_size=..., min_size=..., max_size=...), ...)."
        )
    return sampler


class MultiScaleHook(Hook):  # type: ignore[misc]  # mmengine is untyped
    """Connects the sampler with the runner: epoch, log line, checkpoint.

    The log line and every visual backend get ``scale_h``, ``scale_w`` (pixels) and ``images`` (batch of this
    rank). Checkpoints get the sampler's state, counted in batches that were trained on, so that training
    resumes in the middle of an epoch, without loading what it skips.

    Args:
        restore: Take the sampler's state from a checkpoint that is resumed. False begins the epoch anew, such
            as to go on with other scales.
    """

    priority = "NORMAL"

    def __init__(self, restore: bool = True) -> None:
        self.restore = restore
        self._saved: dict[str, Any] | None = None

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Keep the sampler's state until it is known whether the run resumes."""
        self._saved = checkpoint.get(CHECKPOINT_KEY)

    def before_train_epoch(self, runner: Any) -> None:
        """Set the epoch of the sampler, and its step in the first epoch of a resumed run."""
        sampler = find_sampler(runner.train_dataloader)
        if not isinstance(runner.train_loop, EpochBasedTrainLoop):
            return  # the other loop has begun to load already, and skips what was trained on by itself
        resumed = runner.iter > 0 and self.restore
        if resumed and self._saved is not None:
            sampler.load_state_dict(self._saved)
        sampler.set_epoch(runner.epoch)
        sampler.mark_consumed(0)
        self._saved = None

    def after_train_iter(
        self,
        runner: Any,
        batch_idx: int,
        data_batch: dict[str, Any] | None = None,
        outputs: dict[str, Any] | None = None,
    ) -> None:
        """Count the batch and log its size."""
        find_sampler(runner.train_dataloader).mark_consumed()
        samples = (data_batch or {}).get("data_samples") or []
        if len(samples) and SCALE_KEY in samples[0].metainfo:
            width, height = samples[0].metainfo[SCALE_KEY]
            for name, value in (("scale_h", height), ("scale_w", width), ("images", len(samples))):
                runner.message_hub.update_scalar(f"train/{name}", value)

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Add the sampler's state."""
        checkpoint[CHECKPOINT_KEY] = find_sampler(runner.train_dataloader).state_dict()


class MultiScaleTrainLoop(EpochBasedTrainLoop):  # type: ignore[misc]  # mmengine is untyped
    """Epoch-based training whose ``max_iters`` is the exact sum over all epochs.

    mmengine multiplies the length of the first epoch by the number of epochs, which is wrong where epochs
    differ, and so are the ends of schedulers, gradient accumulation and the remaining time.

    Args:
        runner: The runner.
        dataloader: Dataloader or its configuration.
        max_epochs: Length of the training; with a curriculum, the same as the sampler's ``epochs``.
        options: ``val_begin``, ``val_interval``, ``dynamic_intervals``.

    Raises:
        TypeError: The dataloader has another batch sampler.
        ValueError: The curriculum was laid out for another number of epochs, or a scheduler wants to convert
            epochs to iterations although epochs differ in length.
    """

    def __init__(self, runner: Any, dataloader: Any, max_epochs: int, **options: Any) -> None:
        super().__init__(runner, dataloader, max_epochs, **options)
        sampler = find_sampler(self.dataloader)
        planned = sampler.schedule.epochs
        if planned is not None and planned != max_epochs:
            raise ValueError(
                f"the curriculum is laid out for epochs={planned}, the loop trains "
                f"max_epochs={max_epochs}. Write the "
                "same number twice."
            )
        if sampler.schedule.length_mode == "variable" and _converts(runner.param_schedulers):
            raise ValueError(
                "a scheduler has convert_to_iter_based=True, for which mmengine takes every epoch to be as "
                "long as "
                "the first. Remove it, or give the sampler length_mode='fixed'."
            )
        self._max_iters = sampler.total_steps(max_epochs)
        steps = self._max_iters / max_epochs
        print_log(
            f"{sampler.schedule.mode}: {self._max_iters} iterations in {max_epochs} epochs, {steps:.1f} "
            "per epoch",
            logger="current",
            level=logging.INFO,
        )


def _converts(schedulers: Any) -> bool:
    if isinstance(schedulers, Mapping):
        return bool(schedulers.get("convert_to_iter_based")) or any(map(_converts, schedulers.values()))
    return isinstance(schedulers, (list, tuple)) and any(map(_converts, schedulers))
