"""A broken, slow, hostile, duplicate or outdated plugin breaks neither `list`, nor timm, nor another one."""

from __future__ import annotations

import json
import shutil

import pytest

GOOD = """
    from graftwork import ModelVariant, hookimpl

    @hookimpl
    def graftwork_models():
        return [ModelVariant(name="{name}", summary="A net", target="{module}.nets:{name}")]
"""

NETS = """
    def {name}(pretrained=False, **kwargs):
        return "a model"
"""


def good(name: str, module: str) -> tuple[str, dict[str, str]]:
    return GOOD.format(name=name, module=module), {"nets.py": NETS.format(name=name)}


@pytest.fixture(scope="module")
def healthy(core_venv, tmp_path_factory):
    body, files = good("healthy_net", "healthy")
    core_venv.install_plugin(tmp_path_factory.mktemp("healthy"), "healthy", body, files=files)
    yield core_venv
    core_venv.uninstall("healthy")


@pytest.fixture
def venv(healthy, tmp_path):
    """A venv with one healthy plugin, whose presence every test checks, and whatever the test adds to it."""
    yield healthy
    added = [folder.name for folder in tmp_path.iterdir()]
    if added:
        healthy.uninstall(*added)


def listed(venv, **env):
    return json.loads(venv.run("graftwork", "list", "--json", env=env).stdout)


def names(answer) -> set[str]:
    return {method["name"] for method in answer["methods"]}


def only_problem(answer, plugin: str) -> dict:
    [problem] = [problem for problem in answer["problems"] if problem["plugin"] == plugin]
    return problem


def test_plugin_that_raises_at_import_is_dropped_with_its_cause(venv, tmp_path):
    venv.install_plugin(tmp_path, "broken", "raise OSError('libnothing.so: cannot open shared object file')")
    answer = listed(venv)
    assert names(answer) == {"healthy_net"}
    problem = only_problem(answer, "broken")
    assert problem["stage"] == "import" and "libnothing.so" in problem["error"]
    doctor = venv.run("graftwork", "doctor", "broken", status=1).stdout
    assert "Traceback" in doctor and "libnothing.so" in doctor


def test_plugin_that_exits_at_import_is_dropped(venv, tmp_path):
    venv.install_plugin(tmp_path, "hostile", "import sys; sys.exit(3)")
    answer = listed(venv)
    assert names(answer) == {"healthy_net"}
    assert "SystemExit" in only_problem(answer, "hostile")["error"]


def test_plugin_that_prints_at_import_does_not_spoil_json(venv, tmp_path):
    venv.install_plugin(tmp_path, "chatty", "print('{hello')")
    assert names(listed(venv)) == {"healthy_net"}


def test_slow_plugin_is_used_and_named_by_doctor(venv, tmp_path):
    body, files = good("slow_net", "slow")
    venv.install_plugin(
        tmp_path, "slow", "import time; time.sleep(1.2)\n" + body.replace("\n    ", "\n"), files=files
    )
    answer = listed(venv)
    assert names(answer) == {"healthy_net", "slow_net"}
    assert not only_problem(answer, "slow")["fatal"]
    assert "describing its methods took 1." in venv.run("graftwork", "doctor", "slow").stdout


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (
            "from graftwork import hookimpl\n@hookimpl\ndef graftwork_modles():\n    return []",
            "graftwork_modles",
        ),
        ("from graftwork import hookimpl\n@hookimpl\ndef graftwork_models(extra):\n    return []", "extra"),
        (
            "from graftwork import hookimpl\n@hookimpl\ndef graftwork_models():\n    1 / 0",
            "ZeroDivisionError",
        ),
        (
            "from graftwork import hookimpl\n@hookimpl\ndef graftwork_models():\n    return ['net']",
            "ModelVariant",
        ),
        ("from graftwork import hookimpl\n@hookimpl\ndef graftwork_models():\n    return None", "NoneType"),
    ],
    ids=["misspelt hook", "unknown argument", "raising hook", "wrong item", "no answer"],
)
def test_plugin_with_an_unsound_hook_is_dropped(venv, tmp_path, body, error):
    venv.install_plugin(tmp_path, "unsound", body)
    answer = listed(venv)
    assert names(answer) == {"healthy_net"}
    problem = only_problem(answer, "unsound")
    assert problem["stage"] == "hook" and error in problem["error"]


def test_plugin_for_another_core_version_is_dropped_with_the_fix(venv, tmp_path):
    body, files = good("future_net", "future")
    venv.install_plugin(tmp_path, "future", body, files=files, requires="graftwork>=7")
    answer = listed(venv)
    assert names(answer) == {"healthy_net"}
    problem = only_problem(answer, "future")
    assert problem["stage"] == "version" and "pip install -U" in problem["hint"]


def test_of_two_plugins_with_one_method_name_neither_gets_it(venv, tmp_path):
    for plugin in ("first", "second"):
        body, files = good("wanted_net", plugin)
        venv.install_plugin(tmp_path, plugin, body, files=files)
    answer = listed(venv)
    assert names(answer) == {"healthy_net", "first/wanted_net", "second/wanted_net"}
    assert only_problem(answer, "first")["stage"] == "collision"
    assert names(listed(venv, GRAFTWORK_PLUGINS="-second")) == {"healthy_net", "wanted_net"}


def test_two_distributions_with_one_slug_go_by_their_distribution_names(venv, tmp_path):
    for module in ("acme", "zenith"):
        body, files = good(f"{module}_net", module)
        venv.install_plugin(tmp_path, module, body, slug="mix", files=files)
    answer = listed(venv)
    assert names(answer) == {"healthy_net", "acme_net", "zenith_net"}
    assert {problem["plugin"] for problem in answer["problems"]} == {"mix"}
    assert {method["plugin"] for method in answer["methods"]} == {"healthy", "acme", "zenith"}


def test_unreadable_metadata_of_a_distribution_is_reported_and_skipped(venv):
    [site] = venv.path.glob("lib/python*/site-packages")
    info = site / "mangled-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mangled\nVersion: 1.0\n")
    (info / "entry_points.txt").write_bytes(b"[graftwork]\nmangled = \xff\xfe\n")
    try:
        answer = listed(venv)
    finally:
        shutil.rmtree(info)
    assert names(answer) == {"healthy_net"}
    assert any(problem["stage"] == "metadata" for problem in answer["problems"])


def test_allow_and_block_list_understand_slug_distribution_and_module(venv, tmp_path):
    body, files = good("other_net", "acme_other")
    venv.install_plugin(tmp_path, "acme-other", body, slug="other", files=files)
    for value in ("other", "acme-other", "acme_other", "Acme.Other"):
        assert names(listed(venv, GRAFTWORK_PLUGINS=value)) == {"other_net"}
        assert names(listed(venv, GRAFTWORK_PLUGINS=f"-{value}")) == {"healthy_net"}
    assert names(listed(venv, GRAFTWORK_PLUGINS="")) == set()
    answer = listed(venv, GRAFTWORK_PLUGINS="othre")
    assert names(answer) == set() and "othre" in only_problem(answer, "othre")["error"]


def test_strict_mode_raises_what_is_a_warning_otherwise(venv, tmp_path):
    venv.install_plugin(tmp_path, "broken", "raise OSError('no such file')")
    code = "import graftwork; print(sorted(graftwork.plugins().models))"
    relaxed = venv.python(code)
    assert relaxed.stdout == "['healthy_net']\n"
    assert "PluginWarning" in relaxed.stderr and "graftwork doctor broken" in relaxed.stderr
    strict = venv.python(code, env={"GRAFTWORK_STRICT": "1"}, status=1)
    assert "PluginError" in strict.stderr and "OSError: no such file" in strict.stderr


@pytest.fixture
def beside_spin(spin_venv):
    yield spin_venv
    spin_venv.uninstall("broken", "hijack")


def test_broken_plugin_beside_spin_leaves_timm_and_spin_alone(beside_spin, tmp_path):
    venv = beside_spin
    venv.install_plugin(tmp_path, "broken", "raise OSError('no such file')")
    hijack = """
        from graftwork import ModelVariant, hookimpl

        @hookimpl
        def graftwork_models():
            return [
                ModelVariant(name="resnet18", summary="Not yours", target="hijack.nets:resnet18"),
                ModelVariant(name="hijack_net", summary="A net", target="hijack.nets:gone"),
            ]
    """
    venv.install_plugin(tmp_path, "hijack", hijack)
    answer = venv.python(
        """
        import json, timm, graftwork.timm
        net = timm.create_model("convmixer_spin", dim=16, depth=2, num_classes=3)
        before = timm.models.model_entrypoint("resnet18").__module__
        try:
            timm.create_model("hijack_net")
        except ImportError as error:
            cause = str(error)
        print(json.dumps([type(net).__module__, before, cause]))
        """
    )
    module, owner, cause = json.loads(answer.stdout)
    assert module.startswith("graftwork_spin") and owner == "timm.models.resnet"
    assert "hijack.nets" in cause
    assert "'resnet18' belongs to 'timm.models.resnet'" in answer.stderr
    doctor = venv.run("graftwork", "doctor", status=1).stdout
    assert "resnet18" in doctor and "no such file" in doctor
