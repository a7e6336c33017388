"""Fixtures for testing plugins. Inert until used: nothing is automatic, no framework is imported."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType

import pytest

# the contracts are written with plain asserts; a failure must show the values that were compared
pytest.register_assert_rewrite(
    *(f"graftwork.testing.{contract}" for contract in ("model", "op", "plugin", "sampler"))
)


def pytest_configure(config: pytest.Config) -> None:
    """Declare the markers that contracts put on their own tests, for projects with strict markers."""
    for marker in ("gpu: needs a CUDA device", "slow: takes long; leave out with -m 'not slow'"):
        config.addinivalue_line("markers", marker)


@pytest.fixture
def fresh_python(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a snippet in a clean interpreter: ``fresh_python(code, env=None, args=(), returncode=0)``.

    The snippet runs in the test's ``tmp_path``, without the ``GRAFTWORK_*`` variables of this process. The
    result has ``stdout`` and ``stderr``. An exit code other than ``returncode`` fails the test; None accepts
    any.
    """
    from graftwork.testing.interpreter import run_python

    def run(
        code: str,
        *,
        env: Mapping[str, str] | None = None,
        args: Sequence[str] = (),
        returncode: int | None = 0,
        timeout: float = 300.0,
    ) -> subprocess.CompletedProcess[str]:
        result = run_python(code, args=args, env=env, cwd=tmp_path, timeout=timeout)
        if returncode is not None and result.returncode != returncode:
            pytest.fail(
                f"the snippet exited with {result.returncode}, expected {returncode}\n"
                f"--- snippet\n{code}\n--- stdout\n{result.stdout}\n--- stderr\n{result.stderr}"
            )
        return result

    return run


@pytest.fixture
def isolated_plugins(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """Give a catalogue without the installed plugins; what the test registers is forgotten afterwards.

    The fixture is the module ``graftwork.catalog``: ``isolated_plugins.register(plugin, "mine")``. Variants
    that were registered with timm before stay there; those that the test adds are taken out again.
    """
    from graftwork import catalog
    from graftwork.discovery import ALLOW_VARIABLE
    from graftwork.testing.isolation import preserved_catalogue, preserved_timm

    monkeypatch.setenv(ALLOW_VARIABLE, "")
    with preserved_timm(), preserved_catalogue():
        yield catalog
