"""Wheels of the core and the plugins, installed with plain pip, work without the workspace."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MEMBERS = [path.parent.name for path in sorted((ROOT / "plugins").glob("*/pyproject.toml"))]
CREATE = "timm.create_model('convmixer_spin', dim=16, depth=2, num_classes=3)"


def test_every_member_gives_a_wheel(wheels):
    names = {path.name.partition("-")[0] for path in wheels.glob("*.whl")}
    assert names == {"graftwork", *(f"graftwork_{member.replace('-', '_')}" for member in MEMBERS)}


def test_only_autoload_runs_code_at_start_up(wheels):
    for wheel in wheels.glob("*.whl"):
        startup = {name for name in zipfile.ZipFile(wheel).namelist() if name.endswith((".pth", ".start"))}
        autoload = {"graftwork_autoload.pth", "graftwork_autoload.start"}
        assert startup == (autoload if wheel.name.startswith("graftwork_autoload") else set())


def test_wheels_hold_no_tests_and_every_typed_marker(wheels):
    for wheel in wheels.glob("*.whl"):
        names = zipfile.ZipFile(wheel).namelist()
        assert not [
            name
            for name in names
            if Path(name).name.startswith(("test_", "conftest")) and name.endswith("py")
        ]
        if not wheel.name.startswith(("graftwork_autoload", "graftwork_mmcv_ops")):
            assert [name for name in names if name.endswith("py.typed")], wheel.name


def test_plain_pip_installs_a_plugin_that_works_without_the_workspace(spin_venv):
    venv = spin_venv
    assert venv.run("graftwork", "list").stdout.count("convmixer_spin ") == 1
    done = venv.python(f"import timm, graftwork.timm; net = {CREATE}; print(type(net).__module__)")
    assert done.stdout.startswith("graftwork_spin")
    assert "all is well" in venv.run("graftwork", "doctor").stdout


def test_core_alone_lists_nothing_and_says_what_to_install(core_venv):
    done = core_venv.run("graftwork", "list")
    assert "pip install graftwork-spin" in done.stdout
    answer = json.loads(core_venv.run("graftwork", "list", "--json").stdout)
    assert answer == {"methods": [], "problems": [], "blocked": []}
    assert "torch is not installed" in core_venv.run("graftwork", "doctor").stdout
    done = core_venv.run("graftwork", "demo", status=2)
    assert "pip install 'graftwork[demo]'" in done.stderr


def test_bare_create_model_needs_one_of_the_three_ways(spin_venv, tmp_path):
    assert "Unknown model" in spin_venv.python(f"import timm; {CREATE}", status=1).stderr
    spin_venv.python(f"import timm, graftwork.timm; {CREATE}")
    script = tmp_path / "script.py"
    script.write_text(f"import timm\nprint({CREATE}.num_features)\n")
    assert spin_venv.run("graftwork", "run", script).stdout == "16\n"


@pytest.fixture
def autoload_venv(spin_venv):
    spin_venv.install("--no-deps", "graftwork-autoload")
    yield spin_venv
    spin_venv.uninstall("graftwork-autoload")


def test_autoload_makes_the_bare_line_work(autoload_venv):
    assert autoload_venv.python(f"import timm; print({CREATE}.num_features)").stdout == "16\n"
    assert (
        autoload_venv.python(f"from timm import *; import timm; print({CREATE}.num_features)").stdout
        == "16\n"
    )
    assert "installed, active" in autoload_venv.run("graftwork", "doctor").stdout


def test_autoload_imports_nothing_until_timm_is_imported(autoload_venv):
    names = "'graftwork', 'timm', 'torch', 'importlib.metadata'"
    code = f"import sys; print([name for name in ({names}) if name in sys.modules])"
    assert autoload_venv.python(code).stdout == "[]\n"


def test_autoload_has_a_kill_switch(autoload_venv):
    off = {"GRAFTWORK_AUTOLOAD": "0"}
    assert "Unknown model" in autoload_venv.python(f"import timm; {CREATE}", env=off, status=1).stderr
    assert "switched off" in autoload_venv.run("graftwork", "doctor", env=off).stdout


def test_autoload_never_breaks_timm(autoload_venv):
    [site] = autoload_venv.path.glob("lib/python*/site-packages")
    adapter = site / "graftwork" / "timm.py"
    text = adapter.read_text()
    try:
        adapter.write_text("raise RuntimeError('half an update')\n")
        done = autoload_venv.python("import timm; print(timm.is_model('resnet18'))")
    finally:
        adapter.write_text(text)
    assert done.stdout == "True\n"
    assert "no variant was registered: RuntimeError: half an update" in done.stderr
