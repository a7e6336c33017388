"""One training step: gradients of all levels, memory of one, precision, accumulation, several processes."""

from __future__ import annotations

import gc
import os
import socket
import weakref

import pytest
import torch
import torch.multiprocessing as multiprocessing
from torch import nn
from torch.nn import functional

from graftwork_subspaces import Fixed, learning_rate, loss_step, step_levels, wrap
from graftwork_subspaces.digits import DigitsNet
from graftwork_subspaces.training import unwrap

REGIMES = ("sparse", "width", "quant")


def digits(regime="width", subspace="line", **options):
    torch.manual_seed(0)
    return wrap(DigitsNet(), regime=regime, subspace=subspace, input_size=(1, 8, 8), multiple=1, **options)


def batch(size=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(size, 1, 8, 8, generator=generator)
    return images, torch.randint(0, 10, (size,), generator=generator)


def gradients(net):
    return {name: parameter.grad.clone() for name, parameter in net.named_parameters()}


def assert_equal_gradients(first, second, **tolerance):
    for name in first:
        torch.testing.assert_close(
            first[name], second[name], msg=lambda text, n=name: f"{n}: {text}", **tolerance
        )


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("subspace", ["line", "point"])
def test_step_adds_the_gradient_of_the_sum_over_levels_and_regulariser(regime, subspace):
    net = digits(regime, subspace, beta=0.5).train()
    x, y = batch()
    net.zero_grad()
    step = loss_step(net, x, y, step=90, total_steps=100, seed=3)
    ours = gradients(net)
    net.zero_grad()
    total = torch.zeros(())
    for level in step_levels(net, 90, 100, seed=3):
        with net.context.enter(level):
            total = total + functional.cross_entropy(net(x), y)
    penalty = net.regulariser()
    total = total if penalty is None else total + penalty
    total.backward()
    if regime != "quant":  # ranges of layer inputs moved in between
        assert_equal_gradients(ours, gradients(net), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(step.total, total.detach(), rtol=1e-4, atol=1e-5)
    assert (step.regulariser is None) == (subspace == "point")
    assert len(step.losses) == (4 if regime == "width" else 1)


def test_mean_reduction_divides_by_the_number_of_levels():
    net, (x, y) = digits("width", "point").train(), batch()
    loss_step(net, x, y, step=0, total_steps=10)
    summed = gradients(net)
    net.zero_grad()
    loss_step(net, x, y, step=0, total_steps=10, reduction="mean")
    assert_equal_gradients(summed, {name: 4 * grad for name, grad in gradients(net).items()})


def test_activations_of_one_level_are_gone_before_the_next():
    """Backward per level: the memory of four levels is that of one."""
    net, (x, y) = digits("width").train(), batch()
    outputs: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []

    def criterion(logits, target):
        gc.collect()
        alive.append(sum(ref() is not None for ref in outputs))
        outputs.append(weakref.ref(logits))
        return functional.cross_entropy(logits, target)

    loss_step(net, x, y, criterion, step=0, total_steps=10)
    assert len(alive) == 4 and max(alive) == 0


def test_accumulated_micro_batches_equal_one_batch():
    net, (x, y) = digits("width").train(), batch(8)
    loss_step(net, x, y, step=2, total_steps=10)
    whole = gradients(net)
    net.zero_grad()
    for micro in range(2):
        half = slice(4 * micro, 4 * micro + 4)
        loss_step(net, x[half], y[half], step=2, total_steps=10, accumulate=2, micro=micro)
    assert_equal_gradients(whole, gradients(net), rtol=1e-4, atol=1e-6)


def test_autocast_and_loss_scale_leave_the_gradient_alone():
    net, (x, y) = digits("sparse").train(), batch()
    loss_step(net, x, y, step=95, total_steps=100)
    plain = gradients(net)
    net.zero_grad()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    loss_step(net, x, y, step=95, total_steps=100, scaler=scaler)
    assert_equal_gradients(plain, {n: g / 1024 for n, g in gradients(net).items()}, rtol=1e-4, atol=1e-6)
    net.zero_grad()
    loss_step(net, x, y, step=95, total_steps=100, amp_dtype=torch.bfloat16)
    for name, grad in gradients(net).items():
        assert grad.dtype == torch.float32 and bool(grad.isfinite().all()), name
        assert float(grad.norm()) == pytest.approx(float(plain[name].norm()), rel=0.5, abs=1e-3)


@pytest.mark.parametrize("regime", REGIMES)
def test_loss_falls_and_the_ends_stay_apart(regime):
    net, (x, y) = digits(regime).train(), batch(32)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for step in range(40):
        optimizer.zero_grad()
        losses.append(float(torch.stack(loss_step(net, x, y, step=step, total_steps=40).losses).mean()))
        optimizer.step()
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    assert float(net.regulariser().detach()) <= 1.0


def test_step_outside_training_is_refused():
    x, y = batch()
    with pytest.raises(ValueError, match=r"call net\.train"):
        loss_step(digits().eval(), x, y, step=0, total_steps=1)
    for wrong in ({"micro": 1}, {"step": 5}, {"reduction": "max"}):
        with pytest.raises(ValueError):
            loss_step(digits().train(), x, y, **{"step": 0, "total_steps": 1, **wrong})


def test_plain_model_is_refused():
    with pytest.raises(TypeError, match=r"graftwork_subspaces\.wrap"):
        loss_step(DigitsNet(), *batch(), step=0, total_steps=1)


def test_compiled_network_trains():
    torch._dynamo.reset()
    net, (x, y) = digits("sparse", sampler=Fixed((0.5,))).train(), batch()
    loss_step(net, x, y, step=0, total_steps=10)
    eager = gradients(net)
    net.zero_grad()
    compiled = torch.compile(net, backend="eager")
    assert unwrap(compiled) is net
    loss_step(compiled, x, y, step=0, total_steps=10)
    assert_equal_gradients(eager, gradients(net), rtol=1e-4, atol=1e-6)


def test_learning_rate_follows_the_paper():
    rates = [learning_rate(epoch, 200, 0.1) for epoch in range(200)]
    assert rates[:5] == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1])
    assert rates[5] == pytest.approx(0.1) and 0 < rates[-1] < 1e-4
    assert max(rates) == pytest.approx(0.1)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def ddp_worker(rank, port, folder):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port, RANK=str(rank), WORLD_SIZE="2")
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    net = digits("width").train()
    ddp = nn.parallel.DistributedDataParallel(net)
    reductions = 0

    def count(state, bucket):
        nonlocal reductions
        reductions += 1
        return torch.distributed.algorithms.ddp_comm_hooks.default_hooks.allreduce_hook(None, bucket)

    ddp.register_comm_hook(None, count)
    x, y = batch(8)
    mine = slice(4 * rank, 4 * rank + 4)
    step = loss_step(ddp, x[mine], y[mine], step=1, total_steps=10)
    per_rank = loss_step(ddp, x[mine], y[mine], step=1, total_steps=10, per_rank=True)
    net.zero_grad()
    before = reductions
    loss_step(ddp, x[mine], y[mine], step=1, total_steps=10)
    torch.save(
        {
            "grads": gradients(net),
            "alphas": [level.alpha for level in step.levels],
            "own": [level.alpha for level in per_rank.levels],
            "reductions": reductions - before,
        },
        f"{folder}/{rank}.pt",
    )
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_processes_share_levels_and_reduce_once_per_step(tmp_path):
    multiprocessing.spawn(ddp_worker, args=(free_port(), str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert first["alphas"] == second["alphas"] and first["own"] != second["own"]
    assert first["reductions"] == 1, "all levels but the last must not communicate"
    assert_equal_gradients(first["grads"], second["grads"])
    net, (x, y) = digits("width").train(), batch(8)
    loss_step(net, x, y, step=1, total_steps=10)
    assert_equal_gradients(gradients(net), first["grads"], rtol=1e-3, atol=1e-5)
