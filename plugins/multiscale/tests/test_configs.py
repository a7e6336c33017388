"""The shipped configurations, inherited in both of mmengine's styles."""

from __future__ import annotations

from pathlib import Path

import pytest

from graftwork_multiscale.configs import FOLDER, config_names, config_path

pytest.importorskip("mmdet", reason="mmdet is not installed")
from mmengine.config import Config

PRESETS = [name for name in config_names() if not name.endswith("_1x")]


@pytest.fixture
def installed_as_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """mmengine looks for a package beside its metadata, where an editable installation has none."""
    from mmengine.config import config

    found = config.get_installed_path
    monkeypatch.setattr(
        config,
        "get_installed_path",
        lambda package: str(FOLDER.parent) if package == "graftwork_multiscale" else found(package),
    )


def test_there_are_presets_for_two_backbones_and_three_modes_and_a_small_model() -> None:
    for model in ("r50_fpn", "r101_fpn", "small"):
        for mode in ("ssc", "vbs", "vbswc"):
            assert f"mask_rcnn_{model}_{mode}" in PRESETS


@pytest.mark.parametrize("name", PRESETS)
def test_text_and_python_style_say_the_same(name: str) -> None:
    text = Config.fromfile(config_path(name))
    lazy = Config.fromfile(str(FOLDER / "lazy" / f"{name}.py"))
    assert text.to_dict() == lazy.to_dict()
    sampler = text.train_dataloader.batch_sampler
    assert sampler.type == "graftwork.MultiScaleBatchSampler"
    assert sampler.get("epochs", text.train_cfg.max_epochs) == text.train_cfg.max_epochs


@pytest.mark.parametrize("name", config_names())
def test_samplers_of_all_presets_can_be_built(name: str) -> None:
    from mmengine.registry import DATA_SAMPLERS

    cfg = Config.fromfile(config_path(name))
    options = dict(cfg.train_dataloader.batch_sampler)
    sampler = DATA_SAMPLERS.build(
        options, default_args={"sampler": range(1000), "batch_size": cfg.train_dataloader.batch_size}
    )
    assert (
        sampler.schedule.mode.lower()
        .replace("-", "")
        .endswith({"ssc": "fbs", "vbs": "vbs", "vbswc": "vbswc", "1x": "vbs"}[name.rsplit("_", 1)[1]])
    )


def test_the_detection_preset_has_the_published_table() -> None:
    from graftwork_multiscale.cli import _parser, _read

    schedule = _read(_parser().parse_args(["plan", "mask_rcnn_r50_fpn_vbs"]))[0]
    table = {512: 16, 608: 11, 672: 9, 768: 7, 864: 5, 928: 4, 1024: 4, 1120: 3, 1184: 2, 1280: 2}
    assert {scale.height: scale.batch for scale in schedule.scales} == table


def test_a_text_config_inherits(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        '_base_ = __import__("graftwork_multiscale").config_path("mask_rcnn_r101_fpn_vbswc")\n'
        "train_dataloader = dict(batch_sampler=dict(max_size=1408))\n"
    )
    cfg = Config.fromfile(tmp_path / "mine.py")
    assert cfg.train_dataloader.batch_sampler.max_size == 1408
    assert cfg.train_dataloader.batch_sampler.curriculum == "grow_max"
    assert cfg.model.backbone.depth == 101
    cfg.merge_from_dict({"train_dataloader.batch_sampler.min_size": 640})  # --cfg-options
    assert cfg.train_dataloader.batch_sampler.min_size == 640


@pytest.mark.usefixtures("installed_as_a_folder")
def test_a_python_config_inherits(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from mmengine.config import read_base\n\n"
        "with read_base():\n"
        "    from graftwork_multiscale.configs.lazy.mask_rcnn_r101_fpn_vbs import *\n\n"
        "train_dataloader['batch_sampler'].update(max_size=1408)\n"
    )
    cfg = Config.fromfile(tmp_path / "mine.py")
    assert cfg.train_dataloader.batch_sampler.max_size == 1408
    assert cfg.model.backbone.depth == 101


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(FileNotFoundError, match="mask_rcnn_r50_fpn_vbs"):
        config_path("retinanet")
