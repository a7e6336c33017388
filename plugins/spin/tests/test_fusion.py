"""Weight fusion: from a trained network that shares nothing to a shared one."""

from __future__ import annotations

import copy

import pytest
import torch

from graftwork_spin import SpinConvMixer, collapse, fuse, share

WEIGHTED = ("scalar_weighted_mean", "channel_weighted_mean")


def first_slot(model):
    path = model.COMPONENTS[model.sharing.components[0]][0]
    return path, model.shared[path.rpartition(".")[2]]


@pytest.mark.parametrize("mapping", ["sequential", "strided", [0, 1, 1, 0, 0, 2]])
def test_mean_is_that_of_the_groups_of_the_mapping(plain, mapping):
    fused, unshared = fuse(plain, "mean", mapping=mapping), share(plain, 1)
    path, layer = first_slot(fused)
    for index, weight in enumerate(layer.weight):
        members = [
            block.get_submodule(path).weight
            for block, tensor in zip(unshared.blocks, layer.mapping)
            if tensor == index
        ]
        torch.testing.assert_close(weight, torch.stack(members).mean(0))


def test_choose_first_takes_the_first_layer_of_a_group(plain):
    fused, unshared = fuse(plain, "choose_first", rate=3), share(plain, 1)
    path, layer = first_slot(fused)
    assert torch.equal(layer.weight[1], unshared.blocks[3].get_submodule(path).weight)


@pytest.mark.parametrize("how", ["mean", "choose_first"])
def test_fusing_equal_members_is_the_identity(plain, images, how):
    unshared = share(plain, 1)
    shared = share(plain, 2)
    weights, biases = shared.layer_tensors()
    paths = [path for component in shared.sharing.components for path in shared.COMPONENTS[component]]
    with torch.no_grad():
        for layer, block in enumerate(unshared.blocks):
            for at, path in enumerate(paths):
                block.get_submodule(path).weight.copy_(weights[layer][at])
                block.get_submodule(path).bias.copy_(biases[layer][at])
    assert torch.equal(fuse(unshared, how)(images), unshared(images))


@pytest.mark.parametrize("how", ["mean", *WEIGHTED])
@pytest.mark.parametrize("mapping", ["sequential", "random"])
def test_online_fusion_computes_what_the_collapsed_network_computes(plain, images, how, mapping):
    online = fuse(plain, how, rate=3, mapping=mapping, online=True)
    with torch.no_grad():
        for layer in online.shared.values():
            for factor in layer.reduction:
                factor.uniform_(0.5, 1.5)
    collapsed = collapse(online)
    torch.testing.assert_close(collapsed(images), online(images), rtol=0, atol=1e-5)
    assert len(first_slot(online)[1].weight) == 6
    assert len(first_slot(collapsed)[1].weight) == 2
    assert not any("reduction" in name for name in collapsed.state_dict())


def test_all_means_agree_while_their_factors_are_one(plain, images):
    mean = fuse(plain, "mean")(images)
    for how in WEIGHTED:
        torch.testing.assert_close(fuse(plain, how)(images), mean, rtol=1e-5, atol=1e-5)


def test_factors_weight_the_weights_and_leave_the_biases(plain):
    online = fuse(plain, "channel_weighted_mean")
    _, layer = first_slot(online)
    with torch.no_grad():
        layer.reduction[0].fill_(3.0)
        layer.reduction[0][0] = 0.0
    weights, biases = layer()
    torch.testing.assert_close(weights[0][0], layer.weight[1][0] / 2)
    torch.testing.assert_close(weights[0][1], (3 * layer.weight[0][1] + layer.weight[1][1]) / 2)
    torch.testing.assert_close(biases[0], (layer.bias[0] + layer.bias[1]) / 2)


def test_factors_have_one_value_per_layer_or_per_channel(plain):
    scalar, channel = (first_slot(fuse(plain, how))[1] for how in WEIGHTED)
    assert [tuple(a.shape) for a in scalar.reduction] == [(1,)] * 6
    assert [tuple(a.shape) for a in channel.reduction] == [(channel.shape[0],)] * 6


@pytest.mark.parametrize("how", ["mean", *WEIGHTED])
def test_every_tensor_of_an_online_group_gets_a_gradient(plain, images, how):
    online = fuse(plain, how, online=True).train()
    online(images).square().mean().backward()
    assert not [name for name, parameter in online.named_parameters() if parameter.grad is None]


def test_members_of_an_online_mean_get_equal_shares_of_the_gradient(plain, images):
    online, cheap = (fuse(plain, "mean", rate=3, online=flag) for flag in (True, False))
    for model in (online, cheap):
        model(images).square().sum().backward()
    members, (whole, *_) = first_slot(online)[1].weight, first_slot(cheap)[1].weight
    for member in list(members)[:3]:
        torch.testing.assert_close(3 * member.grad, whole.grad, rtol=1e-3, atol=1e-5)


def test_a_fused_state_dict_equals_that_of_the_fused_network(plain, images):
    for how, online in (
        ("mean", None),
        ("choose_first", None),
        ("mean", True),
        ("channel_weighted_mean", None),
    ):
        model = fuse(plain, how, rate=3, mapping="strided", online=online)
        state = fuse(plain.state_dict(), how, rate=3, mapping="strided", online=online)
        assert set(state) == set(model.state_dict())
        assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())


def test_a_fused_state_dict_of_rate_one_fits_the_unshared_network(plain):
    share(plain, 1).load_state_dict(fuse(plain.state_dict(), rate=1))


def test_a_wrapped_state_dict_is_fused_too():
    model = SpinConvMixer(8, 4, rate=1)
    wrapped = {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}
    SpinConvMixer(8, 4, rate=2).load_state_dict(fuse(wrapped))


def test_the_source_of_a_fusion_stays_as_it_is(plain):
    before = copy.deepcopy(plain.state_dict())
    state = dict(before)
    fuse(plain, "mean")
    fuse(state, "mean")
    assert state.keys() == before.keys()
    assert all(torch.equal(before[name], tensor) for name, tensor in plain.state_dict().items())


def test_an_online_network_takes_a_plainly_trained_checkpoint(images):
    plain = SpinConvMixer(16, 4, patch_size=7, rate=1).eval()
    online = SpinConvMixer(16, 4, patch_size=7, rate=2, fusion="channel_weighted_mean").eval()
    with torch.no_grad():
        online.shared["pw"].reduction[0].fill_(0.7)
    online.load_state_dict(plain.state_dict())
    with torch.no_grad():
        online.shared["pw"].reduction[0].fill_(1.0)
    torch.testing.assert_close(online(images), fuse(plain, "mean")(images), rtol=1e-5, atol=1e-5)


def test_a_shared_network_refuses_a_plainly_trained_checkpoint_with_advice():
    with pytest.raises(RuntimeError, match=r"shares nothing\. Fuse it first"):
        SpinConvMixer(8, 4, rate=2).load_state_dict(SpinConvMixer(8, 4, rate=1).state_dict())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"how": "median"}, "choose_first, mean, scalar_weighted_mean, channel_weighted_mean"),
        ({"how": "choose_first", "online": True}, "would get no gradient"),
        ({"how": "scalar_weighted_mean", "online": False}, "starts equal to 'mean'"),
        ({"rate": 0}, "rate must be a whole number"),
    ],
)
def test_impossible_fusions_are_refused(plain, options, message):
    with pytest.raises(ValueError, match=message):
        fuse(plain, **options)
    with pytest.raises(ValueError, match=message):
        fuse(plain.state_dict(), **options)


def test_choose_first_is_refused_as_online_fusion_of_a_variant():
    with pytest.raises(ValueError, match="an initialisation, not an online fusion"):
        SpinConvMixer(8, 4, fusion="choose_first")


def test_what_shares_already_cannot_be_fused(plain):
    shared = share(plain, 2)
    with pytest.raises(ValueError, match="shares tensors already"):
        fuse(shared)
    with pytest.raises(ValueError, match="shares tensors already"):
        fuse(shared.state_dict())


def test_a_foreign_state_dict_is_refused_by_its_first_key():
    with pytest.raises(TypeError, match=r"'conv1\.weight'"):
        fuse({"conv1.weight": torch.zeros(1)})


def test_collapse_wants_an_online_network(plain):
    for model in (plain, share(plain, 2)):
        with pytest.raises(ValueError, match="no online fusion"):
            collapse(model)
