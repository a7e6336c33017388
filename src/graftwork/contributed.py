"""Demo scenes and benchmarks: code that plugins contribute to the command line through entry points."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from graftwork.catalog import STRICT_VARIABLE
from graftwork.discovery import Selection, normalise, scan


@dataclass(frozen=True)
class Contribution:
    """A callable that a plugin names under an entry-point group.

    Args:
        slug: Slug of the plugin.
        target: ``"package.module:function"``.
    """

    slug: str
    target: str

    def load(self) -> Callable[..., Any]:
        """Import it."""
        module, _, attribute = self.target.partition(":")
        function: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
        return function


def find(group: str, methods: Sequence[str], *, needs: Sequence[str], extra: str) -> list[Contribution] | int:
    """Find the contributions of the named plugins.

    Args:
        group: Entry-point group.
        methods: Slugs; empty for every admitted plugin.
        needs: Modules that must be importable.
        extra: Extra of the core that brings them.

    Returns:
        The contributions in the order asked for, or the exit code 2 after an explanation on standard error.
    """
    missing = [name for name in needs if find_spec(name) is None]
    if missing:
        print(
            f"graftwork: {', '.join(missing)} missing; `pip install 'graftwork[{extra}]'` brings them.",
            file=sys.stderr,
        )
        return 2
    selection = Selection.from_environment()
    candidates, _ = scan(group)
    known = {c.slug: Contribution(c.slug, c.module) for c in candidates if selection.admits(c.names())}
    if not known:
        print(f"graftwork: no installed plugin has a {group.partition('.')[2]}.", file=sys.stderr)
        return 2
    by_name = {normalise(slug): contribution for slug, contribution in known.items()}
    unknown = [method for method in methods if normalise(method) not in by_name]
    if unknown:
        print(
            f"graftwork: no {group.partition('.')[2]} for {', '.join(unknown)}; "
            f"there is one for: {', '.join(known)}.",
            file=sys.stderr,
        )
        return 2
    return [by_name[normalise(method)] for method in methods] or list(known.values())


def run_each(command: str, contributions: Sequence[Contribution], run: Callable[[Contribution], Path]) -> int:
    """Run each contribution; one that fails does not keep the others from running.

    Args:
        command: Sub-command, for messages.
        contributions: What to run.
        run: Runs one and returns the path of its report.

    Returns:
        0, or 1 if any failed.
    """
    failed = []
    for number, contribution in enumerate(contributions, 1):
        if len(contributions) > 1:
            print(f"\n[{number}/{len(contributions)}] graftwork {command} {contribution.slug}", flush=True)
        try:
            path = run(contribution)
        except Exception as error:  # foreign code; the others still get their turn
            if os.environ.get(STRICT_VARIABLE, "") not in ("", "0"):
                raise
            traceback.print_exc()
            failed.append(contribution.slug)
            print(
                f"graftwork {command} {contribution.slug} failed: {type(error).__name__}: {error}",
                file=sys.stderr,
            )
        else:
            print(f"report: {path.resolve()}", flush=True)
    if failed:
        print(f"graftwork {command}: failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0
