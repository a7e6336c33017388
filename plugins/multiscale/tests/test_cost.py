"""What a plan will cost: closed forms, and FLOPs that torch's counter finds in real networks."""

from __future__ import annotations

from pathlib import Path

import pytest

from graftwork_multiscale import Schedule, make_schedule, plan_cost
from graftwork_multiscale.cost import head_warning, padding_fill

CLASSIFICATION = {"base_size": 224, "base_batch": 128, "min_size": 128, "max_size": 320}


def detection(batch: int = 4) -> Schedule:
    return make_schedule(base_size=1024, base_batch=batch, min_size=512, max_size=1280, max_scales=10)


@pytest.mark.parametrize(
    ("options", "updates", "pixels"),
    [
        ({**CLASSIFICATION, "max_scales": 10}, 24.1, 24.4),
        (CLASSIFICATION, 23.2, 23.4),
        ({"base_size": 256, "base_batch": 128, "min_size": 160, "max_size": 320}, 25.9, 26.2),
        ({**CLASSIFICATION, "min_size": 160}, 2.7, 3.0),
    ],
)
def test_savings_of_the_published_tables(options: dict, updates: float, pixels: float) -> None:
    cost = plan_cost(make_schedule(**options))
    assert 100 * (1 - cost.updates_ratio) == pytest.approx(updates, abs=0.06)
    assert 100 * (1 - cost.flops_ratio) == pytest.approx(pixels, abs=0.3)


@pytest.mark.parametrize(
    ("batch", "updates", "pixels"), [(4, 36.5, 43.0), (2, 31.0, 43.7), (8, 38.5, 41.3), (4000, 40.4, 40.4)]
)
def test_detection_saves_a_third_of_the_updates(batch: int, updates: float, pixels: float) -> None:
    cost = plan_cost(detection(batch))
    assert 100 * (1 - cost.updates_ratio) == pytest.approx(updates, abs=0.06)
    assert 100 * (1 - cost.flops_ratio) == pytest.approx(pixels, abs=0.06)


def test_images_are_mostly_seen_small() -> None:
    shares = plan_cost(make_schedule(**CLASSIFICATION, max_scales=10)).image_shares
    assert [round(100 * share, 1) for share in shares] == [33.2, 21.2, 14.7, 10.8, 8.3, 6.5, 5.2]
    shares = plan_cost(detection()).image_shares
    assert [round(100 * share, 1) for share in shares] == [
        25.4,
        17.5,
        14.3,
        11.1,
        7.9,
        6.3,
        6.3,
        4.8,
        3.2,
        3.2,
    ]


def test_equal_shares_of_images_save_nothing() -> None:
    cost = plan_cost(make_schedule(**CLASSIFICATION, max_scales=10, weights="images"))
    assert cost.flops_ratio == pytest.approx(1.08, abs=0.01)


def test_a_fixed_batch_costs_more_than_one_scale() -> None:
    cost = plan_cost(make_schedule(**CLASSIFICATION, max_scales=10, mode="MSc-FBS"))
    assert cost.updates_ratio == pytest.approx(1)
    assert cost.flops_ratio == pytest.approx(1.082, abs=0.002)


def test_one_scale_costs_what_one_scale_costs() -> None:
    cost = plan_cost(make_schedule(**CLASSIFICATION, mode="SSc-FBS"), samples=1000)
    assert cost.updates_ratio == cost.flops_ratio == 1
    assert cost.image_shares == (1,)
    assert cost.single_scale_steps == 1000 / 128


@pytest.mark.parametrize(
    ("options", "samples", "expected"),
    [
        ({**CLASSIFICATION, "max_scales": 10}, 160146, 949.9),
        (
            {"base_size": 1024, "base_batch": 4, "min_size": 512, "max_size": 1280, "max_scales": 10},
            14659,
            2327.6,
        ),
        (
            {"base_size": 1024, "base_batch": 2, "min_size": 512, "max_size": 1280, "max_scales": 10},
            14659,
            5055.6,
        ),
    ],
)
def test_expected_iterations_follow_the_closed_form(options: dict, samples: int, expected: float) -> None:
    assert plan_cost(make_schedule(**options), samples=samples).steps == pytest.approx(expected, abs=0.2)


def test_affine_batches_trade_savings_for_even_steps() -> None:
    head = {"type": "affine", "fixed": 133.8, "at_base": 325.8}

    def cost(height: int, width: int) -> float:
        return 133.8 + 325.8 * height * width / 1024**2

    even = make_schedule(
        base_size=1024, base_batch=4, min_size=512, max_size=1280, max_scales=10, cost_model=head
    )
    result = plan_cost(even, image_cost=cost)
    assert max(result.step_costs) <= 1 + 1e-9
    assert 100 * (1 - result.flops_ratio) == pytest.approx(23.5, abs=0.1)
    assert 100 * (1 - result.updates_ratio) == pytest.approx(14.9, abs=0.1)
    assert head_warning(result, even.scales, even.base) is None
    by_area = plan_cost(detection(), image_cost=cost)
    assert by_area.step_costs[0] == pytest.approx(1.87, abs=0.01)
    assert "1.87 times a base step and holds 4.0 times" in str(
        head_warning(by_area, detection().scales, detection().base)
    )


def test_padding_is_counted_for_kept_ratios() -> None:
    scales = detection().scales
    assert padding_fill(scales, [4 / 3]) == pytest.approx(0.75)
    assert padding_fill(scales, [3 / 4]) == pytest.approx(0.75)
    assert padding_fill(scales, [1.0]) == 1


@pytest.mark.parametrize(("name", "giga_macs"), [("resnet50", 4.089), ("resnet101", 7.801)])
def test_flops_of_resnets_agree_with_the_published_saving(name: str, giga_macs: float) -> None:
    models = pytest.importorskip("torchvision.models", reason="torchvision is not installed")
    from graftwork_multiscale.flops import model_flops

    cost = model_flops(getattr(models, name))
    assert cost(224, 224) / 2e9 == pytest.approx(giga_macs, abs=5e-4)
    vbs = plan_cost(make_schedule(**CLASSIFICATION, max_scales=10), image_cost=cost)
    assert vbs.flops_ratio == pytest.approx(0.7564, abs=5e-4)
    grown = make_schedule(**CLASSIFICATION, max_scales=10, mode="MSc-VBSWC", epochs=600)
    assert 100 * (1 - plan_cost(grown, image_cost=cost).flops_ratio) == pytest.approx(33.3, abs=0.5)


@pytest.mark.parametrize(
    ("name", "most", "few"),
    [
        ("mask-rcnn_r50_fpn_1x_coco", 31.1, 39.4),
        pytest.param("mask-rcnn_r101_fpn_1x_coco", 33.7, 40.3, marks=pytest.mark.slow),
    ],
)
@pytest.mark.usefixtures("mmcv_operators")
def test_flops_of_mmdets_own_mask_rcnn(name: str, most: float, few: float) -> None:
    import mmdet
    from mmengine.config import Config

    from graftwork_multiscale.flops import DetectorFlops

    folder = Path(mmdet.__file__).parent / ".mim" / "configs" / "mask_rcnn"
    parts = DetectorFlops(Config.fromfile(folder / f"{name}.py").model)
    assert (parts.rois, parts.most_positives) == (512, 128)
    saved = {
        positives: 100 * (1 - plan_cost(detection(), image_cost=parts.whole(positives)).flops_ratio)
        for positives in (128, 20)
    }
    assert saved[128] == pytest.approx(most, abs=0.1)
    assert saved[20] == pytest.approx(few, abs=0.1)
    assert 28 < saved[128] < saved[20] < 43
