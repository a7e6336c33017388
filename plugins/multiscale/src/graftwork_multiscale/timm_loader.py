"""The scale table in timm's own scheduled loader, and our sampler under timm's data set.

Recent timm's ``create_loader`` takes sizes and batch sizes that the user works out by hand;
:func:`loader_arguments` works them out. timm's loader knows no pixel budget, drops the tail of an epoch and
cannot resume in the middle of one; :class:`SampleFirst` lets our sampler feed timm's
``ScheduledTransformDataset`` instead.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from torch.utils.data import Sampler

from graftwork_multiscale.curriculum import Gaussian
from graftwork_multiscale.plan import Schedule
from graftwork_multiscale.sampler import MultiScaleBatchSampler


def supports_scheduled_sizes() -> bool:
    """Say whether the installed timm's ``create_loader`` takes a size per batch."""
    from timm.data import create_loader

    return "input_size_choices" in inspect.signature(create_loader).parameters


def loader_arguments(schedule: Schedule) -> dict[str, Any]:
    """Return the arguments that make timm's loader draw from a scale table.

    Example:
        >>> from graftwork_multiscale import make_schedule
        >>> schedule = make_schedule(base_size=224, base_batch=128, min_size=128, max_size=320)
        >>> loader_arguments(schedule)["batch_size_choices"]
        [392, 174, 128, 77, 62]
        >>> loader = timm.data.create_loader(  # doctest: +SKIP
        ...     dataset, input_size=(3, 224, 224), batch_size=128, is_training=True,
        **loader_arguments(schedule) ... )

    Args:
        schedule: With any mode, and with no curriculum or a :class:`Gaussian` one, which is timm's own.

    Returns:
        ``input_size_choices`` and what belongs to it.

    Raises:
        RuntimeError: The installed timm has no scheduled loader.
        ValueError: timm's loader has no such curriculum.
    """
    if not supports_scheduled_sizes():
        import timm

        raise RuntimeError(
            f"timm {timm.__version__} draws one size only. `pip install -U timm`, or use "
            "MultiScaleBatchSampler "
            "with ScaledDataset."
        )
    arguments: dict[str, Any] = {
        "input_size_choices": [(scale.height, scale.width) for scale in schedule.scales],
        "batch_size_choices": [scale.batch for scale in schedule.scales],
        "batch_choice_weights": list(schedule.share),
        "batch_choice_seed": schedule.seed,
    }
    if isinstance(schedule.curriculum, Gaussian):
        arguments |= {
            "batch_choice_schedule": "progressive",
            "batch_schedule_epochs": schedule.epochs,
            "batch_schedule_spread": schedule.curriculum.sigma,
            "batch_schedule_random_mix": schedule.curriculum.uniform,
        }
    elif schedule.curriculum is not None:
        raise ValueError(
            f"timm's loader has no curriculum like {schedule.curriculum!r}; take curriculum='gaussian', or "
            "our own "
            "sampler with ScaledDataset."
        )
    return arguments


def train_script_arguments(schedule: Schedule) -> list[str]:
    """Return the same as words for timm's ``train.py``.

    Example:
        >>> from graftwork_multiscale import make_schedule
        >>> schedule = make_schedule(base_size=64, base_batch=16, min_size=32, max_size=96, max_scales=3)
        >>> " ".join(train_script_arguments(schedule))
        '--train-img-sizes 32 64 96 --train-batch-sizes 64 16 7'

    Args:
        schedule: Of square scales.
    """
    if any(scale.height != scale.width for scale in schedule.scales):
        raise ValueError("timm's train.py takes square sizes only; write a script around create_loader.")
    sizes = [str(scale.height) for scale in schedule.scales]
    return [
        "--train-img-sizes",
        *sizes,
        "--train-batch-sizes",
        *(str(scale.batch) for scale in schedule.scales),
    ]


class SampleFirst(Sampler[list[tuple[int, int]]]):
    """Our batches with timm's order of the pair, (index, scale), for its ``ScheduledTransformDataset``.

    Args:
        sampler: What to draw from.
    """

    def __init__(self, sampler: MultiScaleBatchSampler) -> None:
        self.batch_sampler = sampler
        self.sampler = sampler.sampler

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for batch in self.batch_sampler:
            yield [(index, scale) for scale, index in batch]

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch."""
        self.batch_sampler.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Return where the training stands."""
        return self.batch_sampler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.batch_sampler.load_state_dict(state)
