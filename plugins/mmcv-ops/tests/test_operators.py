"""mmcv's own wrappers over our operators, against float64 references written out here."""

from __future__ import annotations

import math

import pytest
import torch
from mmcv import ops
from torch import Tensor
from torch.nn import functional

HALF = (torch.float16, torch.bfloat16)


def random_boxes(count: int, seed: int = 0, side: float = 40) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * side
    size = torch.rand(count, 2, generator=generator) * side / 2 + 1
    return torch.cat([corner, corner + size], 1), torch.rand(count, generator=generator)


def iou(a: list[float], b: list[float], offset: int) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0]) + offset
    height = min(a[3], b[3]) - max(a[1], b[1]) + offset
    inter = max(0.0, width) * max(0.0, height)
    areas = [(box[2] - box[0] + offset) * (box[3] - box[1] + offset) for box in (a, b)]
    return inter / (sum(areas) - inter)


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("threshold", [0.3, 0.7])
def test_nms_keeps_what_a_greedy_loop_keeps(offset: int, threshold: float) -> None:
    boxes, scores = random_boxes(60)
    kept: list[int] = []
    for i in sorted(range(60), key=lambda i: -float(scores[i])):
        if all(
            iou(boxes[i].double().tolist(), boxes[j].double().tolist(), offset) <= threshold for j in kept
        ):
            kept.append(i)
    detections, indices = ops.nms(boxes, scores, threshold, offset=offset)
    assert indices.tolist() == kept
    assert torch.equal(detections, torch.cat([boxes, scores[:, None]], 1)[kept])


def test_the_offset_decides_about_touching_boxes() -> None:
    boxes, scores = torch.tensor([[0.0, 0, 9, 9], [0, 5, 9, 14]]), torch.tensor([0.9, 0.8])
    # 5 of 15 rows overlap with the offset, 4 of 14 without
    assert len(ops.nms(boxes, scores, 0.3, offset=1)[1]) == 1
    assert len(ops.nms(boxes, scores, 0.3, offset=0)[1]) == 2


@pytest.mark.parametrize("dtype", HALF)
def test_nms_takes_half_precision(dtype: torch.dtype) -> None:
    boxes, scores = (tensor.to(dtype) for tensor in random_boxes(40))
    detections, indices = ops.nms(boxes, scores, 0.5)
    assert detections.dtype == dtype
    assert torch.equal(indices, ops.nms(boxes.double(), scores.double(), 0.5)[1])


def test_nms_of_nothing_is_nothing() -> None:
    detections, indices = ops.nms(torch.zeros(0, 4), torch.zeros(0), 0.5)
    assert detections.shape == (0, 5)
    assert indices.shape == (0,)


def test_batched_nms_keeps_classes_apart() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 10, 10]])
    scores, classes = torch.tensor([0.9, 0.8, 0.7]), torch.tensor([0, 1, 0])
    _, kept = ops.batched_nms(boxes, scores, classes, {"type": "nms", "iou_threshold": 0.5})
    assert kept.tolist() == [0, 1]


def soft_nms_reference(
    boxes: Tensor, scores: Tensor, threshold: float, sigma: float, floor: float, method: str, offset: int
) -> list[tuple[int, float]]:
    left = {i: (boxes[i].double().tolist(), float(scores[i].double())) for i in range(len(scores))}
    chosen = []
    while left:
        best = max(left, key=lambda i: left[i][1])
        box, score = left.pop(best)
        chosen.append((best, score))
        for i, (other, value) in list(left.items()):
            overlap = iou(box, other, offset)
            if method == "gaussian":
                value *= math.exp(-(overlap**2) / sigma)
            elif overlap >= threshold:
                value *= 1 - overlap if method == "linear" else 0
            left[i] = (other, value)
            if value < floor:
                del left[i]
    return chosen


@pytest.mark.parametrize("method", ["naive", "linear", "gaussian"])
@pytest.mark.parametrize("offset", [0, 1])
def test_soft_nms_equals_its_definition(method: str, offset: int) -> None:
    boxes, scores = random_boxes(50, seed=1)
    detections, indices = ops.soft_nms(
        boxes, scores, iou_threshold=0.3, sigma=0.5, min_score=0.05, method=method, offset=offset
    )
    expected = soft_nms_reference(boxes, scores, 0.3, 0.5, 0.05, method, offset)
    assert indices.tolist() == [i for i, _ in expected]
    torch.testing.assert_close(detections[:, 4].double(), torch.tensor([s for _, s in expected]).double())
    assert torch.equal(detections[:, :4], boxes[indices])


def test_soft_nms_of_nothing_is_nothing() -> None:
    detections, indices = ops.soft_nms(torch.zeros(0, 4), torch.zeros(0))
    assert detections.shape == (0, 5)
    assert indices.shape == (0,)


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("mode", ["iou", "iof"])
def test_overlaps_of_all_pairs_and_of_aligned_ones(mode: str, offset: int) -> None:
    first, second = random_boxes(7)[0], random_boxes(7, seed=2)[0]
    expected = torch.zeros(7, 7, dtype=torch.float64)
    for i in range(7):
        for j in range(7):
            a, b = first[i].double().tolist(), second[j].double().tolist()
            expected[i, j] = iou(a, b, offset)
            if mode == "iof":
                union = sum((x[2] - x[0] + offset) * (x[3] - x[1] + offset) for x in (a, b))
                share = expected[i, j]
                inter = share * union / (1 + share)
                expected[i, j] = inter / ((a[2] - a[0] + offset) * (a[3] - a[1] + offset))
    result = ops.bbox_overlaps(first, second, mode=mode, offset=offset)
    torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-6)
    aligned = ops.bbox_overlaps(first, second, mode=mode, aligned=True, offset=offset)
    torch.testing.assert_close(aligned.double(), expected.diagonal(), rtol=1e-5, atol=1e-6)


def bilinear(feature: Tensor, y: float, x: float) -> Tensor:
    """Sample a (C, H, W) map as RoI align does: nothing beyond one pixel outside, clamped at the border."""
    height, width = feature.shape[1:]
    if y < -1 or y > height or x < -1 or x > width:
        return feature.new_zeros(len(feature))
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    dy, dx = y - top, x - left
    return (
        feature[:, top, left] * (1 - dy) * (1 - dx)
        + feature[:, top, right] * (1 - dy) * dx
        + feature[:, bottom, left] * dy * (1 - dx)
        + feature[:, bottom, right] * dy * dx
    )


def roi_align_reference(
    features: Tensor, rois: Tensor, size: int, scale: float, ratio: int, aligned: bool
) -> Tensor:
    rows = []
    for roi in rois.double():
        shift = 0.5 if aligned else 0.0
        x1, y1, x2, y2 = (float(c) * scale - shift for c in roi[1:])
        width, height = x2 - x1, y2 - y1
        if not aligned:
            width, height = max(width, 1.0), max(height, 1.0)
        ny = ratio or max(1, math.ceil(height / size))
        nx = ratio or max(1, math.ceil(width / size))
        bins = []
        for i in range(size):
            for j in range(size):
                samples = [
                    bilinear(
                        features[int(roi[0])],
                        y1 + (i + (a + 0.5) / ny) * height / size,
                        x1 + (j + (b + 0.5) / nx) * width / size,
                    )
                    for a in range(ny)
                    for b in range(nx)
                ]
                bins.append(torch.stack(samples).mean(0))
        rows.append(torch.stack(bins, 1).reshape(-1, size, size))
    return torch.stack(rows)


@pytest.fixture
def features_and_rois() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    features = torch.rand(2, 3, 9, 11, generator=generator)
    boxes = random_boxes(5, side=30)[0]
    return features, torch.cat([torch.tensor([[0.0], [1], [0], [1], [1]]), boxes], 1)


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("ratio", [0, 2])
def test_roi_align_equals_bilinear_averages(
    features_and_rois: tuple[Tensor, Tensor], aligned: bool, ratio: int
) -> None:
    features, rois = features_and_rois
    result = ops.roi_align(features, rois, 3, 0.25, ratio, "avg", aligned)
    expected = roi_align_reference(features.double(), rois, 3, 0.25, ratio, aligned)
    torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-6)


def test_roi_align_has_the_gradient_of_its_reference(features_and_rois: tuple[Tensor, Tensor]) -> None:
    features, rois = features_and_rois
    features.requires_grad_()
    weight = torch.rand(5, 3, 3, 3, generator=torch.Generator().manual_seed(1))
    (ops.roi_align(features, rois, 3, 0.25, 2, "avg", True) * weight).sum().backward()
    exact = features.detach().double().requires_grad_()
    (roi_align_reference(exact, rois, 3, 0.25, 2, True) * weight).sum().backward()
    torch.testing.assert_close(features.grad.double(), exact.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", HALF)
def test_roi_align_takes_half_precision_forward_and_backward(
    features_and_rois: tuple[Tensor, Tensor], dtype: torch.dtype
) -> None:
    features, rois = features_and_rois
    features = features.to(dtype).requires_grad_()
    result = ops.roi_align(features, rois, 3, 0.25, 2, "avg", True)  # float32 regions, as detectors have them
    assert result.dtype == dtype
    exact = features.detach().double().requires_grad_()
    expected = roi_align_reference(exact, rois, 3, 0.25, 2, True)
    torch.testing.assert_close(result.double(), expected, rtol=1e-2, atol=1e-2)
    result.sum().backward()
    expected.sum().backward()
    assert features.grad.dtype == dtype
    torch.testing.assert_close(features.grad.double(), exact.grad, rtol=1e-2, atol=1e-2)


def test_roi_align_of_no_regions_keeps_its_shape() -> None:
    features = torch.rand(1, 3, 8, 8, requires_grad=True)
    result = ops.roi_align(features, torch.zeros(0, 5), 7, 1.0, 0, "avg", True)
    assert result.shape == (0, 3, 7, 7)
    result.sum().backward()
    assert torch.equal(features.grad, torch.zeros_like(features))


def test_roi_align_by_maximum_is_refused_with_the_way_out() -> None:
    with pytest.raises(NotImplementedError, match="pool_mode='avg'"):
        ops.roi_align(torch.rand(1, 1, 4, 4), torch.tensor([[0.0, 0, 0, 3, 3]]), 2, 1.0, 0, "max", True)


def focal_reference(
    logits: Tensor, target: Tensor, weight: Tensor | None, gamma: float, alpha: float
) -> Tensor:
    p = torch.sigmoid(logits.double())
    hit = torch.nn.functional.one_hot(target, logits.shape[1] + 1)[:, :-1].double()
    loss = -alpha * hit * (1 - p) ** gamma * torch.log(p)
    loss = loss - (1 - alpha) * (1 - hit) * p**gamma * torch.log(1 - p)
    if weight is not None:
        loss = loss * torch.cat([weight.double(), torch.ones(1).double()])[target][:, None]
    return loss


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("gamma", [0.0, 2.0, 1.5])
def test_sigmoid_focal_loss_and_its_gradient(weighted: bool, gamma: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(20, 4, generator=generator) * 3).requires_grad_()
    target = torch.randint(0, 5, (20,), generator=generator)  # 4 is the background
    weight = torch.rand(4, generator=generator) if weighted else None
    loss = ops.sigmoid_focal_loss(logits, target, gamma, 0.25, weight, "none")
    exact = logits.detach().double().requires_grad_()
    expected = focal_reference(exact, target, weight, gamma, 0.25)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    ops.sigmoid_focal_loss(logits, target, gamma, 0.25, weight, "mean").backward()
    (expected.sum() / 20).backward()
    torch.testing.assert_close(logits.grad.double(), exact.grad, rtol=1e-5, atol=1e-6)


def test_sigmoid_focal_loss_stays_finite_for_certain_predictions() -> None:
    logits = torch.tensor([[200.0, -200.0], [-200.0, 200.0]], requires_grad=True)
    loss = ops.sigmoid_focal_loss(logits, torch.tensor([0, 0]), 2.0, 0.25, None, "sum")
    loss.backward()
    assert loss.item() == pytest.approx(0.25 * 200 + 0.75 * 200)
    assert torch.isfinite(logits.grad).all()


def test_masked_convolution_equals_a_convolution_at_the_chosen_positions() -> None:
    generator = torch.Generator().manual_seed(0)
    layer = ops.MaskedConv2d(3, 5, (3, 5), padding=(1, 2))
    image = torch.rand(1, 3, 8, 9, generator=generator)
    mask = torch.rand(1, 8, 9, generator=generator) > 0.6
    result = layer(image, mask)
    full = functional.conv2d(image.double(), layer.weight.double(), layer.bias.double(), padding=(1, 2))
    torch.testing.assert_close(result.double(), full * mask, rtol=1e-5, atol=1e-6)
    assert torch.equal(layer(image, torch.zeros(1, 8, 9)), torch.zeros(1, 5, 8, 9))


def deform_reference(
    image: Tensor, offset: Tensor, weight: Tensor, stride: int, padding: int, groups: int, mask: Tensor | None
) -> Tensor:
    """Deformable convolution sample by sample; one offset group per call of the inner loop."""
    batch, channels, _, _ = image.shape
    out_channels, per_group, kh, kw = weight.shape
    offset_groups = offset.shape[1] // (2 * kh * kw)
    rows, columns = offset.shape[2:]
    patches = image.new_zeros(batch, channels, kh * kw, rows, columns)
    for b in range(batch):
        for g in range(offset_groups):
            part = slice(g * channels // offset_groups, (g + 1) * channels // offset_groups)
            for k in range(kh * kw):
                for i in range(rows):
                    for j in range(columns):
                        dy, dx = offset[b, 2 * (g * kh * kw + k) :, i, j][:2]
                        y = i * stride - padding + k // kw + float(dy)
                        x = j * stride - padding + k % kw + float(dx)
                        value = zero_outside(image[b, part], y, x)
                        if mask is not None:
                            value = value * mask[b, g * kh * kw + k, i, j]
                        patches[b, part, k, i, j] = value
    outputs = []
    for g in range(groups):
        part = patches[:, g * per_group : (g + 1) * per_group]
        kernel = weight[g * out_channels // groups : (g + 1) * out_channels // groups].flatten(2)
        outputs.append(torch.einsum("bckij,ock->boij", part, kernel))
    return torch.cat(outputs, 1)


def zero_outside(feature: Tensor, y: float, x: float) -> Tensor:
    total = feature.new_zeros(len(feature))
    for i in (math.floor(y), math.floor(y) + 1):
        for j in (math.floor(x), math.floor(x) + 1):
            if 0 <= i < feature.shape[1] and 0 <= j < feature.shape[2]:
                total = total + feature[:, i, j] * (1 - abs(y - i)) * (1 - abs(x - j))
    return total


@pytest.mark.parametrize(("groups", "offset_groups"), [(1, 1), (2, 1), (1, 2)])
def test_deformable_convolution_equals_displaced_samples(groups: int, offset_groups: int) -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(2, 4, 6, 5, generator=generator)
    weight = torch.randn(6, 4 // groups, 3, 3, generator=generator)
    offset = torch.randn(2, offset_groups * 18, 3, 3, generator=generator)
    result = ops.deform_conv2d(image, offset, weight, 2, 1, 1, groups, offset_groups)
    expected = deform_reference(image.double(), offset.double(), weight.double(), 2, 1, groups, None)
    torch.testing.assert_close(result.double(), expected, rtol=1e-4, atol=1e-5)


def test_modulated_deformable_convolution_equals_weighted_displaced_samples() -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 4, 6, 5, generator=generator)
    weight, bias = torch.randn(2, 4, 3, 3, generator=generator), torch.randn(2, generator=generator)
    offset = torch.randn(1, 36, 6, 5, generator=generator)
    mask = torch.rand(1, 18, 6, 5, generator=generator)
    result = ops.modulated_deform_conv2d(image, offset, mask, weight, bias, 1, 1, 1, 1, 2)
    expected = deform_reference(image.double(), offset.double(), weight.double(), 1, 1, 1, mask.double())
    torch.testing.assert_close(result.double(), expected + bias.double()[:, None, None], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("modulated", [False, True])
def test_deformable_gradients_agree_with_finite_differences(modulated: bool) -> None:
    generator = torch.Generator().manual_seed(0)

    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    image, weight, offset = leaf(1, 2, 2, 3), leaf(1, 2, 3, 3), leaf(1, 18, 2, 3)
    if modulated:
        mask, bias = leaf(1, 9, 2, 3), leaf(1)
        arguments = (image, offset, mask, weight, bias)
        assert torch.autograd.gradcheck(
            lambda *tensors: ops.modulated_deform_conv2d(*tensors, 1, 1, 1, 1, 1), arguments
        )
    else:
        assert torch.autograd.gradcheck(
            lambda *tensors: ops.deform_conv2d(*tensors, 1, 1, 1, 1, 1), (image, offset, weight)
        )


@pytest.mark.parametrize("dtype", HALF)
def test_deformable_convolution_takes_half_precision(dtype: torch.dtype) -> None:
    layer = ops.DeformConv2dPack(4, 4, 3, padding=1).to(dtype)
    image = torch.rand(1, 4, 6, 6, dtype=dtype, requires_grad=True)
    result = layer(image)
    assert result.dtype == dtype
    result.sum().backward()
    assert image.grad.dtype == layer.weight.grad.dtype == dtype


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
def test_cuda_agrees_with_the_cpu(dtype: torch.dtype, features_and_rois: tuple[Tensor, Tensor]) -> None:
    features, rois = features_and_rois
    boxes, scores = random_boxes(200)
    on_cpu = ops.nms(boxes.to(dtype), scores.to(dtype), 0.5)[1]
    assert torch.equal(ops.nms(boxes.to(dtype).cuda(), scores.to(dtype).cuda(), 0.5)[1].cpu(), on_cpu)
    results = []
    for device in ("cpu", "cuda"):
        leaf = features.to(device, dtype).requires_grad_()
        pooled = ops.roi_align(leaf, rois.to(device), 3, 0.25, 0, "avg", True)
        pooled.float().square().sum().backward()
        results.append((pooled.detach().float().cpu(), leaf.grad.float().cpu()))
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    for cpu, cuda in zip(*results, strict=True):
        torch.testing.assert_close(cuda, cpu, rtol=tolerance, atol=tolerance)


def test_operators_that_are_not_served_are_named_with_the_way_to_get_them() -> None:
    from mmcv import _ext

    assert hasattr(_ext, "carafe_forward")  # mmcv asserts this of every operator at import
    with pytest.raises(NotImplementedError, match=r"'carafe_forward' needs full mmcv.*pip install") as caught:
        _ext.carafe_forward(torch.zeros(1))
    assert "mmcv==2.1.0" in str(caught.value)
    assert not hasattr(_ext, "__path__")


def test_mmcv_reports_its_environment() -> None:
    from mmcv.utils import collect_env

    assert "graftwork-mmcv-ops" in collect_env()["MMCV Compiler"]
