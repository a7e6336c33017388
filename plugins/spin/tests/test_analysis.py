"""Linear CKA of layer outputs."""

from __future__ import annotations

import pytest
import torch

from graftwork_spin import SpinConvMixer, cka_matrix, layer_outputs, linear_cka, plot_cka


@pytest.fixture
def features():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(30, 8, generator=generator), torch.randn(30, 12, generator=generator)


def test_cka_is_the_ratio_of_cross_covariances(features):
    x, y = (f.double() - f.double().mean(0) for f in features)
    expected = (y.T @ x).norm() ** 2 / ((x.T @ x).norm() * (y.T @ y).norm())
    assert linear_cka(*features) == pytest.approx(float(expected), rel=1e-9)


def test_cka_of_a_representation_with_itself_is_one(features):
    assert linear_cka(features[0], features[0]) == pytest.approx(1.0)


def test_cka_ignores_rotation_scale_and_offset(features):
    x, y = features
    rotation = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(1)))[0]
    assert linear_cka(5 * x @ rotation + 3, y) == pytest.approx(linear_cka(x, y), rel=1e-5)


def test_cka_does_not_ignore_a_change_of_single_features(features):
    x, y = features
    stretched = x * torch.tensor([100.0, *[1.0] * 7])
    assert abs(linear_cka(stretched, y) - linear_cka(x, y)) > 0.01


def test_cka_is_symmetric_and_between_zero_and_one(features):
    x, y = features
    assert linear_cka(x, y) == pytest.approx(linear_cka(y, x))
    assert 0 < linear_cka(x, y) < 1


def test_orthogonal_representations_have_cka_zero():
    x = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]])
    y = torch.tensor([[1.0], [1.0], [-1.0], [-1.0]])
    assert linear_cka(x, y) == pytest.approx(0.0, abs=1e-12)


def test_constant_features_give_zero_not_nan():
    assert linear_cka(torch.ones(5, 2), torch.randn(5, 2)) == 0.0


def test_different_numbers_of_samples_are_refused():
    with pytest.raises(ValueError, match="got 3 and 4"):
        linear_cka(torch.zeros(3, 2), torch.zeros(4, 2))


def test_layer_outputs_are_those_of_the_blocks_in_any_batch_size(images):
    model = SpinConvMixer(8, 4, patch_size=7).train()
    whole, split = layer_outputs(model, images), layer_outputs(model, images, batch_size=2)
    assert model.training
    assert [tuple(output.shape) for output in whole] == [(3, 8 * 4 * 4)] * 4
    for one, other in zip(whole, split):
        torch.testing.assert_close(one, other)


def test_the_matrix_compares_every_pair_of_layers(plain, images):
    outputs = layer_outputs(plain, torch.cat([images, images.flip(-1), images.roll(5, 2)]))
    matrix = cka_matrix(outputs)
    assert matrix.shape == (6, 6)
    torch.testing.assert_close(matrix.diagonal(), torch.ones(6, dtype=matrix.dtype))
    assert float(matrix[1, 4]) == pytest.approx(linear_cka(outputs[1], outputs[4]))
    across = cka_matrix(outputs[:2], outputs)
    torch.testing.assert_close(across, matrix[:2])


def test_networks_without_intermediates_are_refused(images):
    with pytest.raises(TypeError, match="no forward_intermediates"):
        layer_outputs(torch.nn.Linear(2, 2), images)


def test_the_plot_has_one_labelled_panel_per_matrix(tmp_path):
    figure = plot_cka({"unshared": torch.rand(6, 6), "shared": torch.rand(6, 6)})
    titles = [axis.get_title() for axis in figure.axes if axis.get_title()]
    assert titles == ["unshared", "shared"]
    figure.savefig(tmp_path / "cka.png")
    assert (tmp_path / "cka.png").stat().st_size > 5000
