"""Clean virtual environments with our wheels in them, made in seconds from uv's cache, without a network."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import hatchling.build
import pytest

ROOT = Path(__file__).resolve().parents[1]
# what a developer's shell may hold and a stranger's does not
FOREIGN_VARIABLES = (
    "PYTHONPATH",
    "VIRTUAL_ENV",
    "UV_PROJECT_ENVIRONMENT",
    "PIP_FIND_LINKS",
    "GRAFTWORK_PLUGINS",
)


def clean_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if name not in FOREIGN_VARIABLES}
    return environment | {"PYTHONWARNINGS": "default"} | dict(extra or {})


@dataclass(frozen=True)
class Venv:
    """A virtual environment outside the workspace."""

    path: Path
    wheels: Path
    uv: str

    @property
    def bin(self) -> Path:
        return self.path / ("Scripts" if os.name == "nt" else "bin")

    def run(
        self, *words: str | Path, env: Mapping[str, str] | None = None, status: int | None = 0
    ) -> subprocess.CompletedProcess[str]:
        """Run one of the environment's programs and check its exit code."""
        done = subprocess.run(
            [str(self.bin / words[0]), *map(str, words[1:])],
            env=clean_environment(env),
            cwd=self.path,
            capture_output=True,
            text=True,
            timeout=300,
        )
        if status is not None:
            assert done.returncode == status, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def python(
        self, code: str, *, env: Mapping[str, str] | None = None, status: int | None = 0
    ) -> subprocess.CompletedProcess[str]:
        return self.run("python", "-c", textwrap.dedent(code), env=env, status=status)

    def pip(self, *words: str | Path) -> None:
        """Call plain pip, without an index: slower than `install`, and what users have."""
        self._call([sys.executable, "-m", "pip", "--python", str(self.bin / "python"), *map(str, words)])

    def install(self, *requirements: str | Path) -> None:
        """Install from our wheels with uv."""
        options = f"--offline --quiet --no-index --find-links {self.wheels} --python {self.bin / 'python'}"
        self._call([self.uv, "pip", "install", *options.split(), *map(str, requirements)])

    def _call(self, command: list[str]) -> None:
        environment = clean_environment({"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self.wheels)})
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

    def install_plugin(
        self,
        folder: Path,
        name: str,
        body: str,
        *,
        slug: str | None = None,
        requires: str = "graftwork>=1,<2",
        files: Mapping[str, str] | None = None,
    ) -> None:
        """Write a third-party distribution, build its wheel and install it."""
        module = name.replace("-", "_")
        project = folder / name
        (project / module).mkdir(parents=True)
        (project / "pyproject.toml").write_text(
            textwrap.dedent(f"""
            [build-system]
            requires = ["hatchling"]
            build-backend = "hatchling.build"
            [project]
            name = "{name}"
            version = "0.3"
            dependencies = ["{requires}"]
            [project.entry-points.graftwork]
            {slug or name} = "{module}.plugin"
            [tool.hatch.build.targets.wheel]
            packages = ["{module}"]
            """)
        )
        (project / module / "__init__.py").touch()
        (project / module / "plugin.py").write_text(textwrap.dedent(body))
        for file, text in (files or {}).items():
            (project / module / file).write_text(textwrap.dedent(text))
        with contextlib.chdir(project):
            wheel = hatchling.build.build_wheel(str(project))
        self.install("--no-deps", project / wheel)

    def uninstall(self, *names: str) -> None:
        self._call([self.uv, "pip", "uninstall", "--quiet", "--python", str(self.bin / "python"), *names])


@pytest.fixture(scope="session")
def uv() -> str:
    found = os.environ.get("UV") or shutil.which("uv")
    if found is None:
        pytest.skip("uv is not on PATH; run the tests with `uv run pytest`")
    return found


@pytest.fixture(scope="session")
def wheels(uv: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wheels of the core and of every plugin, built from the workspace."""
    out = tmp_path_factory.mktemp("wheels")
    command = [uv, "build", "--all-packages", "--wheel", "--offline", "--quiet", "--out-dir", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="session")
def new_venv(uv: str, wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Venv]:
    """Make a venv with the locked third-party packages that one member needs and nothing of the workspace."""

    def make(member: str, *extras: str) -> Venv:
        path = tmp_path_factory.mktemp("venv") / "v"
        command = [uv, "sync", "--frozen", "--offline", "--quiet", "--no-install-workspace"]
        command += ["--no-default-groups", "--package", member, "--python", sys.executable]
        for extra in extras:
            command += ["--extra", extra]
        environment = clean_environment({"UV_PROJECT_ENVIRONMENT": str(path)})
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return Venv(path, wheels, uv)

    return make


@pytest.fixture(scope="session")
def core_venv(new_venv: Callable[..., Venv]) -> Venv:
    """A venv with the core's wheel alone; who installs something into it removes it again."""
    venv = new_venv("graftwork")
    venv.install("graftwork")
    return venv


@pytest.fixture(scope="session")
def spin_venv(new_venv: Callable[..., Venv]) -> Venv:
    """A venv with SPIN's wheel, by plain pip; who installs something into it removes it again.

    Shared, because the first import of torch in a fresh venv compiles thousands of files.
    """
    venv = new_venv("graftwork-spin")
    venv.pip("install", "graftwork-spin")
    return venv
