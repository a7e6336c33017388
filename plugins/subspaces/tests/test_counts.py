"""Weights that every level keeps, against the published architectures."""

from __future__ import annotations

import pytest
import torch

from graftwork_subspaces import models
from graftwork_subspaces.sparse import zero_count

WEIGHTS = {"cpreresnet20": 216_752, "resnet18": 11_678_912, "vgg19": 20_530_880}
WIDTHS = (1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25)
KEPT = {
    "cpreresnet20": (216_752, 166_278, 122_484, 85_370, 54_936, 31_182, 14_108),
    "resnet18": (11_678_912, 8_998_696, 6_667_152, 4_684_280, 3_050_080, 1_764_552, 827_696),
    "vgg19": (20_530_880, 15_775_144, 11_644_944, 8_140_280, 5_261_152, 3_007_560, 1_379_504),
}
WIDTH_SPARSITY = {
    "cpreresnet20": (0, 23.29, 43.49, 60.61, 74.65, 85.61, 93.49),
    "resnet18": (0, 22.95, 42.91, 59.89, 73.88, 84.89, 92.91),
    "vgg19": (0, 23.16, 43.28, 60.35, 74.37, 85.35, 93.28),
}
TOPK = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9)
TOPK_SPARSITY = {
    "cpreresnet20": (98.12, 97.63, 96.15, 93.68, 88.75, 73.96, 49.31, 24.65, 9.86),
    "resnet18": (95.06, 94.58, 93.15, 90.76, 85.98, 71.65, 47.77, 23.88, 9.55),
    "vgg19": (97.01, 96.52, 95.06, 92.62, 87.75, 73.12, 48.75, 24.37, 9.75),
}
DENSE_SHARE = {"cpreresnet20": 1.38, "resnet18": 4.46, "vgg19": 2.50}
EXTRA_OF_A_WIDTH_LINE = {"cpreresnet20": 2_720, "resnet18": 9_600, "vgg19": 11_008}
BITS = (8, 7, 6, 5, 4, 3)
STORAGE = {  # MiB at 32, 8, 7, 6, 5, 4, 3 bits
    "cpreresnet20": (0.827, 0.215, 0.190, 0.164, 0.139, 0.113, 0.088),
    "resnet18": (44.55, 12.63, 11.30, 9.97, 8.64, 7.31, 5.98),
    "vgg19": (78.32, 21.05, 18.66, 16.28, 13.89, 11.51, 9.12),
}
NETWORKS = sorted(WEIGHTS)


def build(network, regime, subspace="point", **options):
    with torch.device("meta"):
        return getattr(models, f"{network}_lcs_{regime}_{subspace}")(**options)


def weights(model):
    return sum(parameter.numel() for parameter in model.parameters() if parameter.ndim > 1)


@pytest.mark.parametrize("network", NETWORKS)
def test_network_has_the_published_number_of_weights(network):
    assert weights(build(network, "width")) == WEIGHTS[network]


@pytest.mark.parametrize("network", NETWORKS)
def test_widths_keep_the_published_number_of_weights(network):
    net = build(network, "width")
    for width, kept, sparsity in zip(WIDTHS, KEPT[network], WIDTH_SPARSITY[network]):
        counted = weights(net.materialize(width=width))
        assert counted == kept
        assert 100 * (1 - counted / WEIGHTS[network]) == pytest.approx(sparsity, abs=0.005)


@pytest.mark.parametrize("network", NETWORKS)
def test_width_line_adds_the_published_number_of_parameters(network):
    line, point = (
        sum(p.numel() for p in build(network, "width", subspace).parameters())
        for subspace in ("line", "point")
    )
    assert line - point == EXTRA_OF_A_WIDTH_LINE[network]


@pytest.mark.parametrize("network", NETWORKS)
def test_other_lines_double_every_parameter(network):
    for regime in ("sparse", "quant"):
        line, point = (
            sum(p.numel() for p in build(network, regime, subspace).parameters())
            for subspace in ("line", "point")
        )
        assert line == 2 * point


@pytest.mark.parametrize("network", NETWORKS)
def test_overall_sparsity_is_the_published_one(network):
    net = build(network, "sparse", levels={"lo": 0.005})
    sizes = [(layer.weight.numel(), layer.role) for layer in net.layers() if layer.weight.ndim > 1]
    dense = sum(size for size, role in sizes if role == "dense")
    assert 100 * dense / WEIGHTS[network] == pytest.approx(DENSE_SHARE[network], abs=0.005)
    for kept, sparsity in zip(TOPK, TOPK_SPARSITY[network]):
        level = net.make_level(net.settings.map.alpha(kept), kept)
        assert level.zeros == tuple(
            zero_count(kept, layer.weight.numel()) if layer.role == "block" else 0 for layer in net.layers()
        )
        assert 100 * sum(level.zeros) / WEIGHTS[network] == pytest.approx(sparsity, abs=0.006)


@pytest.mark.parametrize("network", ["cpreresnet20", pytest.param("resnet18", marks=pytest.mark.slow),
                                     pytest.param("vgg19", marks=pytest.mark.slow)])  # fmt: skip
def test_zeros_are_really_there_and_statistics_count_them(network):
    net = getattr(models, f"{network}_lcs_sparse_point")().eval()
    stats = net.stats(kept=0.05, measure=False)
    assert stats.weights == WEIGHTS[network]
    assert 100 * stats.sparsity == pytest.approx(TOPK_SPARSITY[network][3], abs=0.006)


@pytest.mark.parametrize("network", NETWORKS)
def test_packed_storage_is_the_published_one(network):
    net = build(network, "quant")
    layers = [layer for layer in net.layers() if layer.weight.ndim > 1]
    assert weights(net) * 4 / 2**20 == pytest.approx(STORAGE[network][0], abs=0.006)
    for bits, expected in zip(BITS, STORAGE[network][1:]):
        stored = sum(layer.weight.numel() * (4 if layer.role == "dense" else bits / 8) for layer in layers)
        assert stored / 2**20 == pytest.approx(expected, abs=0.006)


def test_statistics_report_packed_storage():
    net = models.cpreresnet20_lcs_quant_line().eval()
    for bits, expected in zip(BITS, STORAGE["cpreresnet20"][1:]):
        assert net.stats(bits=bits, measure=False).weight_bytes / 2**20 == pytest.approx(expected, abs=0.0006)


def test_vgg_ends_in_one_logit_per_class():
    net = models.vgg19_lcs_width_point(channels=(8, 8, 8, 8, 8), num_classes=11).eval()
    with torch.no_grad():
        assert net(torch.zeros(1, 3, 224, 224)).shape == (1, 11)
