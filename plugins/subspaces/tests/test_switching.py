"""Switching without sorting: tabulated thresholds, kept instances, ends in half precision."""

from __future__ import annotations

import pytest
import torch

from graftwork_subspaces import LevelError, wrap
from graftwork_subspaces.digits import DigitsNet
from graftwork_subspaces.net import is_half


def digits(regime="sparse", subspace="line", **options):
    torch.manual_seed(0)
    net = wrap(
        DigitsNet(channels=(32, 64)), regime=regime, subspace=subspace, input_size=(1, 8, 8), **options
    )
    return net.eval()


def zeros_by_layer(net, **level):
    with torch.no_grad(), net.at(**level) as entered:
        blocks = [layer for layer in net.layers() if layer.role == "block"]
        return [(int((b.tensors()[0] == 0).sum()), entered.zeros[b.index], b.weight.numel()) for b in blocks]


@pytest.mark.parametrize("subspace", ["line", "point"])
def test_table_counts_exactly_on_its_grid(subspace):
    net = digits(subspace=subspace)
    net.tabulate(9)
    for alpha in net.switcher.table.alphas:
        for found, expected, _ in zeros_by_layer(net, alpha=alpha):
            assert found == expected


@pytest.mark.parametrize("subspace", ["line", "point"])
def test_table_is_close_between_grid_points_and_exact_on_demand(subspace):
    net = digits(subspace=subspace)
    net.tabulate(33)
    for alpha in torch.linspace(0, 1, 41).tolist():
        for found, expected, size in zeros_by_layer(net, alpha=alpha):
            # 0.2 % of a layer; a layer as small as this one is granular besides
            assert abs(found - expected) <= 0.002 * size + 2
        for found, expected, _ in zeros_by_layer(net, alpha=alpha, exact=True):
            assert found == expected


def test_table_is_void_once_a_weight_changes():
    net = digits()
    net.tabulate(5)
    assert net.switcher.has_table(net.layers())
    with torch.no_grad():
        net.layers()[3].weight.mul_(3)
    assert not net.switcher.has_table(net.layers())
    for found, expected, _ in zeros_by_layer(net, alpha=0.33):
        assert found == expected


def test_nothing_is_selected_in_a_forward_pass(monkeypatch):
    net = digits()
    net.tabulate(5)
    x = torch.randn(1, 1, 8, 8)

    def refuse(*arguments, **options):
        raise AssertionError("a forward pass selected or sorted weights")

    for name in ("kthvalue", "sort", "argsort", "topk"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    with torch.no_grad():
        for alpha in (0.1, 0.5, 0.77):
            with net.at(alpha):
                net(x)


def test_levels_used_last_are_kept():
    net = digits("quant")
    with net.at(bits=4) as first, net.at(bits=5):
        pass
    with net.at(bits=4) as again:
        assert again.prepared is first.prepared
    for bits in (3, 6, 7, 8):
        with net.at(bits=bits):
            pass
    with net.at(bits=4) as later:
        assert later.prepared is not first.prepared


def test_buffers_are_used_again_but_never_while_a_level_runs():
    net = digits("quant")
    net.switcher.cache = 1
    x = torch.randn(2, 1, 8, 8)
    with torch.no_grad(), net.at(bits=3):
        expected = net(x)
        for bits in (4, 5, 6, 7, 8):
            with net.at(bits=bits):
                net(x)
        assert torch.equal(net(x), expected)
    del expected


def test_changed_weights_are_noticed():
    net = digits("quant")
    x = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        with net.at(bits=4):
            before = net(x)
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        with net.at(bits=4):
            assert not torch.allclose(net(x), before)


def test_network_without_a_level_uses_finished_weights_too():
    net = digits("quant")
    x = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        plain = net(x)
        assert net.switcher._levels, "the accurate level must have been prepared"
        with net.at(1.0):
            assert torch.equal(net(x), plain)


@pytest.mark.parametrize("regime", ["sparse", "quant"])
def test_half_precision_ends_serve_every_level_closely(regime):
    net = digits(regime)
    x = torch.randn(4, 1, 8, 8)
    alphas = (0.0, 0.4, 1.0)
    with torch.no_grad():
        expected = []
        for alpha in alphas:
            with net.at(alpha):
                expected.append([layer.tensors()[0].clone() for layer in net.layers()])
        before = sum(t.numel() * t.element_size() for t in net.state_dict().values())
        net.store_half()
        after = sum(t.numel() * t.element_size() for t in net.state_dict().values())
        assert is_half(net) and after < 0.55 * before
        for alpha, weights in zip(alphas, expected):
            with net.at(alpha):
                net(x)
                for layer, weight in zip(net.layers(), weights):
                    here = layer.tensors()[0]
                    if regime == "sparse" or layer.role == "dense":
                        agreeing = (here - weight).abs() <= 2e-3 * weight.abs().max()
                        assert float(agreeing.float().mean()) > 0.99


def test_half_precision_network_materialises():
    net = digits("sparse").store_half()
    x = torch.randn(4, 1, 8, 8)
    with torch.no_grad(), net.at(0.5):
        torch.testing.assert_close(net.materialize(0.5)(x), net(x), rtol=1e-4, atol=1e-5)


def test_only_sparse_networks_have_tables():
    with pytest.raises(LevelError, match="only sparse"):
        digits("quant").tabulate()
    with pytest.raises(LevelError, match="at least 2"):
        digits("sparse").tabulate(1)
