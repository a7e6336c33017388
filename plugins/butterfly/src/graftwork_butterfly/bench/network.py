"""Whole networks at the paper's pairs: multiply-adds, latency, and where the time goes."""

from __future__ import annotations

import time
from collections import defaultdict
from functools import partial
from typing import Any

import torch
from timm.models.efficientnet import EfficientNet
from timm.models.mobilenetv3 import MobileNetV3
from torch import nn

from graftwork.bench import Bench
from graftwork_butterfly import models, shufflenetv2
from graftwork_butterfly.fold import FoldedButterfly, fold_batch_norm
from graftwork_butterfly.layers import ButterflyConv1x1
from graftwork_butterfly.macs import count_macs

KINDS = ("pointwise", "depthwise", "other convolution", "normalisation and activation", "the rest")


def pairs() -> dict[str, dict[str, tuple[nn.Module, int]]]:
    """Return the paper's pairs: a dense network and the wider one with butterflies, with their resolutions."""  # noqa: E501
    v1 = models.mobilenetv1_arguments
    v3 = models.mobilenetv3_small_arguments
    return {
        "table 4, 14 MFLOPs": {
            "MobileNetV1 0.25": (EfficientNet(**v1(0.25)), 128),
            "MobileNetV1 1.0 + BFT": (models.mobilenetv1_100_bft(), 96),
        },
        "table 4, 49 MFLOPs": {
            "MobileNetV1 0.5": (EfficientNet(**v1(0.5)), 128),
            "MobileNetV1 2.0 + BFT": (models.mobilenetv1_200_bft(), 128),
        },
        "table 4, 150 MFLOPs": {
            "MobileNetV1 0.5": (EfficientNet(**v1(0.5)), 224),
            "MobileNetV1 2.0 + BFT": (models.mobilenetv1_200_bft(), 224),
        },
        "table 5, 41 MFLOPs": {
            "ShuffleNetV2 0.5": (shufflenetv2.shufflenetv2_x0_5(), 224),
            "ShuffleNetV2 1.25 + BFT": (shufflenetv2.shufflenetv2_x1_25_bft(), 224),
        },
        "table 6, 13 MFLOPs": {
            "MobileNetV3-Small 0.35": (MobileNetV3(**v3(0.35)), 224),
            "MobileNetV3-Small 0.5 + BFT": (models.mobilenetv3_small_050_bft(), 224),
        },
    }


def measure_networks(bench: Bench) -> None:
    """Measure each pair in the same interleaved rounds, as trained and with normalisation folded.

    Args:
        bench: Where to report, and on what.
    """
    bench.report.heading("Whole networks at equal multiply-adds")
    bench.report.text(
        "The paper's pairs, one image, float32, random weights. Latency is measured, never inferred from "
        "multiply-adds: the butterfly network is wider, so its depthwise convolutions, normalisations and "
        "activations cost more than its twin's. `folded` has batch normalisation folded into convolutions and "  # noqa: E501
        "butterfly kernels (`graftwork_butterfly.fold.fold_batch_norm`), for both networks of a pair."
    )
    torch.manual_seed(bench.seed)
    chosen = dict(list(pairs().items())[:1]) if bench.quick else pairs()
    latencies: list[list[Any]] = []
    shares: list[list[Any]] = []
    for pair, networks in chosen.items():
        models_and_images = {
            label: (settle(model).to(bench.device), torch.randn(1, 3, side, side, device=bench.device))
            for label, (model, side) in networks.items()
        }
        for threads in bench.threads if bench.device == "cpu" else (1,):
            with bench.torch_threads(threads), torch.inference_mode():
                latencies += _latencies(bench, pair, models_and_images, threads)
        with bench.torch_threads(bench.threads[0]), torch.inference_mode():
            for label, (model, images) in models_and_images.items():
                for form, network in (("as trained", model), ("folded", fold_batch_norm(model))):
                    times = time_by_kind(network, images, calls=2 if bench.quick else 40)
                    whole = sum(times.values())
                    shares.append([pair, label, form, 1000 * whole, *(times[kind] / whole for kind in KINDS)])
    header = [
        "pair",
        "network",
        "side",
        "M multiply-adds",
        "threads",
        "ms",
        "ratio",
        "folded ms",
        "folded ratio",
    ]
    bench.report.table("Latency of whole networks", header, latencies)
    bench.report.table(
        f"Where the time goes, threads {bench.threads[0]}", ["pair", "network", "form", "ms", *KINDS], shares
    )
    _plot(bench, shares)


def settle(model: nn.Module) -> nn.Module:
    """Give batch normalisation statistics that do not let an untrained network overflow or fall silent."""
    side = 64
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # a cumulative average
    with torch.no_grad():
        model.train()(torch.randn(4, 3, side, side))
    return model.eval()


def _latencies(
    bench: Bench, pair: str, networks: dict[str, tuple[nn.Module, torch.Tensor]], threads: int
) -> list[list[Any]]:
    calls = {}
    for label, (model, images) in networks.items():
        calls[label] = partial(model, images)
        calls[f"{label}, folded"] = partial(fold_batch_norm(model), images)
    timings = bench.compare(calls, seconds=1.0)
    base = next(iter(networks))
    rows = []
    for label, (model, images) in networks.items():
        plain, folded = timings[label].median, timings[f"{label}, folded"].median
        macs = count_macs(model, tuple(images.shape[1:])).total / 1e6
        ratios = plain / timings[base].median, folded / timings[f"{base}, folded"].median
        rows.append(
            [pair, label, images.shape[-1], macs, threads, 1000 * plain, ratios[0], 1000 * folded, ratios[1]]
        )
    return rows


def kind_of(module: nn.Module) -> str | None:
    """Return what a layer's time counts as; None for containers, whose children are counted."""
    if isinstance(module, (ButterflyConv1x1, FoldedButterfly)):
        return "pointwise"
    if isinstance(module, nn.Conv2d):
        if module.groups > 1:
            return "depthwise"
        return "pointwise" if tuple(module.kernel_size) == (1, 1) else "other convolution"
    if isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.ReLU, nn.ReLU6, nn.Hardswish)):
        return "normalisation and activation"
    return None


def time_by_kind(model: nn.Module, images: torch.Tensor, *, calls: int) -> dict[str, float]:
    """Measure the seconds of one call by kind of layer.

    Args:
        model: In evaluation mode.
        images: (B, C, H, W).
        calls: Calls to average over, after two to warm up.

    Returns:
        Seconds by kind; "the rest" is the call's time less that of the layers, mostly Python.
    """
    spent: dict[str, float] = defaultdict(float)
    started: list[float] = []
    open_layers = 0

    def begin(module: nn.Module, _: Any) -> None:
        nonlocal open_layers
        open_layers += 1
        started.append(time.perf_counter())

    def end(module: nn.Module, _: Any, __: Any) -> None:
        nonlocal open_layers
        open_layers -= 1
        elapsed = time.perf_counter() - started.pop()
        if open_layers == 0:  # an activation inside a normalisation is part of it
            spent[str(kind_of(module))] += elapsed

    for _ in range(2):
        model(images)
    layers = [module for module in model.modules() if kind_of(module) is not None]
    handles = [layer.register_forward_pre_hook(begin) for layer in layers]
    handles += [layer.register_forward_hook(end) for layer in layers]
    begun = time.perf_counter()
    for _ in range(calls):
        model(images)
    whole = time.perf_counter() - begun
    for handle in handles:
        handle.remove()
    times = {kind: spent[kind] / calls for kind in KINDS}
    times["the rest"] = whole / calls - sum(times.values())
    return times


def _plot(bench: Bench, shares: list[list[Any]]) -> None:
    import matplotlib.pyplot as plt

    labels = [f"{network}, {form}\n{pair}" for pair, network, form, *_ in shares]
    figure, axis = plt.subplots(figsize=(9, 0.42 * len(shares) + 1), layout="constrained")
    left = [0.0] * len(shares)
    for number, kind in enumerate(KINDS):
        widths = [row[3] * row[4 + number] for row in shares]
        axis.barh(labels, widths, left=left, label=kind, color=f"C{number}")
        left = [a + b for a, b in zip(left, widths)]
    axis.set_xlabel("milliseconds per image")
    axis.tick_params(axis="y", labelsize=6)
    axis.invert_yaxis()
    axis.legend(fontsize=7)
    bench.report.figure(figure, "where the time goes", "Time of one image by kind of layer.")
