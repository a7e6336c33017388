"""Running a contract from Python: for notebooks, and for testing contracts themselves."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import pytest

_under_test: list[type] = []


class _Recorder:
    def __init__(self) -> None:
        self.outcomes: dict[str, str] = {}
        self.messages: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = report.nodeid.rpartition("::")[2]
        if report.when == "call" or not report.passed:
            self.outcomes[name] = report.outcome
            self.messages[name] = report.longreprtext

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.outcomes["collection"] = "failed"
            self.messages["collection"] = report.longreprtext


class Outcomes(dict[str, str]):
    """Outcome by check: ``"passed"``, ``"failed"`` or ``"skipped"``.

    Args:
        outcomes: Outcome by test id, without the class.
        messages: What pytest prints for it.
    """

    def __init__(self, outcomes: dict[str, str], messages: dict[str, str]) -> None:
        super().__init__(outcomes)
        self.messages = messages

    def checks(self, outcome: str) -> set[str]:
        """Return the checks with an outcome, without their parameters."""
        return {name.partition("[")[0] for name, found in self.items() if found == outcome}


def run_contract(contract: type, *options: str) -> Outcomes:
    """Run every check of a contract in this process, in a pytest session of its own.

    Example:
        >>> class MyModel(ModelContract):  # doctest: +SKIP
        ...     variant = "my_model"
        >>> run_contract(MyModel).checks("failed")  # doctest: +SKIP
        {'test_every_parameter_gets_a_gradient'}

    Args:
        contract: A subclass of one of the contracts.
        options: Command-line options of pytest, such as ``"-k", "torchscript"``.

    Returns:
        What became of each check.
    """
    recorder = _Recorder()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, f"test_{Path(folder).name}.py")
        file.write_text(
            "from graftwork.testing.outcomes import _under_test\nTestContract = _under_test[-1]\n",
            encoding="utf-8",
        )
        Path(folder, "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
        _under_test.append(contract)
        try:
            # the outer session's terminal and alarm must stay as they are
            off = [
                word
                for name in ("cacheprovider", "terminal", "timeout", "logging")
                for word in ("-p", f"no:{name}")
            ]
            config = [f"--rootdir={folder}", f"--config-file={folder}/pytest.ini", "--import-mode=importlib"]
            pytest.main([str(file), *config, *off, *options], plugins=[recorder])
        finally:
            _under_test.pop()
            sys.modules.pop(file.stem, None)
    return Outcomes(recorder.outcomes, recorder.messages)
