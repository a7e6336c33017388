"""Optimisers, checkpointing and parallel training of shared tensors."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.multiprocessing
from timm.models import group_parameters
from timm.optim import create_optimizer_v2
from torch.nn.parallel import DistributedDataParallel

from graftwork_spin import SpinConvMixer, fuse, share


def test_factors_and_transforms_do_not_decay(plain):
    for model in (fuse(plain, "channel_weighted_mean"), share(plain, 2, transform="affine_channel")):
        learned = {
            n for n, _ in model.named_parameters() if ".reduction." in n or ".scale." in n or ".shift." in n
        }
        assert learned and learned <= set(model.no_weight_decay())
        decayed = [
            g for g in create_optimizer_v2(model, "adamw", weight_decay=0.1).param_groups if g["weight_decay"]
        ]
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        assert not learned & {names[id(p)] for group in decayed for p in group["params"]}


def test_a_stored_tensor_is_grouped_with_its_first_layer(plain):
    for model in (share(plain, 2, "strided"), fuse(plain, "scalar_weighted_mean", mapping="strided")):
        groups = group_parameters(model, model.group_matcher(), reverse=True)
        slot, layer = next(iter(model.shared.items()))
        for index, members in enumerate(layer.groups):
            first = layer.mapping.index(index)
            own = next(name for name in groups if name.startswith(f"blocks.{first}."))
            for member in members:
                assert groups[f"shared.{slot}.weight.{member}"] == groups[own]


@pytest.mark.parametrize("how", ["mean", "channel_weighted_mean"])
def test_checkpointing_leaves_gradients_of_fused_tensors_unchanged(plain, images, how):
    from timm.layers import set_reentrant_ckpt

    online = fuse(plain, how, online=True)
    checkpointed = copy.deepcopy(online)
    checkpointed.set_grad_checkpointing()
    set_reentrant_ckpt(True)
    try:
        for model in (online, checkpointed):
            model(images).square().mean().backward()
    finally:
        set_reentrant_ckpt(False)
    for (name, one), (_, other) in zip(online.named_parameters(), checkpointed.named_parameters()):
        torch.testing.assert_close(other.grad, one.grad, msg=lambda text, name=name: f"{name}: {text}")


def test_a_few_steps_lower_the_loss_of_every_form(images):
    labels = torch.tensor([0, 1, 2])
    torch.manual_seed(0)
    for options in ({}, {"fusion": "channel_weighted_mean"}, {"transform": "affine_channel"}, {"rate": 4}):
        model = SpinConvMixer(16, 4, patch_size=7, num_classes=3, **options).train()
        optimizer = create_optimizer_v2(model, "adamw", lr=3e-3)
        losses = []
        for _ in range(15):
            loss = torch.nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        assert losses[-1] < 0.5 * losses[0]


FUSIONS = ("mean", "channel_weighted_mean")


def parallel_step(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    batch = torch.load(f"{folder}/images.pt", weights_only=True)
    for how in FUSIONS:
        model = DistributedDataParallel(torch.load(f"{folder}/{how}.pt", weights_only=False))
        model.module.set_grad_checkpointing()
        # Two steps: a parameter marked ready twice, or never, fails in the second.
        for _ in range(2):
            model.zero_grad()
            model(batch[rank::2]).square().mean().backward()
        torch.save([parameter.grad for parameter in model.module.parameters()], f"{folder}/{how}{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_average_the_gradients_of_shared_tensors(tmp_path, small_vit):
    images = torch.randn(4, 3, 28, 28, generator=torch.Generator().manual_seed(2))
    models = {how: fuse(small_vit(depth=4), how) for how in FUSIONS}
    for how, model in models.items():
        torch.save(model, tmp_path / f"{how}.pt")
    torch.save(images, tmp_path / "images.pt")
    torch.multiprocessing.spawn(parallel_step, (str(tmp_path),), nprocs=2)
    for how, model in models.items():
        expected = []
        for rank in range(2):
            model.zero_grad()
            model(images[rank::2]).square().mean().backward()
            expected.append([parameter.grad.clone() for parameter in model.parameters()])
        for rank in range(2):
            found = torch.load(tmp_path / f"{how}{rank}.pt", weights_only=True)
            for gradient, first, second in zip(found, *expected, strict=True):
                torch.testing.assert_close(gradient, (first + second) / 2)
