"""Demonstrations: a method's main job on data that needs no download, in minutes on a CPU.

A plugin names its scene under the entry-point group ``graftwork.demo``; it is called with a :class:`Stage`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from graftwork.bench import machine, progress
from graftwork.contributed import Contribution, find, run_each
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


def run_demos(methods: Sequence[str], out: Path, *, quick: bool, seed: int, device: str) -> int:
    """Run the scenes of the named plugins, or of all, each into a folder and report of its own.

    Args:
        methods: Plugin slugs; empty for all.
        out: Folder that gets one sub-folder per method.
        quick: Only prove that the scenes run.
        seed: Seed for weights and data order.
        device: Where to train.

    Returns:
        0 if every scene ran, 1 if one failed, 2 if a name is unknown.
    """
    scenes = find("graftwork.demo", methods, needs=("torch", "matplotlib", "sklearn", "tqdm"), extra="demo")
    if isinstance(scenes, int):
        return scenes

    def run(scene: Contribution) -> Path:
        folder = out / scene.slug
        report = Report(folder, f"graftwork demo {scene.slug}")
        report.text(machine())
        started = time.perf_counter()
        scene.load()(Stage(report, quick=quick, seed=seed, device=device))
        report.text(f"Took {time.perf_counter() - started:.0f} s: `graftwork demo {scene.slug}`.")
        return report.write()

    return run_each("demo", scenes, run)
