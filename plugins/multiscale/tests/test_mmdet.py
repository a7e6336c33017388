"""MMDetection's Mask R-CNN under the sampler: one short training, and the pipeline by itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("mmdet", reason="mmdet is not installed")
pytestmark = pytest.mark.usefixtures("mmcv_operators", "one_thread", "quick_runner")

EPOCHS = 2


def small_config(data: Path, folder: Path, **changes: Any) -> Any:
    """The shipped small preset with yet smaller images and fewer regions of interest."""
    from mmengine.config import Config

    from graftwork_multiscale import config_path

    cfg = Config.fromfile(config_path("mask_rcnn_small_vbs"))
    rcnn = "model.train_cfg.rcnn.sampler.num"
    options = {
        "train_dataloader.batch_size": 2,
        "train_dataloader.batch_sampler.base_size": 96,
        "train_dataloader.batch_sampler.min_size": 64,
        "train_dataloader.batch_sampler.max_size": 128,
        "train_dataloader.dataset.dataset.data_root": f"{data}/",
        "val_dataloader.dataset.data_root": f"{data}/",
        "test_dataloader.dataset.data_root": f"{data}/",
        "val_evaluator.ann_file": f"{data}/val.json",
        "test_evaluator.ann_file": f"{data}/val.json",
        "train_cfg.max_epochs": EPOCHS,
        "train_cfg.val_interval": EPOCHS,
        "param_scheduler": [cfg.param_scheduler[0]],
        rcnn: 16,
        "model.train_cfg.rpn_proposal.max_per_img": 16,
        "work_dir": str(folder),
        "experiment_name": folder.name,
        "randomness": {"seed": 3},
        "default_hooks.logger.interval": 1,
        "visualizer.vis_backends": [{"type": "LocalVisBackend"}, {"type": "TensorboardVisBackend"}],
        "auto_scale_lr": {"enable": True, "base_batch_size": 8},
    }
    cfg.merge_from_dict(options | changes)
    cfg.custom_hooks.append({"type": "EMAHook", "ema_type": "ExponentialMovingAverage", "momentum": 0.01})
    return cfg


class Recorder:
    """Copies what the model is given, step by step."""

    def __init__(self) -> None:
        from mmengine.hooks import Hook

        steps = self.steps = []
        self.rates: list[float] = []

        class Record(Hook):
            def before_train(self, runner: Any) -> None:
                recorder.rates.append(runner.optim_wrapper.param_groups[0]["initial_lr"])

            def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
                steps.append(
                    {
                        "epoch": runner.epoch,
                        "shapes": [tuple(image.shape) for image in data_batch["inputs"]],
                        "samples": [sample.clone() for sample in data_batch["data_samples"]],
                    }
                )

        recorder = self
        self.hook = Record()

    def run(self, cfg: Any) -> Any:
        from mmengine.runner import Runner

        runner = Runner.from_cfg(cfg)
        runner.register_hook(self.hook, priority="LOWEST")
        runner.train()
        return runner


@pytest.fixture(scope="module")
def trained(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Recorder, Path]:
    folder = tmp_path_factory.mktemp("mask_rcnn")
    recorder = Recorder()
    changes = {"default_hooks.checkpoint": {"interval": 1, "by_epoch": False, "max_keep_ckpts": -1}}
    return recorder.run(small_config(shapes, folder, **changes)), recorder, folder


def test_mask_rcnn_is_given_the_shapes_of_the_plan(trained: tuple[Any, Recorder, Path]) -> None:
    runner, recorder, _ = trained
    sampler = runner.train_dataloader.batch_sampler
    for epoch in range(EPOCHS):
        sampler.set_epoch(epoch)
        expected = [[(3, *sampler.scales[step.scale][:2])] * step.batch for step in sampler.plan]
        assert [step["shapes"] for step in recorder.steps if step["epoch"] == epoch] == expected
    assert len({step["shapes"][0] for step in recorder.steps}) == 3
    assert runner.max_iters == len(recorder.steps)


def test_masks_have_the_shape_of_the_image_and_fill_their_boxes(trained: tuple[Any, Recorder, Path]) -> None:
    for step in trained[1].steps:
        for shape, sample in zip(step["shapes"], step["samples"], strict=True):
            masks = sample.gt_instances.masks
            assert (masks.height, masks.width) == shape[1:] == tuple(sample.img_shape)
            boxes = sample.gt_instances.bboxes.tensor
            for box, polygons in zip(boxes, masks.masks, strict=True):
                points = np.concatenate(polygons).reshape(-1, 2)
                around = torch.tensor([*points.min(0), *points.max(0)])
                assert (around - box).abs().max() <= 1


def test_boxes_lead_back_to_the_annotations_within_a_pixel(
    trained: tuple[Any, Recorder, Path], shapes: Path
) -> None:
    annotations = json.loads((shapes / "train.json").read_text())
    checked = 0
    for step in trained[1].steps:
        for sample in step["samples"]:
            boxes = sample.gt_instances.bboxes.tensor.clone()
            if sample.flip:
                boxes[:, [0, 2]] = sample.img_shape[1] - boxes[:, [2, 0]]
            boxes /= torch.tensor([*sample.scale_factor, *sample.scale_factor])
            original = [a["bbox"] for a in annotations["annotations"] if a["image_id"] == sample.img_id]
            expected = torch.tensor([[x, y, x + w, y + h] for x, y, w, h in original])
            assert (boxes - expected).abs().max() <= 1
            checked += len(boxes)
    assert checked > 50


def test_the_learning_rate_is_scaled_by_the_nominal_batch(trained: tuple[Any, Recorder, Path]) -> None:
    assert trained[1].rates[0] == pytest.approx(1e-3 * 2 / 8)


def test_logs_and_tensorboard_show_the_current_size(trained: tuple[Any, Recorder, Path]) -> None:
    _, recorder, folder = trained
    (file,) = folder.glob("*/vis_data/scalars.json")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    sizes = [(row["scale_h"], row["scale_w"], row["images"]) for row in rows if "scale_h" in row]
    assert sizes == [(*step["shapes"][0][1:], len(step["shapes"])) for step in recorder.steps]
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    accumulator = events.EventAccumulator(str(file.parent))
    accumulator.Reload()
    assert [event.value for event in accumulator.Scalars("scale_h")] == [height for height, _, _ in sizes]


def test_checkpoints_hold_averaged_weights_and_the_sampler(trained: tuple[Any, Recorder, Path]) -> None:
    _, recorder, folder = trained
    checkpoint = torch.load(folder / f"iter_{len(recorder.steps)}.pth", weights_only=True)
    assert checkpoint["ema_state_dict"]["steps"] == len(recorder.steps)
    assert checkpoint["graftwork_multiscale"]["epoch"] == EPOCHS - 1


def test_training_resumes_in_mid_epoch_with_the_next_batch(
    trained: tuple[Any, Recorder, Path], shapes: Path, tmp_path: Path
) -> None:
    _, recorder, folder = trained
    first = sum(step["epoch"] == 0 for step in recorder.steps)
    resumed = Recorder()
    changes = {"resume": True, "load_from": str(folder / f"iter_{first + 1}.pth"), "val_cfg": None}
    changes |= {"val_dataloader": None, "val_evaluator": None}
    resumed.run(small_config(shapes, tmp_path, **changes))
    tail = recorder.steps[first + 1 :]
    assert [step["shapes"] for step in resumed.steps] == [step["shapes"] for step in tail]
    assert [[s.img_id for s in step["samples"]] for step in resumed.steps] == [
        [s.img_id for s in step["samples"]] for step in tail
    ]


def test_validation_is_untouched(trained: tuple[Any, Recorder, Path]) -> None:
    runner = trained[0]
    assert type(runner.val_dataloader.batch_sampler).__name__ == "BatchSampler"
    (file,) = trained[2].glob("*/vis_data/scalars.json")
    assert "coco/segm_mAP" in file.read_text()


def wrapped(data: Path, *transforms: dict, **options: Any) -> Any:
    from mmdet.utils import register_all_modules

    from graftwork_multiscale import MultiScaleDatasetWrapper

    register_all_modules(init_default_scope=True)
    return MultiScaleDatasetWrapper(
        {
            "type": "CocoDataset",
            "data_root": str(data),
            "ann_file": "train.json",
            "data_prefix": {"img": "train/"},
            "metainfo": {"classes": ("object",)},
            "pipeline": [{"type": "LoadImageFromFile"}, *transforms, {"type": "PackDetInputs"}],
            **options,
        }
    )


def resize(**options: Any) -> dict:
    return {"type": "graftwork.ResizeToSampledScale", **options}


def test_bitmap_and_polygon_masks_agree(shapes: Path) -> None:
    from graftwork_multiscale import ScaledIndex

    load = {"type": "LoadAnnotations", "with_bbox": True, "with_mask": True}
    sets = [wrapped(shapes, load | {"poly2mask": flag}, resize()) for flag in (True, False)]
    for index in range(len(sets[0])):
        item = ScaledIndex(0, index, (160, 128))
        bitmaps, polygons = (data[item]["data_samples"].gt_instances.masks for data in sets)
        assert (bitmaps.height, bitmaps.width) == (polygons.height, polygons.width) == (160, 128)
        first, second = bitmaps.to_ndarray().astype(bool), polygons.to_ndarray().astype(bool)
        for a, b in zip(first, second, strict=True):
            assert (a & b).sum() / (a | b).sum() > 0.85


def test_images_without_ground_truth_are_replaced_at_the_same_size(shapes: Path) -> None:
    from graftwork_multiscale import MultiScaleBatchSampler
    from graftwork_multiscale.mmengine_parts import SCALE_KEY

    data = wrapped(
        shapes,
        {"type": "LoadAnnotations", "with_bbox": True},
        resize(),
        {"type": "FilterAnnotations", "min_gt_bbox_wh": (20, 20)},
        filter_cfg={"filter_empty_gt": True},
    )
    rejected = [
        data.dataset.pipeline(data.get_data_info(i) | {SCALE_KEY: (64, 64)}) for i in range(len(data))
    ]
    assert None in rejected
    sampler = MultiScaleBatchSampler(data, 4, base_size=96, min_size=64, max_size=128)
    for batch in sampler:
        for item in batch:
            sample = data[item]
            assert tuple(sample["inputs"].shape[1:]) == item.size
            assert len(sample["data_samples"].gt_instances)


def test_kept_ratios_fit_the_sampled_size_and_are_padded_by_the_preprocessor(shapes: Path) -> None:
    from mmdet.models import DetDataPreprocessor
    from mmengine.dataset import pseudo_collate

    from graftwork_multiscale import MultiScaleBatchSampler

    load = {"type": "LoadAnnotations", "with_bbox": True, "with_mask": True}
    data = wrapped(shapes, load, resize(keep_ratio=True))
    sampler = MultiScaleBatchSampler(
        data, 4, base_size=96, min_size=64, max_size=160, aspect_groups=True, mode="MSc-VBS"
    )
    preprocess = DetDataPreprocessor(mean=[0] * 3, std=[1] * 3, pad_mask=True, pad_size_divisor=32)
    for batch in sampler:
        packed = pseudo_collate([data[item] for item in batch])
        for image, sample in zip(packed["inputs"], packed["data_samples"], strict=True):
            height, width = image.shape[1:]
            assert max(height, width) == batch[0].size[0]
            original = sample.ori_shape[1] / sample.ori_shape[0]
            assert width / height == pytest.approx(original, rel=0.03)
        output = preprocess(packed, training=True)
        padded = tuple(output["inputs"].shape[-2:])
        assert all(side % 32 == 0 for side in padded)
        assert max(padded) == batch[0].size[0]
        for sample in output["data_samples"]:
            assert sample.gt_instances.masks.masks.shape[1:] == padded


def test_the_preset_for_mmdets_own_schedule_builds_its_data(shapes: Path) -> None:
    from mmengine.config import Config
    from mmengine.runner import Runner

    from graftwork_multiscale import config_path

    cfg = Config.fromfile(config_path("mask_rcnn_r50_fpn_vbs_1x"))
    inner = cfg.train_dataloader.dataset.dataset
    inner.update(data_root=f"{shapes}/", ann_file="train.json", data_prefix={"img": "train/"})
    inner.metainfo = {"classes": ("object",)}
    cfg.train_dataloader.update(num_workers=0, persistent_workers=False)
    wrapped(shapes)  # the default scope
    loader = Runner.build_dataloader(cfg.train_dataloader, seed=1)
    batch = next(iter(loader))
    scale = batch["data_samples"][0].metainfo["ms_scale"]
    assert all(max(image.shape[1:]) <= max(scale) for image in batch["inputs"])
    assert all(min(image.shape[1:]) <= min(scale) for image in batch["inputs"])
