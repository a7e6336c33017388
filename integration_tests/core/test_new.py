"""`graftwork new` writes a tidy folder, or says why not. That the folder works is tested in a clean venv."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from graftwork.cli import main
from graftwork.new import TEMPLATE, Names, kinds, render

RUFF = [sys.executable, "-m", "ruff"]


def texts_of(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8")
        for path in folder.rglob("*")
        if path.is_file()
    }


PACKAGE = "src/graftwork_fast_mix"
COMMON = {"README.md", "pyproject.toml", "tests/test_contract.py"} | {
    f"{PACKAGE}/{name}" for name in ("__init__.py", "plugin.py", "py.typed")
}
OWN = {
    "component": {f"{PACKAGE}/sampler.py", "tests/test_sampler.py"},
    "model": {f"{PACKAGE}/models.py", f"{PACKAGE}/shift.py", "tests/test_shift.py"},
}


@pytest.mark.parametrize("kind", kinds())
def test_plugin_has_the_files_of_every_plugin_and_of_its_kind(tmp_path, capsys, kind):
    folder = tmp_path / "plugins" / "fast-mix"
    assert main(["new", "fast-mix", "--kind", kind, "--out", str(folder)]) == 0
    assert set(texts_of(folder)) == COMMON | OWN[kind]
    said = capsys.readouterr()
    assert f'pip install -e "{folder}[test]"' in said.out and f"pytest {folder}" in said.out
    assert said.err == ""


def test_folder_is_named_like_the_distribution_where_nothing_is_asked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["new", "graftwork-fast-mix"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["graftwork-fast-mix"]


@pytest.mark.parametrize("kind", kinds())
def test_every_name_follows_from_the_slug(kind):
    texts = render(Names("fast-mix"), kind)
    project = texts["pyproject.toml"]
    assert 'name = "graftwork-fast-mix"\n' in project
    assert '[project.entry-points.graftwork]\nfast-mix = "graftwork_fast_mix.plugin"\n' in project
    for name, text in texts.items():
        assert not re.search(r"\$\{?[a-z]|__module__", name + text), name
    other = render(Names("spare"), kind)
    assert not [name for name, text in other.items() if re.search("fast.?mix", name + text, re.I)]


@pytest.mark.parametrize("kind", kinds())
def test_describing_module_of_a_template_imports_graftwork_only(kind):
    texts = render(Names("fast-mix"), kind)
    for name in ("plugin", "__init__"):
        tree = ast.parse(texts[f"src/graftwork_fast_mix/{name}.py"])
        top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        roots = {getattr(node, "module", None) or node.names[0].name for node in top}
        assert {root.partition(".")[0] for root in roots} <= set(sys.stdlib_module_names) | {"graftwork"}


@pytest.mark.parametrize("kind", kinds())
@pytest.mark.parametrize("name", ["ab", "fast-mix", "a-longer-plugin-name"])
def test_code_is_formatted_and_linted(tmp_path, kind, name):
    assert main(["new", name, "--kind", kind, "--out", str(tmp_path / name)]) == 0
    for words in (["check", "--no-cache", "."], ["format", "--no-cache", "--diff", "."]):
        done = subprocess.run([*RUFF, *words], cwd=tmp_path / name, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_templates_are_files_that_no_tool_takes_for_code():
    strays = [path for path in TEMPLATE.rglob("*") if path.is_file() and path.suffix != ".tmpl"]
    assert not strays


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("Fast-Mix", "Try 'fast-mix'"),
        ("fast_mix", "Try 'fast-mix'"),
        ("FastMix", "Try 'fast-mix'"),
        ("fast mix!", "Try 'fast-mix'"),
        ("../fast", "Try 'fast'"),
        ("3d", "'fast-mix'"),
        ("graftwork-", "'fast-mix'"),
        ("", "'fast-mix'"),
    ],
)
def test_bad_name_is_refused_with_a_good_one(tmp_path, monkeypatch, capsys, name, suggestion):
    monkeypatch.chdir(tmp_path)
    assert main(["new", name]) == 2
    error = capsys.readouterr().err
    assert "lower-case words joined by hyphens" in error and repr(name) in error and suggestion in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("existing", ["folder", "file"])
def test_existing_path_is_left_as_it_is(tmp_path, capsys, existing):
    target = tmp_path / "mine"
    if existing == "file":
        target.write_text("my thesis")
    else:
        target.mkdir()
        (target / "README.md").write_text("my thesis")
    before = target.read_text() if existing == "file" else texts_of(target)
    assert main(["new", "fast-mix", "--out", str(target)]) == 2
    assert "exists and is left as it is" in capsys.readouterr().err
    assert (target.read_text() if existing == "file" else texts_of(target)) == before


def test_folder_that_cannot_be_made_is_explained(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(["new", "fast-mix", "--out", str(tmp_path / "file" / "inside")]) == 2
    assert "cannot make the folder" in capsys.readouterr().err


def test_slug_that_timm_uses_for_a_module_of_its_own_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["new", "vision-transformer"]) == 2
    assert "timm has a model module named 'vision_transformer'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "distribution", "warning"),
    [
        ("spin", "graftwork-spin", "installing the new plugin would replace it"),
        ("taken", "acme-taken", "is called 'taken' too"),
    ],
)
def test_name_of_an_installed_plugin_draws_a_warning(
    tmp_path, monkeypatch, capsys, name, distribution, warning
):
    info = tmp_path / f"{distribution.replace('-', '_')}-2.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 2.5\n")
    (info / "entry_points.txt").write_text(f"[graftwork]\n{name} = acme.plugin\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert main(["new", name, "--out", str(tmp_path / "new")]) == 0
    error = capsys.readouterr().err
    assert f"{distribution} 2.5" in error and warning in error
    assert (tmp_path / "new" / "pyproject.toml").is_file()


def test_kind_without_a_template_is_answered_with_those_that_have_one(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("graftwork.new.kinds", lambda: ("backend", "model"))
    assert main(["new", "fast-mix", "--kind", "scene"]) == 2
    assert "no template for a scene; there is one for: backend, model." in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_unknown_kind_is_a_wrong_command_line(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["new", "fast-mix", "--kind", "sampler"])
    assert stop.value.code == 2 and "component" in capsys.readouterr().err
