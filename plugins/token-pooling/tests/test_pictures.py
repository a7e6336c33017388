"""Cluster pictures, and the analysis of attention as a low-pass filter."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from timm.models import VisionTransformer
from torch import Tensor, nn

from graftwork_token_pooling import apply
from graftwork_token_pooling.low_pass import analyse_attention, plot_low_pass, radial_amplitude
from graftwork_token_pooling.visualize import cluster_maps, draw_clusters, save_clusters


def test_cluster_maps_follow_the_schedule_and_only_coarsen(vit: VisionTransformer, images: Tensor) -> None:
    pooled = apply(vit, "r50")
    maps = cluster_maps(pooled, images)
    assert {block: grid.shape for block, grid in maps.items()} == dict.fromkeys((1, 2, 3), (2, 8, 8))
    assert [maps[block][0].unique().numel() for block in (1, 2, 3)] == [32, 16, 8]
    # patches that share a token share it from then on
    for early, late in ((1, 2), (2, 3)):
        for cluster in maps[early][0].unique():
            assert maps[late][0][maps[early][0] == cluster].unique().numel() == 1
    with torch.no_grad():
        assert torch.equal(maps[3].flatten(1), pooled.forward_pooled(images)[1])


def test_a_plain_model_has_no_clusters(vit: VisionTransformer, images: Tensor) -> None:
    with pytest.raises(TypeError, match="expected a model with Token Pooling"):
        cluster_maps(vit, images)


def test_clusters_are_painted_in_their_mean_colour_with_borders_between() -> None:
    plt = pytest.importorskip("matplotlib.pyplot")
    image = torch.zeros(3, 4, 4)
    image[:, :, 2:] = 1.0
    figure, axes = plt.subplots()
    draw_clusters(axes, image, torch.tensor([[0, 1], [0, 1]]))
    painted = axes.get_images()[0].get_array()
    assert painted[:, 0].max() == 0
    assert painted[:, 1].min() == 1
    assert [list(line.get_xdata()) for line in axes.get_lines()] == [[1, 1], [1, 1]]
    draw_clusters(axes, image, torch.zeros(2, 2, dtype=torch.int64))
    assert axes.get_images()[1].get_array().max() == pytest.approx(0.5)
    plt.close(figure)


def test_a_picture_is_written(vit: VisionTransformer, images: Tensor, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from PIL import Image

    path = save_clusters(apply(vit, "r50"), images, tmp_path / "clusters.png")
    picture = Image.open(path)
    assert picture.width > 2 * picture.height * 0.8
    assert len(picture.convert("RGB").getcolors(1 << 24)) > 50


def test_amplitudes_find_the_frequency_of_a_wave() -> None:
    column = torch.arange(16)
    for cycles, expected in ((1, 0), (2, 0), (3, 1), (7, 3)):
        wave = torch.cos(2 * torch.pi * cycles * column / 16).expand(16, 16)
        amplitude = radial_amplitude(wave.reshape(1, 1, 256, 1), (16, 16), bins=4)
        assert amplitude.argmax() == expected


def test_uniform_attention_lets_nothing_but_the_mean_through(make_vit, images: Tensor) -> None:
    model = make_vit(class_token=False, global_pool="avg")
    with torch.no_grad():
        for block in model.blocks:
            block.attn.qkv.weight[:64] = 0
            block.attn.qkv.bias[:64] = 0
        result = analyse_attention(model, images, bins=4)
    assert result.gain.shape == (4, 4)
    assert result.gain.max() < 1e-4
    assert result.gaussian_gap.max() < 1e-5


def test_attention_to_oneself_lets_everything_through(make_vit, images: Tensor) -> None:
    model = make_vit(class_token=False, global_pool="avg", num_heads=1, depth=1)
    with torch.no_grad():
        block = model.blocks[0]
        block.attn.qkv.weight[:64] = torch.cat([300 * torch.eye(32)] * 2)
        block.attn.qkv.bias[:64] = 0
        result = analyse_attention(model, images, bins=4)
    torch.testing.assert_close(result.gain, torch.ones(1, 4), rtol=0.02, atol=0)


def test_keys_of_one_norm_make_attention_a_gaussian_filter(make_vit, images: Tensor) -> None:
    model = make_vit(qk_norm=True)
    with torch.no_grad():
        for block in model.blocks:
            for norm in (block.attn.q_norm, block.attn.k_norm):
                norm.weight.fill_(1.5)
                norm.bias.zero_()
        result = analyse_attention(apply(model, "r50"), images)
        free = analyse_attention(make_vit(), images)
    assert result.key_variation.max() < 1e-3
    assert result.gaussian_gap.max() < 1e-3
    assert free.gaussian_gap.min() > 10 * result.gaussian_gap.max()


def test_the_analysis_is_drawn(vit: VisionTransformer, images: Tensor) -> None:
    plt = pytest.importorskip("matplotlib.pyplot")
    figure = plot_low_pass(analyse_attention(vit, images))
    assert len(figure.axes[0].get_lines()) == 4 + 1
    assert len(figure.axes[1].get_lines()) == 2
    plt.close(figure)


def test_other_models_are_refused(images: Tensor) -> None:
    with pytest.raises(TypeError, match="reads the attention of timm's VisionTransformer"):
        analyse_attention(nn.Linear(2, 2), images)
