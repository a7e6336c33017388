"""Benchmark, in parts: "switching", "latency", "training" and "accuracy"."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from graftwork.bench import Bench, Timing
from graftwork_subspaces import networks
from graftwork_subspaces.accuracy import measure_accuracy
from graftwork_subspaces.net import CompressibleNet
from graftwork_subspaces.training import calibrate, loss_step
from graftwork_subspaces.wrap import wrap

REACH_MS = 30.0
"""A level of a network of 10.6 million weights is to be reached in this time."""
FASTER = 5.0
"""Width 1/4 is to be this much faster than width 1."""

Options = dict[str, Any]


def bench(bench: Bench) -> None:
    """Run the parts asked for.

    Args:
        bench: Where to report, what to run, and on what.
    """
    for part, measure in (
        ("switching", _switching),
        ("latency", _latency),
        ("training", _training),
        ("accuracy", measure_accuracy),
    ):
        if bench.wants(part):
            measure(bench)


def _resnet18(bench: Bench, *, classes: int = 1000) -> networks.PaperNet:
    torch.manual_seed(bench.seed)
    small: Options = {"channels": (8, 8, 16, 16)} if bench.quick else {}
    return networks.resnet18(num_classes=classes, in_chans=3, global_pool="avg", drop_rate=0.0, **small)


def _wrapped(bench: Bench, regime: str, subspace: str) -> CompressibleNet:
    side = _side(bench)
    net = wrap(
        _resnet18(bench),
        regime=regime,  # type: ignore[arg-type]
        subspace=subspace,  # type: ignore[arg-type]
        multiple=1,
        input_size=(3, side, side),
    )
    return net.to(bench.device).eval()


def _side(bench: Bench) -> int:
    return 64 if bench.quick else 224


def _positions() -> Iterator[float]:
    """Yield positions that never come back, so that no kept level is met by chance."""
    position = 0.5
    while True:
        position = (position + 0.6180339887) % 1
        yield position


# switching


def _switching(bench: Bench) -> None:
    bench.report.heading("Switching to another level")
    nets: dict[str, CompressibleNet] = {}
    for regime, subspace in (("width", "line"), ("sparse", "line"), ("sparse", "point"), ("quant", "line")):
        nets[f"{regime} {subspace}"] = _wrapped(bench, regime, subspace)
    nets["sparse line, ends in half precision"] = _wrapped(bench, "sparse", "line").store_half()
    seconds_of_table = {}
    for label, net in nets.items():
        if net.settings.regime == "sparse":
            started = time.perf_counter()
            net.tabulate(5 if bench.quick else 33)
            seconds_of_table[label] = time.perf_counter() - started
    weights = sum(p.numel() for n, p in nets["sparse point"].named_parameters() if p.ndim > 1)
    bench.report.text(
        f"ResNet-18, {weights:,} weights, one thread. A *new* level is one that was not visited before; a "
        "*kept* "
        f"one is among the four visited last. Aim: any level within {REACH_MS:g} ms for 10.6 million weights."
    )
    rows = []
    with bench.torch_threads(1):
        timings = _time_switches(bench, nets)
        for label, net in nets.items():
            new, kept = timings[f"{label}: new"], timings[f"{label}: kept"]
            resident = sum(t.numel() * t.element_size() for t in net.state_dict().values()) / 2**20
            table = seconds_of_table.get(label)
            reached = "yes" if 1000 * new.median <= REACH_MS else "no"
            rows.append(
                [label, 1000 * new.median, 1000 * new.p95, 1000 * kept.median, resident, table, reached]
            )
        bench.report.table(
            "Time to reach a level",
            [
                "network",
                "new: median ms",
                "new: p95 ms",
                "kept: median ms",
                "resident MiB",
                "table, once, s",
                "aim",
            ],
            rows,
        )
        _slow_ways(bench, nets["sparse line"])


def _time_switches(bench: Bench, nets: dict[str, CompressibleNet]) -> dict[str, Timing]:
    candidates: dict[str, Callable[[], object]] = {}
    for label, net in nets.items():
        candidates[f"{label}: new"] = partial(_enter_new, net, _positions())
        candidates[f"{label}: kept"] = partial(_enter, net, 0.5)
    return bench.compare(candidates, seconds=2.0, min_rounds=15)


def _enter(net: CompressibleNet, alpha: float) -> None:
    with net.at(alpha):
        pass


def _enter_new(net: CompressibleNet, positions: Iterator[float]) -> None:
    _enter(net, next(positions))


def _slow_ways(bench: Bench, net: CompressibleNet) -> None:
    """Time what a table saves: exact selection, and a full sort of every layer."""
    blocks = [layer for layer in net.layers() if layer.role == "block"]

    def sort() -> None:
        level = net.make_level(0.3, net.settings.map.value(0.3))
        for layer in blocks:
            weight = layer.on_line("weight", level.position)
            assert weight is not None
            magnitude = weight.detach().abs().flatten()
            threshold = magnitude.sort().values[level.zeros[layer.index] - 1]
            weight * (weight.abs() > threshold)

    def exact(positions: Iterator[float]) -> None:
        with net.at(next(positions), exact=True):
            pass

    with torch.no_grad():
        timings = bench.compare(
            {"exact selection (at(..., exact=True))": partial(exact, _positions()), "full sort": sort},
            seconds=0.0,
            min_rounds=2,
            warmup=0,
        )
    rows = [[label, 1000 * timing.median, timing.rounds] for label, timing in timings.items()]
    bench.report.table("Without a table, sparse line", ["way", "median ms", "rounds"], rows)


# latency


def _latency(bench: Bench) -> None:
    side = _side(bench)
    bench.report.heading("Latency of a forward pass")
    bench.report.text(
        f"ResNet-18, one image of {side} x {side}, float32 unless said otherwise, ordinary modules from "
        "`net.materialize`. Random weights: the time does not depend on their values, only on where zeros "
        "are. "
        f"Aim: width 1/4 at least {FASTER:g} times faster than width 1."
    )
    images = torch.randn(1, 3, side, side, device=bench.device)
    forms = _forms(bench, images)
    rows = []
    for threads in bench.threads if bench.device == "cpu" else (1,):
        with bench.torch_threads(threads), torch.inference_mode():
            timings = bench.compare(
                {label: partial(model, images) for label, model in forms.items()}, seconds=1.0, min_rounds=9
            )
        base = timings["width 1, sliced"].median
        for label, timing in timings.items():
            rows.append([label, threads, 1000 * timing.median, base / timing.median, timing.rounds])
    bench.report.table(
        "Latency by level and form",
        ["level, form", "threads", "median ms", "times faster than width 1", "rounds"],
        rows,
    )
    ratios = [row[3] for row in rows if row[0] == "width 0.25, sliced"]
    bench.report.text(
        f"Width 1/4 is {min(map(float, ratios)):.1f} times faster than width 1 in the worst of these rows; "
        "the "
        f"aim of {FASTER:g} is {'met' if min(map(float, ratios)) >= FASTER else 'missed'}."
    )


def _forms(bench: Bench, images: Tensor) -> dict[str, nn.Module]:
    forms: dict[str, nn.Module] = {"plain network, batch norm": _resnet18(bench).to(bench.device).eval()}
    width = _wrapped(bench, "width", "line")
    for value in (1.0, 0.75, 0.5, 0.25):
        forms[f"width {value:g}, sliced"] = width.materialize(width=value)
    sparse = _wrapped(bench, "sparse", "point")
    for kept in (1.0, 0.1, 0.025):
        forms[f"kept {kept:g}, dense"] = sparse.materialize(kept=kept)
    for kept in (0.1, 0.025):
        forms[f"kept {kept:g}, csr"] = sparse.materialize(kept=kept, format="csr")
    quant = _wrapped(bench, "quant", "point")
    calibrate(quant, [images])
    forms["8 bits, dense (rounded floats)"] = quant.materialize(bits=8)
    if bench.device == "cpu":
        for bits in (8, 4) if torch.cpu._is_vnni_supported() else (7, 4):
            forms[f"{bits} bits, int8"] = quant.materialize(bits=bits, format="int8")
    return forms


# training


def _training(bench: Bench) -> None:
    batch = 8 if bench.quick else 32
    bench.report.heading("Cost of training")
    bench.report.text(
        f"cPreResNet-20, batches of {batch} images of 32 x 32, forward, backward and optimiser step. A "
        "width step "
        "visits four levels, the others one. Sparse and quantised levels are those of the end of the warm-up."
    )
    x = torch.randn(batch, 3, 32, 32, device=bench.device)
    y = torch.randint(0, 10, (batch,), device=bench.device)
    steps: dict[str, Callable[[], object]] = {}
    memory: list[list[str | int | float]] = []
    for label, net in _trainees(bench).items():
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9)
        step = partial(_step, net, optimizer, x, y)
        step()
        steps[label] = step
        memory.append([label, *_memory(net, optimizer, x, y)])
    threads = bench.threads[-1] if bench.device == "cpu" else 1
    with bench.torch_threads(threads):
        timings = bench.compare(steps, seconds=1.5, min_rounds=7)
    base = timings["plain, batch norm"].median
    rows = [[label, 1000 * t.median, t.median / base, t.rounds] for label, t in timings.items()]
    bench.report.table(
        f"Step time, {threads} threads", ["network", "median ms", "ratio to plain", "rounds"], rows
    )
    bench.report.table(
        "Memory in training",
        ["network", "parameters MiB", "optimiser MiB", "activations kept for backward MiB"],
        memory,
    )


def _trainees(bench: Bench) -> dict[str, nn.Module]:
    def base() -> networks.PaperNet:
        torch.manual_seed(bench.seed)
        small: Options = {"channels": (4, 8, 8), "blocks": 1} if bench.quick else {}
        return networks.cpreresnet20(num_classes=10, in_chans=3, global_pool="avg", drop_rate=0.0, **small)

    nets: dict[str, nn.Module] = {"plain, batch norm": base()}
    for regime in ("sparse", "quant", "width"):
        for subspace in ("point", "line"):
            nets[f"{regime} {subspace}"] = wrap(
                base(),
                regime=regime,  # type: ignore[arg-type]
                subspace=subspace,  # type: ignore[arg-type]
                multiple=1,
                input_size=(3, 32, 32),
                warmup=0.0,
            )
    return {label: net.to(bench.device).train() for label, net in nets.items()}


def _backward(net: nn.Module, x: Tensor, y: Tensor) -> None:
    if isinstance(net, CompressibleNet):
        loss_step(net, x, y, step=0, total_steps=1)
    else:
        functional.cross_entropy(net(x), y).backward()  # type: ignore[no-untyped-call]


def _step(net: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    _backward(net, x, y)
    optimizer.step()


def _memory(
    net: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor
) -> tuple[float, float, float]:
    """Return MiB of parameters, optimiser state, and the most that activations hold at one time."""
    own = {parameter.untyped_storage().data_ptr() for parameter in net.parameters()}
    held: dict[int, int] = {}
    most = 0

    class Kept:
        """A tensor held for the backward pass; counted until it is let go."""

        def __init__(self, tensor: Tensor) -> None:
            nonlocal most
            self.tensor = tensor
            storage = tensor.untyped_storage()
            self.key = storage.data_ptr()
            self.counts = self.key not in own and self.key not in held
            if self.counts:
                held[self.key] = storage.nbytes()
                most = max(most, sum(held.values()))

        def __del__(self) -> None:
            if self.counts:
                held.pop(self.key, None)

    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
        _backward(net, x, y)
    net.zero_grad(set_to_none=True)
    parameters = sum(p.numel() * p.element_size() for p in net.parameters())
    states = [t for state in optimizer.state.values() for t in state.values() if isinstance(t, Tensor)]
    optimiser = sum(t.numel() * t.element_size() for t in states)
    return parameters / 2**20, optimiser / 2**20, most / 2**20
