"""Demonstrations: a method's main job on data that needs no download, in minutes on a CPU.

A plugin names its scene under the entry-point group ``graftwork.demo``; it is called with a :class:`Stage`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from graftwork.bench import progress
from graftwork.report import Report


@dataclass
class Stage:
    """What a scene works with.

    Args:
        report: Where text, tables and pictures go.
        quick: A few seconds that only prove the scene runs.
        seed: Seed for weights and data order.
        device: Where to train.
    """

    report: Report
    quick: bool = False
    seed: int = 0
    device: str = "cpu"

    def progress(self, iterable: Iterable[int], label: str) -> Iterable[int]:
        """Wrap an iterable in a progress bar on standard error."""
        return progress(iterable, label)
