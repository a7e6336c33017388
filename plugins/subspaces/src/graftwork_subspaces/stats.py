"""What a level costs: nominal compression beside measured latency; the one does not tell the other."""

from __future__ import annotations

import copy
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from graftwork_subspaces.levels import Level
from graftwork_subspaces.materialize import RoundedInput, materialize
from graftwork_subspaces.quant import QuantLevel
from graftwork_subspaces.wrap import image_size

if TYPE_CHECKING:
    from graftwork_subspaces.net import CompressibleNet


@dataclass(frozen=True)
class LevelStats:
    """What one level of a network costs.

    Args:
        level: Name and value, such as ``"width 0.5"``.
        alpha: Position.
        weights: Weights of convolutions and linear layers of the whole network.
        kept: Those that are there and not zero at this level.
        weight_bytes: Storage of the level's weights: sparse layers as CSR with 32-bit indices, rounded layers
            packed at their bits, the others as float32. Without biases, norms and scales.
        resident_bytes: Memory of all parameters that the network keeps so that every level stays in reach.
        macs: Multiply-accumulates of one image in ordinary layers, zeros included.
        macs_nonzero: Those with a weight that is not zero.
        latency: Measured seconds for one image in ordinary layers, the median; None if not measured.
        measured_on: Device and threads of that measurement.
    """

    level: str
    alpha: float
    weights: int
    kept: int
    weight_bytes: int
    resident_bytes: int
    macs: int
    macs_nonzero: int
    latency: float | None
    measured_on: str

    @property
    def sparsity(self) -> float:
        """Share of the weights that are missing or zero."""
        return 1 - self.kept / self.weights

    def __str__(self) -> str:
        mib = 2**20
        lines = [
            f"{self.level} (alpha {self.alpha:.3g}): {self.kept:,} of {self.weights:,} weights, "
            f"{100 * self.sparsity:.2f} % gone",
            f"stored: {self.weight_bytes / mib:.3f} MiB of weights; resident for all levels: "
            f"{self.resident_bytes / mib:.3f} MiB",
            f"nominal: {self.macs / 1e6:,.1f} M multiply-accumulates, {self.macs_nonzero / 1e6:,.1f} M with "
            "weights that are not zero",
        ]
        if self.latency is None:
            lines.append("latency: not measured")
        else:
            lines.append(f"measured: {self.latency * 1e3:.2f} ms per image on {self.measured_on}")
        return "\n".join(lines)


def level_stats(
    net: CompressibleNet, level: Level, input_size: tuple[int, int, int] | None, measure: bool
) -> LevelStats:
    """Return what a level costs; see :meth:`CompressibleNet.stats`."""
    plain = materialize(net, level, None, None)
    size = input_size or _recorded_size(net)
    device = next(net.parameters()).device
    layers = net.layers()
    total = sum(w.numel() for w in (layer.weight for layer in layers) if w is not None and w.ndim > 1)
    resident = [tensor for layer in layers for tensor in (*layer.parameters(), *layer.buffers())]
    kept = sum(int(layer.weight.count_nonzero()) for layer in _weighted(plain))
    macs, nonzero = _count_macs(plain, size)
    threads = f"{device.type}, {torch.get_num_threads()} threads" if device.type == "cpu" else str(device)
    name = f"{net.settings.map.value_name} {level.value:g}"
    return LevelStats(
        level=name,
        alpha=level.alpha,
        weights=total,
        kept=total if net.settings.regime == "quant" else kept,
        weight_bytes=_stored_bytes(net, level, plain),
        resident_bytes=sum(tensor.numel() * tensor.element_size() for tensor in resident),
        macs=macs,
        macs_nonzero=nonzero,
        latency=_latency(plain, torch.zeros(1, *size, device=device)) if measure else None,
        measured_on=threads if measure else "",
    )


def _recorded_size(net: CompressibleNet) -> tuple[int, int, int]:
    holder = net if getattr(net, "pretrained_cfg", None) else net.model
    return image_size(holder)


def _weighted(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]


def _stored_bytes(net: CompressibleNet, level: Level, plain: nn.Module) -> int:
    total = 0
    for name, layer in net.named_layers().items():
        if layer.weight is None or layer.weight.ndim == 1:
            continue
        module: Any = plain.get_submodule(name)
        if isinstance(module, nn.Sequential):  # the rounding of the input stands before the layer
            module = module[-1]
        size = module.weight.numel()
        if layer.role == "block" and isinstance(level, QuantLevel):
            total += -(-size * level.bits[layer.index] // 8)
        elif layer.role == "block" and net.settings.regime == "sparse":
            csr = int(module.weight.count_nonzero()) * 8 + (module.weight.shape[0] + 1) * 4
            total += min(csr, size * 4)
        else:
            total += size * 4
    return total


def _count_macs(plain: nn.Module, size: tuple[int, int, int]) -> tuple[int, int]:
    """Count multiply-accumulates of one image, and those whose weight is not zero."""
    empty = [int(module.weight.numel() - module.weight.count_nonzero()) for module in _weighted(plain)]
    meta = copy.deepcopy(plain).to("meta")
    saved = 0
    handles = []
    for module, zeros in zip(_weighted(meta), empty):

        def count(module: Any, inputs: Any, output: torch.Tensor, zeros: int = zeros) -> None:
            nonlocal saved
            positions = output.numel() // module.weight.shape[0]
            saved += zeros * positions

        handles.append(module.register_forward_hook(count))
    for module in meta.modules():
        if isinstance(module, RoundedInput):  # costs no multiply-accumulate
            module.forward = lambda x: x  # type: ignore[method-assign]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        meta(torch.zeros(1, *size, device="meta"))
    macs = int(counter.get_total_flops()) // 2
    return macs, macs - saved


@torch.no_grad()
def _latency(model: nn.Module, x: torch.Tensor, rounds: int = 10) -> float:
    """Return the median time of a forward pass in seconds."""
    synchronise = torch.cuda.synchronize if x.is_cuda else lambda: None
    times = []
    for number in range(rounds + 2):
        synchronise()
        started = time.perf_counter()
        model(x)
        synchronise()
        if number >= 2:  # the first calls allocate and choose kernels
            times.append(time.perf_counter() - started)
    return statistics.median(times)
