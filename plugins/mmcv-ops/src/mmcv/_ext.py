"""mmcv's compiled operators, as far as torchvision or a few lines of torch give the same result.

mmcv-lite ships every Python wrapper of full mmcv but not the extension module that they load, and full mmcv
has no binary wheel for current torch. This module takes the extension's place beside mmcv-lite. A compiled
mmcv wins: Python imports an extension module before a ``.py`` file of the same name, so beside it this file
is inert.

The signatures are those that mmcv's wrappers call, in-place outputs included. torchvision wants all arguments
in one type and has no half-precision kernels on the CPU, so lower precision is computed in float32 and cast
back. Any other operator can be looked up, as mmcv does at import, and raises when it is called.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch
import torchvision
from torch import Tensor
from torch.nn import functional

SERVED = (
    "bbox_overlaps, deform_conv, masked_col2im, masked_im2col, modulated_deform_conv, nms, roi_align, "
    "sigmoid_focal_loss, softnms"
)
INSTALL_FULL_MMCV = (
    "pip uninstall -y mmcv-lite graftwork-mmcv-ops; pip install 'setuptools<81' wheel ninja psutil "
    "packaging; "
    "MAX_JOBS=2 pip install --no-build-isolation mmcv==2.1.0"
)


def __getattr__(name: str) -> Callable[..., NoReturn]:
    if name.startswith("__"):
        raise AttributeError(f"module 'mmcv._ext' has no attribute {name!r}")

    def refuse(*args: object, **kwargs: object) -> NoReturn:
        raise NotImplementedError(
            f"mmcv's operator {name!r} needs full mmcv; graftwork-mmcv-ops serves only {SERVED}. Full mmcv "
            "is "
            f"compiled in about 20 minutes with: {INSTALL_FULL_MMCV}"
        )

    refuse.__name__ = name
    return refuse


def get_compiler_version() -> str:
    """Say what serves the operators, where mmcv names the compiler that built them."""
    return f"none: torchvision {torchvision.__version__} through graftwork-mmcv-ops"


def get_compiling_cuda_version() -> str:
    """Return the CUDA version of torchvision's operators."""
    return torch.version.cuda or "not available"


def _compute(*tensors: Tensor) -> list[Tensor]:
    """Bring tensors to one type that every kernel has: float64 if any is, else float32."""
    double = any(tensor.dtype == torch.float64 for tensor in tensors)
    return [tensor.to(torch.float64 if double else torch.float32).contiguous() for tensor in tensors]


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Return the positions of the boxes that non-maximum suppression keeps, best first.

    Args:
        boxes: (N, 4), corners x1, y1, x2, y2.
        scores: (N,).
        iou_threshold: Boxes that overlap a better one by more are dropped.
        offset: 1 where x2 and y2 are the last pixel inside, so that a width is x2 - x1 + 1; else 0.
    """
    boxes, scores = _compute(boxes, scores)
    if offset:
        boxes = boxes + boxes.new_tensor([0, 0, offset, offset])
    return torch.ops.torchvision.nms(boxes, scores, float(iou_threshold))


def _overlaps(first: Tensor, second: Tensor, offset: int, *, over_first: bool = False) -> Tensor:
    """Return intersection over union, or over the first box, of broadcast (..., 4) boxes."""
    low = torch.maximum(first[..., :2], second[..., :2])
    high = torch.minimum(first[..., 2:], second[..., 2:])
    intersection = (high - low + offset).clamp(min=0).prod(-1)
    area = (first[..., 2:] - first[..., :2] + offset).prod(-1)
    if not over_first:
        area = area + (second[..., 2:] - second[..., :2] + offset).prod(-1) - intersection
    return intersection / area.clamp(min=torch.finfo(area.dtype).tiny)


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Lower the scores of boxes that overlap a better one, instead of dropping them.

    Args:
        boxes: (N, 4).
        scores: (N,).
        dets: (N, 5), gets the boxes with their new scores, in the order they were chosen.
        iou_threshold: Overlap from which methods 0 and 1 act.
        sigma: Width of method 2.
        min_score: Boxes whose score falls below are dropped.
        method: 0 drops, 1 multiplies by 1 - IoU, 2 by exp(-IoU^2 / sigma).
        offset: As in :func:`nms`.

    Returns:
        Positions of the K boxes that remain; the first K rows of `dets` are theirs.
    """
    left, values = _compute(boxes, scores)
    positions = torch.arange(len(values), device=values.device)
    kept: list[Tensor] = []
    while len(values):
        best = int(values.argmax())
        dets[len(kept), :4] = left[best].to(dets.dtype)
        dets[len(kept), 4] = values[best].to(dets.dtype)
        kept.append(positions[best])
        overlap = _overlaps(left[best], left, offset)
        if method == 2:
            weight = torch.exp(-(overlap**2) / sigma)
        else:
            reduced = torch.zeros_like(overlap) if method == 0 else 1 - overlap
            weight = torch.where(overlap >= iou_threshold, reduced, torch.ones_like(overlap))
        values = values * weight
        remains = values >= min_score
        remains[best] = False
        left, values, positions = left[remains], values[remains], positions[remains]
    return torch.stack(kept) if kept else positions


def bbox_overlaps(
    bboxes1: Tensor, bboxes2: Tensor, ious: Tensor, mode: int, aligned: bool, offset: int
) -> None:
    """Write the overlaps of all pairs of boxes, or of aligned pairs, into `ious`.

    Args:
        bboxes1: (M, 4).
        bboxes2: (N, 4).
        ious: (M, N), or (M,) for aligned pairs.
        mode: 0 over the union, 1 over the first box.
        aligned: Compare the i-th with the i-th only.
        offset: As in :func:`nms`.
    """
    first, second = _compute(bboxes1, bboxes2)
    if not aligned:
        first, second = first[:, None], second[None]
    ious.copy_(_overlaps(first, second, offset, over_first=mode == 1))


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Pool every region of interest to a fixed grid, into `output`.

    Args:
        input: (B, C, H, W).
        rois: (K, 5), image number and corners.
        output: (K, C, aligned_height, aligned_width).
        argmax_y: Unused by average pooling, as `argmax_x`.
        argmax_x: Unused.
        aligned_height: Rows of the grid.
        aligned_width: Columns of the grid.
        spatial_scale: Feature pixels per image pixel.
        sampling_ratio: Samples per bin and axis; 0 takes as many as the bin has pixels.
        pool_mode: 1, average. 0, maximum, has no counterpart in torchvision.
        aligned: Shift coordinates by half a pixel.
    """
    _require_average(pool_mode)
    features, regions = _compute(input, rois)
    pooled = torch.ops.torchvision.roi_align(
        features, regions, spatial_scale, aligned_height, aligned_width, sampling_ratio, aligned
    )
    output.copy_(pooled)


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Write the gradient of :func:`roi_align_forward` with respect to its input into `grad_input`."""
    _require_average(pool_mode)
    gradient, regions = _compute(grad_output, rois)
    grad_input.copy_(
        torch.ops.torchvision._roi_align_backward(
            gradient,
            regions,
            spatial_scale,
            aligned_height,
            aligned_width,
            *grad_input.shape,
            sampling_ratio,
            aligned,
        )
    )


def _require_average(pool_mode: int) -> None:
    if pool_mode != 1:
        raise NotImplementedError(
            "roi_align with pool_mode='max' needs full mmcv; torchvision has average pooling only. Use "
            f"pool_mode='avg', or: {INSTALL_FULL_MMCV}"
        )


def _focal_terms(input: Tensor, target: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits, which of them are the target class, and the weight of each row."""
    (logits,) = _compute(input)
    positive = functional.one_hot(target, logits.shape[1] + 1)[:, :-1].bool()
    if not weight.numel():
        return logits, positive, logits.new_ones(1, 1)
    # the label one past the last class is the background, which has no weight of its own
    return logits, positive, functional.pad(weight.to(logits.dtype), (0, 1), value=1.0)[target][:, None]


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Write -alpha (1-p)^gamma log p, or -(1-alpha) p^gamma log(1-p) off the target, into `output`.

    Args:
        input: (N, C) logits.
        target: (N,) classes; C means background.
        weight: (C,) weight of the row's target class, or empty.
        output: (N, C).
        gamma: Focus on hard examples.
        alpha: Share of the target class.

    Note:
        The compiled operator reads past the end of `weight` for background rows; their weight is 1 here.
    """
    logits, positive, rows = _focal_terms(input, target, weight)
    p, q = logits.sigmoid(), (-logits).sigmoid()
    hit = -alpha * q**gamma * functional.logsigmoid(logits)
    miss = -(1 - alpha) * p**gamma * functional.logsigmoid(-logits)
    output.copy_(torch.where(positive, hit, miss) * rows)


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Write the derivative of :func:`sigmoid_focal_loss_forward` into `grad_input`."""
    logits, positive, rows = _focal_terms(input, target, weight)
    p, q = logits.sigmoid(), (-logits).sigmoid()
    log_p, log_q = functional.logsigmoid(logits), functional.logsigmoid(-logits)
    hit = -alpha * q**gamma * (q - gamma * p * log_p)
    miss = (1 - alpha) * p**gamma * (p - gamma * q * log_q)
    grad_input.copy_(torch.where(positive, hit, miss) * rows)


def masked_im2col_forward(
    im: Tensor,
    mask_h_idx: Tensor,
    mask_w_idx: Tensor,
    col: Tensor,
    kernel_h: int,
    kernel_w: int,
    pad_h: int,
    pad_w: int,
) -> None:
    """Write the patch around each chosen position into the columns of `col`.

    Args:
        im: (1, C, H, W).
        mask_h_idx: (N,) rows of the positions.
        mask_w_idx: (N,) columns.
        col: (C * kernel_h * kernel_w, N).
        kernel_h: Rows of a patch.
        kernel_w: Columns of a patch.
        pad_h: Zeros above and below the image.
        pad_w: Zeros left and right of it.
    """
    padded = functional.pad(im[0], (pad_w, pad_w + kernel_w, pad_h, pad_h + kernel_h))
    rows = torch.arange(kernel_h, device=im.device)[:, None, None] + mask_h_idx
    columns = torch.arange(kernel_w, device=im.device)[None, :, None] + mask_w_idx
    col.copy_(padded[:, rows, columns].reshape(col.shape))


def masked_col2im_forward(
    col: Tensor,
    mask_h_idx: Tensor,
    mask_w_idx: Tensor,
    im: Tensor,
    height: int,
    width: int,
    channels: int,
) -> None:
    """Write the columns of `col`, (C, N), to their positions in `im`, (1, C, H, W)."""
    im[0, :, mask_h_idx, mask_w_idx] = col.to(im.dtype)


def _deform_conv(
    input: Tensor, weight: Tensor, offset: Tensor, mask: Tensor | None, bias: Tensor | None, layout: list[Any]
) -> Tensor:
    extras = [
        input.new_zeros(len(input), 1) if mask is None else mask,
        input.new_zeros(len(weight)) if bias is None else bias,
    ]
    tensors = _compute(input, weight, offset, *extras)
    return torch.ops.torchvision.deform_conv2d(*tensors, *layout, mask is not None)


def _deform_conv_gradients(
    gradient: Tensor,
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    layout: list[Any],
) -> tuple[Tensor, ...]:
    """Return the gradients of input, weight, offset, mask and bias."""
    extras = [input.new_zeros(len(input), 1) if mask is None else mask, input.new_zeros(len(weight))]
    tensors = _compute(gradient, input, weight, offset, *extras)
    return torch.ops.torchvision._deform_conv2d_backward(*tensors, *layout, mask is not None)


def _layout(options: dict[str, Any]) -> list[Any]:
    """Order the options of the first deformable convolution as torchvision takes them."""
    names = ("dH", "dW", "padH", "padW", "dilationH", "dilationW", "group", "deformable_group")
    return [options[name] for name in names]


def deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    output: Tensor,
    columns: Tensor,
    ones: Tensor,
    **options: Any,
) -> None:
    """Convolve with displaced samples, into `output`.

    Args:
        input: (B, C, H, W).
        weight: (O, C / group, kH, kW).
        offset: (B, deformable_group * 2 kH kW, OH, OW), displacements y and x in turn, in pixels.
        output: (B, O, OH, OW).
        columns: Unused work space, as `ones`.
        ones: Unused.
        options: kH, kW, dH, dW, padH, padW, dilationH, dilationW, group, deformable_group, im2col_step.
    """
    output.copy_(_deform_conv(input, weight, offset, None, None, _layout(options)))


def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradInput: Tensor,
    gradOffset: Tensor,
    weight: Tensor,
    columns: Tensor,
    **options: Any,
) -> None:
    """Write the gradients of :func:`deform_conv_forward` with respect to input and offset."""
    gradients = _deform_conv_gradients(gradOutput, input, weight, offset, None, _layout(options))
    gradInput.copy_(gradients[0])
    gradOffset.copy_(gradients[2])


def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradWeight: Tensor,
    columns: Tensor,
    ones: Tensor,
    *,
    scale: float,
    **options: Any,
) -> None:
    """Add `scale` times the gradient of :func:`deform_conv_forward` for the weight to `gradWeight`."""
    # the gradient does not depend on the weight's values, only on its shape
    gradients = _deform_conv_gradients(gradOutput, input, gradWeight, offset, None, _layout(options))
    gradWeight.add_(gradients[1].to(gradWeight.dtype), alpha=scale)


def _modulated_layout(options: dict[str, Any]) -> list[Any]:
    names = (
        "stride_h",
        "stride_w",
        "pad_h",
        "pad_w",
        "dilation_h",
        "dilation_w",
        "group",
        "deformable_group",
    )
    return [options[name] for name in names]


def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    *,
    with_bias: bool,
    **options: Any,
) -> None:
    """Convolve with displaced samples, each weighted by `mask`, into `output`.

    Args:
        input: (B, C, H, W).
        weight: (O, C / group, kernel_h, kernel_w).
        bias: (O,), or empty without `with_bias`.
        ones: Unused work space, as `columns`.
        offset: (B, deformable_group * 2 kH kW, OH, OW), in pixels.
        mask: (B, deformable_group * kH kW, OH, OW).
        output: (B, O, OH, OW).
        columns: Unused.
        with_bias: Add the bias.
        options: kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, group,
            deformable_group.
    """
    added = bias if with_bias else None
    output.copy_(_deform_conv(input, weight, offset, mask, added, _modulated_layout(options)))


def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    *,
    with_bias: bool,
    **options: Any,
) -> None:
    """Write all gradients of :func:`modulated_deform_conv_forward`."""
    layout = _modulated_layout(options)
    gradients = _deform_conv_gradients(grad_output, input, weight, offset, mask, layout)
    outputs = (grad_input, grad_weight, grad_offset, grad_mask)
    for output, gradient in zip(outputs, gradients, strict=False):
        output.copy_(gradient)
    if with_bias:
        grad_bias.copy_(gradients[4])
