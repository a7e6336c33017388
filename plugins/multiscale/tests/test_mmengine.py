"""The parts in mmengine's runner, with a model of one convolution: loops, hooks, resumption, workers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset, pseudo_collate
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, HOOKS, MODELS, TRANSFORMS
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement

from graftwork_multiscale import MultiScaleBatchSampler, MultiScaleDatasetWrapper, StateError

SAMPLES = 61
pytestmark = pytest.mark.usefixtures("one_thread", "quick_runner")


@DATASETS.register_module()
class Numbers(BaseDataset):
    def __init__(self, count: int = SAMPLES, **options: Any) -> None:
        self.count = count
        super().__init__(**options)

    def load_data_list(self) -> list[dict]:
        return [{"number": i, "width": 40 + i % 3, "height": 41} for i in range(self.count)]


@TRANSFORMS.register_module()
class ToySize:
    """Stands for mmdet.Resize."""

    def __init__(self, scale: tuple[int, int], keep_ratio: bool) -> None:
        self.scale = scale

    def __call__(self, results: dict) -> dict:
        width, height = self.scale
        return {**results, "image": torch.full((1, height, width), results["number"] / SAMPLES)}


@TRANSFORMS.register_module()
class RejectThirds:
    """Stands for a filter of images without ground truth."""

    def __call__(self, results: dict) -> dict | None:
        return None if results["number"] % 3 == 0 else results


@TRANSFORMS.register_module()
class Pack:
    def __call__(self, results: dict) -> dict:
        sample = BaseDataElement(metainfo={"number": results["number"]})
        return {"inputs": results["image"], "data_samples": sample}


@MODELS.register_module()
class OneConvolution(BaseModel):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Conv2d(1, 1, 3)

    def forward(self, inputs: list, data_samples: list, mode: str = "tensor") -> Any:
        output = self.layer(torch.stack(inputs))
        return {"loss": output.square().mean()} if mode == "loss" else output


@HOOKS.register_module()
class Record(Hook):
    """Keeps the samples and shapes of every step that was trained."""

    steps: ClassVar[list[tuple[int, tuple[int, ...], list[int]]]] = []

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        numbers = [sample.metainfo["number"] for sample in data_batch["data_samples"]]
        self.steps.append((runner.epoch, tuple(data_batch["inputs"][0].shape[-2:]), numbers))


def config(folder: Path, **changes: Any) -> Config:
    sizes = {"base_size": 32, "min_size": 16, "max_size": 48, "divisor": 16}
    cfg = Config(
        {
            "model": {"type": "OneConvolution"},
            "train_dataloader": {
                "batch_size": 4,
                "num_workers": 0,
                "sampler": {"type": "DefaultSampler", "shuffle": True},
                "batch_sampler": {"type": "graftwork.MultiScaleBatchSampler", "mode": "MSc-VBS", **sizes},
                "dataset": {
                    "type": "graftwork.MultiScaleDatasetWrapper",
                    "dataset": {
                        "type": "Numbers",
                        "pipeline": [
                            {"type": "graftwork.ResizeToSampledScale", "resize_type": "ToySize"},
                            {"type": "Pack"},
                        ],
                    },
                },
            },
            "train_cfg": {"type": "graftwork.MultiScaleTrainLoop", "max_epochs": 3},
            "optim_wrapper": {"optimizer": {"type": "SGD", "lr": 0.01}},
            "param_scheduler": [{"type": "LinearLR", "start_factor": 0.1, "by_epoch": False, "end": 10}],
            "custom_hooks": [{"type": "graftwork.MultiScaleHook"}, {"type": "Record"}],
            "default_hooks": {"checkpoint": {"type": "CheckpointHook", "interval": -1}},
            "work_dir": str(folder),
            "randomness": {"seed": 5},
            "experiment_name": folder.name,
        }
    )
    cfg.merge_from_dict(changes)
    return cfg


SAVE_EVERY_STEP = {"default_hooks.checkpoint": {"type": "CheckpointHook", "interval": 1, "by_epoch": False}}


def train(cfg: Config) -> tuple[Runner, list]:
    runner = Runner.from_cfg(cfg)
    Record.steps = []
    runner.train()
    return runner, Record.steps


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Runner, list, Path]:
    folder = tmp_path_factory.mktemp("whole")
    return *train(config(folder, **SAVE_EVERY_STEP)), folder


def test_every_step_has_the_shape_of_the_plan(whole: tuple[Runner, list, Path]) -> None:
    runner, steps, _ = whole
    sampler = runner.train_dataloader.batch_sampler
    for epoch in range(3):
        sampler.set_epoch(epoch)
        expected = [(sampler.scales[step.scale][:2], step.batch) for step in sampler.plan]
        assert [(shape, len(numbers)) for e, shape, numbers in steps if e == epoch] == expected
        assert {n for e, _, numbers in steps if e == epoch for n in numbers} == set(range(SAMPLES))


def test_the_loop_knows_the_exact_number_of_iterations(whole: tuple[Runner, list, Path]) -> None:
    runner, steps, _ = whole
    assert runner.train_loop.max_iters == runner.iter == len(steps)
    lengths = [sum(e == epoch for e, _, _ in steps) for epoch in range(3)]
    assert len(set(lengths)) > 1  # otherwise the test shows nothing


def test_checkpoints_load_with_weights_only(whole: tuple[Runner, list, Path]) -> None:
    checkpoint = torch.load(whole[2] / "iter_3.pth", weights_only=True)
    assert checkpoint["graftwork_multiscale"]["step"] == 3
    assert "message_hub" in checkpoint


@pytest.mark.parametrize("iteration", [1, 5, 9])
def test_resuming_in_mid_epoch_trains_on_the_same_batches(
    whole: tuple[Runner, list, Path], iteration: int, tmp_path: Path
) -> None:
    _, steps, folder = whole
    cfg = config(tmp_path, resume=True, load_from=str(folder / f"iter_{iteration}.pth"))
    runner, tail = train(cfg)
    assert tail == steps[iteration:]
    assert runner.iter == runner.max_iters == len(steps)


def test_resuming_takes_over_another_seed(whole: tuple[Runner, list, Path], tmp_path: Path) -> None:
    changes = {"randomness": {"seed": 77}, "resume": True, "load_from": str(whole[2] / "iter_4.pth")}
    _, tail = train(config(tmp_path, **changes))
    assert tail == whole[1][4:]


def test_mmengines_own_loop_resumes_too(whole: tuple[Runner, list, Path], tmp_path: Path) -> None:
    changes = {"train_cfg.type": "EpochBasedTrainLoop", "resume": True}
    _, tail = train(config(tmp_path, load_from=str(whole[2] / "iter_7.pth"), **changes))
    assert tail == whole[1][7:]


def test_a_checkpoint_of_another_table_is_refused_unless_told_to_begin_anew(
    whole: tuple[Runner, list, Path], tmp_path: Path
) -> None:
    changes = {
        "train_dataloader.batch_sampler.max_size": 64,
        "resume": True,
        "load_from": str(whole[2] / "iter_4.pth"),
    }
    with pytest.raises(StateError, match="saved with other scales"):
        train(config(tmp_path, **changes))
    hooks = [{"type": "graftwork.MultiScaleHook", "restore": False}, {"type": "Record"}]
    runner, _ = train(config(tmp_path, custom_hooks=hooks, **changes))
    assert runner.epoch == 3


def test_size_and_batch_are_logged(whole: tuple[Runner, list, Path]) -> None:
    runner, steps, folder = whole
    _, (height, width), numbers = steps[-1]
    for name, value in (("scale_h", height), ("scale_w", width), ("images", len(numbers))):
        history = runner.message_hub.get_scalar(f"train/{name}")
        assert history.current() == value
    (log,) = folder.glob("*/*.log")
    lines = [line for line in log.read_text().splitlines() if "Epoch(train)" in line]
    assert all("scale_h:" in line and "images:" in line for line in lines)


def test_persistent_workers_change_nothing(whole: tuple[Runner, list, Path], tmp_path: Path) -> None:
    changes = {"train_dataloader.num_workers": 1, "train_dataloader.persistent_workers": True}
    _, steps = train(config(tmp_path, **changes, **SAVE_EVERY_STEP))
    assert steps == whole[1]
    # what is in the checkpoint was trained on, not only loaded
    checkpoint = torch.load(tmp_path / "iter_2.pth", weights_only=True)
    assert checkpoint["graftwork_multiscale"]["step"] == 2


def test_rejected_samples_are_replaced_at_the_same_size(tmp_path: Path) -> None:
    cfg = config(tmp_path)
    cfg.train_dataloader.dataset.dataset.pipeline.insert(0, {"type": "RejectThirds"})
    _, steps = train(cfg)  # stacking would fail if one image had another size
    assert all(number % 3 for _, _, numbers in steps for number in numbers)


def test_rejecting_everything_ends_in_an_explanation() -> None:
    data = MultiScaleDatasetWrapper(
        {"type": "Numbers", "count": 1, "pipeline": [{"type": "RejectThirds"}], "max_refetch": 5}
    )
    with pytest.raises(RuntimeError, match="rejected 6 samples in a row at 16x16"):
        data[
            next(iter(MultiScaleBatchSampler(data, 1, base_size=16, min_size=16, max_size=16, divisor=16)))[0]
        ]


def test_gradient_accumulation_counts_real_iterations(tmp_path: Path) -> None:
    runner, steps = train(config(tmp_path, **{"optim_wrapper.accumulative_counts": 4}))
    assert runner.optim_wrapper._max_counts == len(steps)


def test_wrapped_data_sets_keep_the_size(tmp_path: Path) -> None:
    plain = config(tmp_path).train_dataloader.dataset.dataset
    nested = {
        "type": "ConcatDataset",
        "datasets": [plain, {"type": "RepeatDataset", "dataset": plain, "times": 2}],
    }
    data = MultiScaleDatasetWrapper(nested)
    assert len(data) == 3 * SAMPLES
    sampler = MultiScaleBatchSampler(data, 4, base_size=32, min_size=16, max_size=48, divisor=16)
    for batch in list(sampler)[:10]:
        samples = pseudo_collate([data[item] for item in batch])
        assert {tuple(image.shape[-2:]) for image in samples["inputs"]} == {batch[0].size}
        expected = [item[1] % SAMPLES for item in batch]
        assert [sample.metainfo["number"] for sample in samples["data_samples"]] == expected


def test_a_sliced_data_set_keeps_the_size(tmp_path: Path) -> None:
    runner, steps = train(config(tmp_path, **{"train_dataloader.num_batch_per_epoch": 5}))
    assert runner.train_dataloader.batch_sampler.dataset_size == 20
    assert {number for _, _, numbers in steps for number in numbers} == set(range(20))


def test_a_fixed_length_serves_converted_schedulers(tmp_path: Path) -> None:
    changes = {
        "train_dataloader.batch_sampler.length_mode": "fixed",
        "param_scheduler": [
            {"type": "CosineAnnealingLR", "T_max": 3, "by_epoch": True, "convert_to_iter_based": True}
        ],
    }
    runner, steps = train(config(tmp_path, **changes))
    assert runner.param_schedulers[0].T_max == len(steps) == runner.max_iters
    changes["train_dataloader.batch_sampler.length_mode"] = "variable"
    with pytest.raises(ValueError, match="length_mode='fixed'"):
        train(config(tmp_path, **changes))


def test_a_curriculum_trains_in_the_loop_it_was_laid_out_for(tmp_path: Path) -> None:
    changes = {"train_dataloader.batch_sampler.mode": "MSc-VBSWC", "train_dataloader.batch_sampler.epochs": 3}
    runner, steps = train(config(tmp_path, **changes))
    assert runner.max_iters == len(steps)
    assert {shape for epoch, shape, _ in steps if epoch == 0} == {(16, 16), (32, 32)}
    with pytest.raises(ValueError, match=r"epochs=5, the loop trains max_epochs=3"):
        train(config(tmp_path, **(changes | {"train_dataloader.batch_sampler.epochs": 5})))


@pytest.mark.parametrize("sampler", ["InfiniteSampler", "DefaultSampler"])
def test_iteration_based_training_runs_and_resumes(
    sampler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmengine.runner.loops.time.sleep", lambda seconds: None)
    changes = {
        "train_cfg": {"_delete_": True, "type": "IterBasedTrainLoop", "max_iters": 30},
        "train_dataloader.sampler.type": sampler,
        "log_processor": {"by_epoch": False},
    }

    def run(folder: Path, **more: Any) -> list:
        cfg = config(folder, **{k: v for k, v in changes.items() if k != "train_cfg"}, **more)
        cfg.train_cfg = Config({"train_cfg": {"type": "IterBasedTrainLoop", "max_iters": 30}}).train_cfg
        return train(cfg)[1]

    steps = run(tmp_path / "whole", **SAVE_EVERY_STEP)
    assert len(steps) == 30
    assert len({shape for _, shape, _ in steps}) == 3
    seen = [number for _, _, numbers in steps for number in numbers]
    assert set(seen[:SAMPLES]) == set(range(SAMPLES))
    tail = run(tmp_path / "tail", resume=True, load_from=str(tmp_path / "whole" / "iter_25.pth"))
    assert tail == steps[25:]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"train_dataloader.dataset": {"type": "Numbers"}}, KeyError, "must be wrapped in"),
        ({"train_dataloader.batch_sampler": None}, TypeError, "write train_dataloader=dict.batch_sampler="),
    ],
)
def test_forgotten_parts_are_named(changes: dict, error: type, message: str, tmp_path: Path) -> None:
    cfg = config(tmp_path)
    if "train_dataloader.dataset" in changes:
        cfg.train_dataloader.dataset = cfg.train_dataloader.dataset.dataset
        cfg.train_dataloader.batch_sampler = None
        cfg.train_cfg.type = "EpochBasedTrainLoop"
        cfg.custom_hooks = []
    else:
        cfg.train_dataloader.batch_sampler = None
    with pytest.raises(error, match=message):
        train(cfg)


def test_an_index_without_a_size_is_refused(tmp_path: Path) -> None:
    data = MultiScaleDatasetWrapper(config(tmp_path).train_dataloader.dataset.dataset)
    with pytest.raises(TypeError, match="got the index 3 without a size"):
        data[3]
    assert data.get_data_info(3)["number"] == 3
    assert math.isclose(len(data), SAMPLES)
    assert isinstance(data.metainfo, dict)
