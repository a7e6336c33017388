"""Loading at the sampled size: plain PyTorch, and timm's loader."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from graftwork_multiscale import (
    MultiScaleBatchSampler,
    ScaledDataset,
    ScaledIndex,
    make_schedule,
    resize_batch,
)

OPTIONS = {"base_size": 32, "min_size": 16, "max_size": 48, "divisor": 16}


class Images(Dataset):
    def __len__(self) -> int:
        return 50

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.full((3, 32, 32), float(index)), index


class Resize:
    def __init__(self, height: int, width: int) -> None:
        self.size = (height, width)

    def __call__(self, image: Tensor) -> Tensor:
        return resize_batch(image[None], self.size)[0]


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_have_the_sampled_size_in_any_process(workers: int) -> None:
    sampler = MultiScaleBatchSampler(Images(), 8, **OPTIONS)
    data = pickle.loads(pickle.dumps(ScaledDataset(Images(), Resize)))
    loader = DataLoader(data, batch_sampler=sampler, num_workers=workers)
    seen = set()
    for batch, (images, labels) in zip(sampler, loader, strict=True):
        assert tuple(images.shape[-2:]) == batch[0].size
        assert labels.tolist() == [index for _, index in batch]
        assert torch.allclose(images[:, 0, 0, 0], labels.float(), atol=1e-4)
        seen.add(batch[0].size)
    assert len(seen) == 3


def test_transforms_may_be_given_by_size() -> None:
    data = ScaledDataset(Images(), {(16, 16): Resize(16, 16)})
    assert data[ScaledIndex(0, 3, (16, 16))][0].shape == (3, 16, 16)
    with pytest.raises(KeyError, match="no transform for 48x48, only for 16x16"):
        data[ScaledIndex(2, 3, (48, 48))]


def test_mistakes_are_named() -> None:
    with pytest.raises(TypeError, match="the index 3 without a size"):
        ScaledDataset(Images(), Resize)[3]
    with pytest.raises(TypeError, match="expects tuples such as"):
        ScaledDataset([torch.zeros(1)], Resize)[ScaledIndex(0, 0, (16, 16))]


def test_resizing_keeps_constant_images_constant() -> None:
    images = torch.full((2, 3, 32, 32), 0.7)
    for size in ((16, 16), (32, 32), (48, 40)):
        assert torch.allclose(resize_batch(images, size), torch.full((2, 3, *size), 0.7))


def test_timm_gets_sizes_batches_and_weights() -> None:
    timm_data = pytest.importorskip("timm.data", reason="timm is not installed")
    from PIL import Image

    from graftwork_multiscale.timm_loader import loader_arguments, supports_scheduled_sizes

    if not supports_scheduled_sizes():
        pytest.skip("this timm draws one size only")

    class Photographs(Dataset):
        transform = None

        def __len__(self) -> int:
            return 60

        def __getitem__(self, index: int) -> tuple[object, int]:
            return Image.new("RGB", (40, 40), (index, 0, 0)), index

    schedule = make_schedule(base_batch=8, seed=3, **OPTIONS)
    loader = timm_data.create_loader(
        Photographs(),
        input_size=(3, 32, 32),
        batch_size=8,
        is_training=True,
        use_prefetcher=False,
        num_workers=0,
        **loader_arguments(schedule),
    )
    table = {scale[:2]: scale.batch for scale in schedule.scales}
    for images, _ in loader:
        assert len(images) == table[tuple(images.shape[-2:])]


def test_timms_progressive_schedule_is_our_gaussian_curriculum() -> None:
    scheduled = pytest.importorskip("timm.data.scheduled_sampler", reason="this timm draws one size only")
    from graftwork_multiscale.timm_loader import loader_arguments

    schedule = make_schedule(base_batch=8, mode="MSc-VBSWC", curriculum="gaussian", epochs=10, **OPTIONS)
    arguments = loader_arguments(schedule)
    theirs = scheduled.ScheduledBatchSampler(
        range(1000),
        arguments["batch_size_choices"],
        choice_schedule=arguments["batch_choice_schedule"],
        schedule_epochs=arguments["batch_schedule_epochs"],
        schedule_spread=arguments["batch_schedule_spread"],
        schedule_random_mix=arguments["batch_schedule_random_mix"],
    )
    for epoch in range(10):
        ours = torch.tensor([probability for _, probability in schedule.active(epoch)], dtype=torch.float64)
        assert torch.allclose(theirs.choice_weights_for_epoch(epoch), ours)
    other = make_schedule(base_batch=8, mode="MSc-VBSWC", curriculum="grow_max", epochs=10, **OPTIONS)
    with pytest.raises(ValueError, match="no curriculum like GrowMax"):
        loader_arguments(other)


def test_our_sampler_feeds_timms_data_set() -> None:
    scheduled = pytest.importorskip("timm.data.scheduled_sampler", reason="this timm draws one size only")
    from graftwork_multiscale.timm_loader import SampleFirst

    sampler = MultiScaleBatchSampler(Images(), 8, **OPTIONS)
    data = scheduled.ScheduledTransformDataset(Images(), [Resize(*scale[:2]) for scale in sampler.scales])
    swapped = SampleFirst(sampler)
    for batch, (images, labels) in zip(sampler, DataLoader(data, batch_sampler=swapped), strict=True):
        assert tuple(images.shape[-2:]) == batch[0].size
        assert labels.tolist() == [index for _, index in batch]
    swapped.load_state_dict(swapped.state_dict() | {"step": 2})
    assert len(swapped) == len(sampler.plan) - 2


def test_words_for_timms_training_script() -> None:
    from graftwork_multiscale.timm_loader import train_script_arguments

    words = train_script_arguments(make_schedule(base_batch=8, **OPTIONS))
    assert " ".join(words) == "--train-img-sizes 16 32 48 --train-batch-sizes 32 8 3"
    oblong = make_schedule(base_size=(32, 48), base_batch=8, min_size=16, max_size=48, divisor=16)
    with pytest.raises(ValueError, match="square sizes only"):
        train_script_arguments(oblong)
