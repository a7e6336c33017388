"""One training of the small Mask R-CNN, timed step by step, resumable: what demo and benchmark share."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner, TestLoop

from graftwork_multiscale.configs import config_path
from graftwork_multiscale.mmengine_parts import SCALE_KEY


@dataclass(frozen=True)
class StepRecord:
    """One training step as it was measured.

    Args:
        iteration: Counted from 0 over the whole training.
        side: Height of the images, in pixels.
        images: How many.
        seconds: From the end of the step before to the end of this one.
        data_seconds: Of which waiting for data.
        loss: Sum of all losses.
    """

    iteration: int
    side: int
    images: int
    seconds: float
    data_seconds: float
    loss: float


class StepLog(Hook):  # type: ignore[misc]  # mmengine is untyped
    """Writes a line per step, so that an interrupted run keeps its times.

    Args:
        path: File of JSON lines; lines that a resumed run repeats are dropped.
    """

    priority = "LOWEST"

    def __init__(self, path: Path) -> None:
        self.path = path
        self._mark = self._loaded = 0.0

    def before_train(self, runner: Any) -> None:
        """Drop what will be trained again."""
        kept = [record for record in read_steps(self.path) if record.iteration < runner.iter]
        self.path.write_text("".join(json.dumps(vars(record)) + "\n" for record in kept), encoding="utf-8")

    def before_train_epoch(self, runner: Any) -> None:
        """Start the clock; validation between epochs is not training."""
        self._mark = time.perf_counter()

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Note when the data was there."""
        self._loaded = time.perf_counter()

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Write the line of the step."""
        now = time.perf_counter()
        record = StepRecord(
            iteration=runner.iter,
            side=int(data_batch["data_samples"][0].metainfo[SCALE_KEY][1]),
            images=len(data_batch["inputs"]),
            seconds=now - self._mark,
            data_seconds=self._loaded - self._mark,
            loss=float(outputs["loss"]),
        )
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(vars(record)) + "\n")
        self._mark = time.perf_counter()


def read_steps(path: Path) -> list[StepRecord]:
    """Return the steps in a log; none if there is no file."""
    if not path.exists():
        return []
    return [StepRecord(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def small_config(
    mode: str,
    data: Path,
    folder: Path,
    *,
    epochs: int,
    seed: int,
    annotations: Path | None = None,
    changes: Mapping[str, Any] | None = None,
) -> Config:
    """Return the shipped small preset for a data set and a length.

    Args:
        mode: ``"ssc"``, ``"vbs"`` or ``"vbswc"``.
        data: Folder with the images, in ``train`` and ``val``.
        folder: Where checkpoints go.
        epochs: Length of the training.
        seed: Of weights, order and shapes.
        annotations: Folder with ``train.json`` and ``val.json``; that of the images when None.
        changes: Further changes, dotted.
    """
    config = Config.fromfile(config_path(f"mask_rcnn_small_{mode}"))
    annotations = (annotations or data).resolve()
    for loader in (
        config.train_dataloader.dataset.dataset,
        config.val_dataloader.dataset,
        config.test_dataloader.dataset,
    ):
        loader.update(data_root=f"{data.resolve()}/", ann_file=str(annotations / loader.ann_file))
    config.merge_from_dict(
        {
            "val_evaluator.ann_file": str(annotations / "val.json"),
            "test_evaluator.ann_file": str(annotations / "val.json"),
            "train_cfg.max_epochs": epochs,
            "train_cfg.val_interval": epochs + 1,  # tested once, after the clock has stopped
            "default_hooks.checkpoint": {"interval": max(1, epochs // 4), "max_keep_ckpts": 1},
            "default_hooks.logger": {"type": "LoggerHook", "interval": 10**6, "log_metric_by_epoch": True},
            "work_dir": str(folder),
            "experiment_name": f"{folder.name}-{seed}",
            "randomness": {"seed": seed},
            "log_level": "ERROR",
            "resume": True,
        }
    )
    config.param_scheduler[1].update(end=epochs, T_max=epochs)
    if mode == "vbswc":
        config.train_dataloader.batch_sampler.epochs = epochs
    config.merge_from_dict(dict(changes or {}))
    return config


def train(config: Config) -> tuple[Runner, list[StepRecord]]:
    """Train, or go on with what was begun in the same folder.

    Returns:
        The runner and all steps, those before an interruption included.
    """
    log = Path(config.work_dir) / "steps.jsonl"
    log.parent.mkdir(parents=True, exist_ok=True)
    with quiet(log.with_name("output.txt")):
        runner = Runner.from_cfg(config)
        runner.register_hook(StepLog(log))
        runner.train()
    return runner, read_steps(log)


def average_precision(runner: Runner, split: str) -> dict[str, float]:
    """Return COCO's box and mask AP on a split, in percent.

    Args:
        runner: With the trained model, from :func:`train`.
        split: ``"train"`` or ``"val"``.
    """
    loader = Config(dict(runner.cfg.test_dataloader))
    annotations = str(Path(loader.dataset.ann_file).with_name(f"{split}.json"))
    loader.merge_from_dict({"dataset.ann_file": annotations, "dataset.data_prefix": {"img": f"{split}/"}})
    evaluator = {**runner.cfg.test_evaluator, "ann_file": annotations}
    with quiet(Path(runner.work_dir) / "output.txt"):
        dataloader = Runner.build_dataloader(loader._cfg_dict)
        metrics = TestLoop(runner, dataloader, runner.build_evaluator(evaluator)).run()
    wanted = ("bbox_mAP", "bbox_mAP_50", "segm_mAP", "segm_mAP_50")
    return {name: 100 * float(metrics[f"coco/{name}"]) for name in wanted}


@contextlib.contextmanager
def quiet(path: Path) -> Iterator[None]:
    """Send what a block prints to a file; pycocotools prints a page per evaluation."""
    with (
        path.open("a", encoding="utf-8") as file,
        contextlib.redirect_stdout(file),
        contextlib.redirect_stderr(file),
    ):
        yield
