"""Python snippets in an interpreter that shares nothing with this one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path


def run_python(
    code: str,
    *,
    args: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout: float = 300.0,
) -> subprocess.CompletedProcess[str]:
    """Run a snippet in a new interpreter of the same environment.

    Variables named ``GRAFTWORK_*`` are not inherited, so a setting of the calling shell cannot decide a test.

    Args:
        code: Source text, as for ``python -c``.
        args: Becomes ``sys.argv[1:]``.
        env: Variables to set on top of the inherited ones.
        cwd: Folder to run in.
        timeout: Seconds.

    Returns:
        The finished process with its text output; the exit code is not looked at.
    """
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("GRAFTWORK_")}
    return subprocess.run(
        [sys.executable, "-c", code, *args],
        env={**inherited, **(env or {})},
        cwd=cwd,
        timeout=timeout,
        capture_output=True,
        text=True,
        check=False,
    )
