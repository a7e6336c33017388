"""The measured tables of the renderers."""

from __future__ import annotations

from graftwork.bench import Bench


def bench(bench: Bench) -> None:
    """Measure the renderers."""
    bench.report.text("No part has been run.")
