"""Benchmark: one layer against its peers ("layer"), whole networks ("network"), equal cost ("accuracy")."""

from __future__ import annotations

from graftwork.bench import Bench
from graftwork_butterfly.bench.accuracy import measure_accuracy
from graftwork_butterfly.bench.layer import measure_layers
from graftwork_butterfly.bench.network import measure_networks


def bench(bench: Bench) -> None:
    """Run the parts asked for.

    Args:
        bench: Where to report, what to run, and on what.
    """
    if bench.wants("layer"):
        measure_layers(bench)
    if bench.wants("network"):
        measure_networks(bench)
    if bench.wants("accuracy"):
        measure_accuracy(bench)
