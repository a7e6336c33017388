"""Serve images within a latency budget by changing the width of one network from request to request.

    python examples/subspaces/serve_under_budget.py --budget-ms 60

The network is in memory once; a level costs no copy and no reload. A controller takes the widest level whose
latency fits the budget, learns latencies from the requests themselves, and narrows the network when something
else needs the processor (here: a thread that multiplies matrices for a while). Pass --checkpoint to serve trained
weights; without one the weights are random, which changes answers and not times.
"""  # noqa: E501

from __future__ import annotations

import argparse
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import timm
import torch

import graftwork.timm  # noqa: F401  registers the variants
from graftwork_subspaces import CompressibleNet

WIDTHS = (0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)


@dataclass
class BudgetController:
    """Chooses the widest level that is expected to fit a latency budget.

    Args:
        budget: Seconds per request.
        widths: Levels, ascending.
        memory: Share of the old estimate that a new measurement leaves in place.
    """

    budget: float
    widths: tuple[float, ...] = WIDTHS
    memory: float = 0.5
    expected: list[float] = field(default_factory=list)
    slowdown: float = 1.0

    def calibrate(self, seconds: list[float]) -> None:
        """Take the latencies of an undisturbed machine, one per level."""
        self.expected = seconds

    def choose(self) -> int:
        """Return the number of the level for the next request; the narrowest if none fits."""
        fitting = [i for i, s in enumerate(self.expected) if s * self.slowdown <= self.budget]
        return max(fitting, default=0)

    def observe(self, level: int, seconds: float) -> None:
        """Learn from a request how much slower the machine is than when it was calibrated."""
        measured = seconds / self.expected[level]
        self.slowdown = max(1.0, self.memory * self.slowdown + (1 - self.memory) * measured)


@contextmanager
def disturbance(active: bool) -> Iterator[None]:
    """Keep a processor core busy with something else."""
    stop = threading.Event()

    def work() -> None:
        matrix = torch.randn(512, 512)
        while not stop.is_set():
            matrix @ matrix

    threads = [threading.Thread(target=work, daemon=True) for _ in range(2 if active else 0)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


@torch.no_grad()
def request(net: CompressibleNet, images: torch.Tensor, width: float) -> float:
    """Serve one request at a width and return its latency in seconds."""
    started = time.perf_counter()
    with net.at(width=width):
        net(images)
    return time.perf_counter() - started


def main() -> None:
    """Serve three phases of requests, undisturbed, disturbed, undisturbed, and print what happened."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="resnet18_lcs_width_line")
    parser.add_argument("--checkpoint", help="weights of that model, as timm loads them")
    parser.add_argument("--budget-ms", type=float, help="twice the narrowest level's latency if left out")
    parser.add_argument("--requests", type=int, default=60, help="per phase")
    options = parser.parse_args()

    net = timm.create_model(options.model, checkpoint_path=options.checkpoint or "").eval()
    images = torch.randn(1, *net.pretrained_cfg["input_size"])
    alone = []
    for width in WIDTHS:
        request(net, images, width)
        alone.append(statistics.median(request(net, images, width) for _ in range(5)))
    budget = options.budget_ms / 1e3 if options.budget_ms else 2 * alone[0]
    controller = BudgetController(budget)
    controller.calibrate(alone)

    print(f"{options.model}, budget {1e3 * budget:.1f} ms per request")
    print("undisturbed:", "  ".join(f"width {w:g} {1e3 * s:.1f} ms" for w, s in zip(WIDTHS, alone)))
    print(
        f"{'phase':<12}{'requests':>9}{'mean width':>12}{'median ms':>11}{'in budget':>11}{'width 1 in budget':>19}"  # noqa: E501
    )
    for phase, busy in (("quiet", False), ("disturbed", True), ("quiet again", False)):
        widths, times, widest = [], [], []
        with disturbance(busy):
            for number in range(options.requests):
                level = controller.choose()
                seconds = request(net, images, WIDTHS[level])
                controller.observe(level, seconds)
                widths.append(WIDTHS[level])
                times.append(seconds)
                if number % 5 == 0:  # what a fixed network would have done at the same moment
                    widest.append(request(net, images, 1.0))
        inside = sum(t <= budget for t in times) / len(times)
        fixed = sum(t <= budget for t in widest) / len(widest)
        print(
            f"{phase:<12}{len(times):>9}{statistics.fmean(widths):>12.3f}{1e3 * statistics.median(times):>11.1f}"  # noqa: E501
            f"{inside:>11.0%}{fixed:>19.0%}"
        )


if __name__ == "__main__":
    main()
