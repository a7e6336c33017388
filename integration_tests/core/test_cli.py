"""The command line as a newcomer meets it."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from graftwork.cli import main


def graftwork(*words, env=None, cwd=None):
    return subprocess.run(
        [sys.executable, "-m", "graftwork", *map(str, words)],
        capture_output=True,
        text=True,
        env=os.environ | (env or {}),
        cwd=cwd,
    )


def test_list_names_every_method_with_its_plugin(capsys):
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["name", "kind", "plugin", "version", "status"]
    [line] = [line for line in lines if line.startswith("convmixer_spin ")]
    assert line.split()[1:] == ["model", "spin", "1.0.0", "ready"]


def test_list_json_is_machine_readable(capsys):
    assert main(["list", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert {"name", "kind", "plugin", "version", "status", "summary"} == set(answer["methods"][0])
    assert answer["problems"] == []


def test_list_imports_no_framework_and_answers_at_once():
    code = "import sys; from graftwork.cli import main; main(['list']); print(sorted(sys.modules))"
    best = min(_cpu_seconds(code) for _ in range(3))
    assert best < 0.3, f"{best:.2f} s of CPU time"


def _cpu_seconds(code):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    for framework in ("torch", "timm", "mmengine", "nerfstudio", "numpy"):
        assert f"'{framework}'" not in done.stdout
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def test_list_survives_a_closed_pipe():
    done = subprocess.run(
        f"'{sys.executable}' -m graftwork list | head -1", shell=True, capture_output=True, text=True
    )
    assert done.stdout.startswith("name") and "Traceback" not in done.stderr


def test_info_tells_paper_use_and_weights(capsys):
    assert main(["info", "convmixer_spin"]) == 0
    text = capsys.readouterr().out
    assert "https://arxiv.org/abs/2207.10237" in text
    assert 'timm.create_model("convmixer_spin")' in text
    assert "graftwork-spin" in text


def test_unknown_name_is_answered_with_the_nearest_one(capsys):
    assert main(["info", "convmixer_spn"]) == 2
    assert "convmixer_spin" in capsys.readouterr().err
    assert main(["doctor", "convmixer_spn"]) == 2


def test_doctor_is_content_with_the_workspace(capsys):
    code = main(["doctor"])
    text = capsys.readouterr().out
    assert code == 0, text
    assert "all is well" in text and "variants registered" in text and "nerfstudio 1.1.5" in text


def test_run_gives_a_script_its_arguments_and_every_variant(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(
        "import sys, timm\n"
        "from beside import VALUE\n"
        "assert __name__ == '__main__'\n"
        "print(sys.argv[1:], VALUE, timm.is_model('convmixer_spin'))\n"
        "sys.exit(5)\n"
    )
    (tmp_path / "beside.py").write_text("VALUE = 7\n")
    done = graftwork("run", script, "--model", "x", "-m")
    assert done.stdout == "['--model', 'x', '-m'] 7 True\n" and done.returncode == 5, done.stderr
    done = graftwork("run", "-m", "train", "--lr", "1", cwd=tmp_path)
    assert done.stdout == "['--lr', '1'] 7 True\n" and done.returncode == 5, done.stderr


def test_run_explains_a_missing_script(tmp_path):
    done = graftwork("run", tmp_path / "nothing.py")
    assert done.returncode == 2 and "there is no file" in done.stderr and "Traceback" not in done.stderr
    done = graftwork("run", "-m", "no.such.module")
    assert done.returncode == 2 and "no module named 'no.such.module'" in done.stderr


@pytest.mark.parametrize("command", ["demo", "bench"])
def test_unknown_method_is_answered_with_the_known_ones(command, capsys):
    assert main([command, "spinn"]) == 2
    assert "spin" in capsys.readouterr().err.partition("there is one for:")[2]


def test_quick_demo_writes_a_report_with_a_picture(tmp_path, capsys):
    assert main(["demo", "spin", "--quick", "--out", str(tmp_path)]) == 0
    report = tmp_path / "spin" / "report.md"
    assert f"report: {report}" in capsys.readouterr().out
    text = report.read_text()
    assert "| convmixer_spin" in text.replace("`", "") or "convmixer_spin" in text
    pictures = list((tmp_path / "spin").glob("*.png"))
    assert pictures and all(picture.name in text and picture.stat().st_size > 5000 for picture in pictures)


def test_failing_scene_is_reported_and_the_next_one_runs(tmp_path, capsys):
    from graftwork.contributed import Contribution, run_each

    ran = []

    def run(contribution) -> Path:
        ran.append(contribution.slug)
        if contribution.slug == "bad":
            raise RuntimeError("no data")
        return tmp_path / "report.md"

    assert run_each("demo", [Contribution("bad", "a:b"), Contribution("good", "a:b")], run) == 1
    assert ran == ["bad", "good"]
    assert "demo bad failed: RuntimeError: no data" in capsys.readouterr().err
