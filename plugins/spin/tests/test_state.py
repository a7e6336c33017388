"""The stored mapping, and what pruning leaves of the stored tensors."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from safetensors.torch import load, save
from timm.utils import ModelEmaV3

from graftwork_spin import SpinConvMixer, fuse, share


@pytest.fixture(params=["shared", "random", "transformed", "online"])
def shared(plain, request):
    return {
        "shared": lambda: share(plain, 2),
        "random": lambda: share(plain, 2, "random", mapping_seed=3),
        "transformed": lambda: share(plain, 2, transform="affine_channel"),
        "online": lambda: fuse(plain, "channel_weighted_mean"),
    }[request.param]().eval()


def test_copies_compute_the_same_and_keep_the_sharing(shared, images):
    for other in (copy.deepcopy(shared), pickle.loads(pickle.dumps(shared))):
        assert torch.equal(other(images), shared(images))
        assert other.sharing == shared.sharing
        assert len(other.state_dict()) == len(shared.state_dict())


def test_safetensors_holds_every_tensor_once(shared, images):
    other = copy.deepcopy(shared)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    other.load_state_dict(load(save(shared.state_dict())))
    assert torch.equal(other(images), shared(images))


def test_a_moving_average_moves_every_shared_tensor_once(shared):
    average = ModelEmaV3(shared, decay=0.75)
    before = {name: parameter.detach().clone() for name, parameter in shared.named_parameters()}
    with torch.no_grad():
        for parameter in shared.parameters():
            parameter.add_(1.0)
    average.update(shared)
    for name, parameter in average.module.named_parameters():
        torch.testing.assert_close(parameter, before[name] + 0.25)


def test_a_checkpoint_of_another_mapping_is_refused(plain):
    strided = share(plain, 2, "strided")
    with pytest.raises(
        RuntimeError, match=r"saved with the sharing mapping \[0, 1, 2, 0, 1, 2\].*build it with"
    ):
        share(plain, 2).load_state_dict(strided.state_dict())


def test_a_checkpoint_of_a_random_mapping_tells_how_to_build_its_network(images):
    saved = SpinConvMixer(16, 6, patch_size=7, mapping="random", mapping_seed=5).eval()
    mapping = saved.state_dict()["layer_map"].tolist()
    other = SpinConvMixer(16, 6, patch_size=7, mapping=mapping).eval()
    other.load_state_dict(saved.state_dict())
    assert torch.equal(other(images), saved(images))


def test_pruning_drops_the_tensors_that_only_dropped_layers_used(shared, images):
    before = shared.forward_intermediates(images, indices=[1, 2], intermediates_only=True)
    layer = next(iter(shared.shared.values()))
    expected = sum(len(layer.groups[index]) for index in set(layer.mapping[:3]))
    shared.prune_intermediate_layers([1, 2], prune_norm=True)
    after = shared.forward_intermediates(images, indices=[1, 2], intermediates_only=True)
    for one, other in zip(before, after, strict=True):
        assert torch.equal(one, other)
    assert len(shared.sharing.mapping) == len(shared.blocks) == 3
    assert [len(layer.weight) for layer in shared.shared.values()] == [expected] * len(shared.shared)
    sum(level.square().mean() for level in after).backward()
    assert not [name for name, parameter in shared.named_parameters() if parameter.grad is None]


def test_a_pruned_network_stores_its_own_mapping(plain):
    shared = share(plain, mapping=[2, 0, 0, 1, 1, 2])
    shared.prune_intermediate_layers([2])
    assert shared.state_dict()["layer_map"].tolist() == [1, 0, 0]
    assert shared.sharing.mapping == (1, 0, 0)


def test_building_on_meta_and_initialising_later_equals_building_at_once(images):
    for build in (
        lambda **dd: SpinConvMixer(16, 4, patch_size=7, transform="affine_channel", **dd),
        lambda **dd: share_of_convnext(**dd),
    ):
        late = build(device="meta").to_empty(device="cpu")
        torch.manual_seed(0)
        late.init_weights()
        other = build()
        torch.manual_seed(0)
        other.init_weights()
        other.load_state_dict(late.state_dict())
        assert torch.equal(other.eval()(images), late.eval()(images))
        assert late(images).isfinite().all()


def share_of_convnext(**dd):
    from graftwork_spin import SpinConvNeXt

    return SpinConvNeXt(16, 4, patch_size=7, **dd)


def test_a_shared_transformer_can_be_initialised_again(small_vit):
    shared = share(small_vit(depth=4), 2)
    before = shared.shared["fc1"].weight[0].clone()
    shared.init_weights()
    after = shared.shared["fc1"].weight[0]
    assert not torch.equal(before, after)
    assert float(after.detach().std()) == pytest.approx(0.02, rel=0.1)
    with pytest.raises(NotImplementedError, match="weight_init='jax'"):
        shared.init_weights("jax")
