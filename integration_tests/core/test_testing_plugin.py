"""The plugin contract: a correct plugin passes it, and each fault fails the check that is about it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from graftwork.testing import PluginContract
from graftwork.testing.outcomes import Outcomes, run_contract

PLUGIN = """
from graftwork import ModelVariant, Paper, hookimpl

PAPER = Paper(title="Fast mixing", url="https://example.org/fastmix", year=2025)


@hookimpl
def graftwork_models():
    return [
        ModelVariant(
            name="fastmix_tiny",
            summary="A small net",
            paper=PAPER,
            target="acme_fastmix.models:fastmix_tiny",
            weights={"untrained": {"input_size": (3, 32, 32)}},
        )
    ]
"""

MODELS = """
from timm.models import build_model_with_cfg
from torch import nn


class FastMix(nn.Module):
    def __init__(self, num_classes=1000, in_chans=3, **kwargs):
        super().__init__()
        self.num_classes = num_classes
        self.head = nn.Linear(in_chans, num_classes)

    def forward(self, x):
        return self.head(x.mean((2, 3)))


def fastmix_tiny(pretrained=False, **kwargs):
    return build_model_with_cfg(FastMix, "fastmix_tiny", pretrained, **kwargs)
"""

METADATA = """\
Metadata-Version: 2.4
Name: acme-fastmix
Version: 0.3
Summary: Fast mixing for timm
License-Expression: MIT
Keywords: graftwork-plugin,timm
Requires-Dist: graftwork<2,>=1
Requires-Dist: timm>=1.0
"""

ENTRY_POINTS = """\
[graftwork]
fastmix = acme_fastmix.plugin
[timm.models]
fastmix_tiny = acme_fastmix.models:fastmix_tiny
"""

RECORD = """\
acme_fastmix/__init__.py,,
acme_fastmix/plugin.py,,
acme_fastmix/models.py,,
"""


class FastMixContract(PluginContract):
    plugin = "fastmix"
    distribution = "acme-fastmix"


@pytest.fixture
def check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, isolated_plugins) -> Callable[..., Outcomes]:
    """Install the plugin with some of its text replaced, and run the contract on it."""

    def run(*replacements: tuple[str, str], contract: type = FastMixContract) -> Outcomes:
        info = tmp_path / "acme_fastmix-0.3.dist-info"
        texts = {
            tmp_path / "acme_fastmix" / "__init__.py": "",
            tmp_path / "acme_fastmix" / "plugin.py": PLUGIN,
            tmp_path / "acme_fastmix" / "models.py": MODELS,
            info / "METADATA": METADATA,
            info / "entry_points.txt": ENTRY_POINTS,
            info / "RECORD": RECORD,
        }
        for old, _ in replacements:
            assert any(old in text for text in texts.values()), f"nothing to replace: {old!r}"
        for path, text in texts.items():
            for old, new in replacements:
                text = text.replace(old, new)
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setenv("GRAFTWORK_PLUGINS", "fastmix")
        outcomes = run_contract(contract)
        for name in [name for name in sys.modules if name.partition(".")[0] == "acme_fastmix"]:
            del sys.modules[name]
        return outcomes

    return run


def test_correct_plugin_passes_every_check(check):
    outcomes = check()
    assert set(outcomes.values()) == {"passed"}, outcomes.messages
    assert len(outcomes) >= 15


@pytest.mark.parametrize(
    ("replacements", "failing"),
    [
        pytest.param(
            [("from graftwork import ModelVariant", "import torch\nfrom graftwork import ModelVariant")],
            {"test_describing_imports_no_framework"},
            id="plugin module imports torch",
        ),
        pytest.param(
            [("fastmix_tiny = acme_fastmix.models:fastmix_tiny\n", "")],
            {"test_timm_entry_points_agree_with_the_hook"},
            id="timm entry point missing",
        ),
        pytest.param(
            [
                (
                    "fastmix_tiny = acme_fastmix.models:fastmix_tiny",
                    "fastmix_tiny = acme_fastmix.models:FastMix",
                )
            ],
            {"test_timm_entry_points_agree_with_the_hook"},
            id="timm entry point differs",
        ),
        pytest.param(
            [(",timm\n", "\n"), ("graftwork-plugin", "vision")],
            {"test_distribution_can_be_found_by_keyword"},
            id="keyword missing",
        ),
        pytest.param(
            [("Requires-Dist: timm>=1.0\n", "")],
            {"test_requirements_name_the_framework"},
            id="framework not required",
        ),
        pytest.param(
            [("timm>=1.0\n", "timm>=1.0; extra == 'timm'\n")],
            {"test_requirements_name_the_framework"},
            id="framework behind an extra",
        ),
        pytest.param(
            [("graftwork<2,>=1", "graftwork>=1")],
            {"test_requirement_on_graftwork_spans_one_major_version"},
            id="graftwork unbounded",
        ),
        pytest.param(
            [("License-Expression: MIT\n", "")],
            {"test_distribution_has_summary_and_licence"},
            id="licence missing",
        ),
        pytest.param(
            [("            paper=PAPER,\n", "")], {"test_every_method_names_its_paper"}, id="paper missing"
        ),
        pytest.param(
            [("models.py,,\n", "models.py,,\nacme_fastmix.pth,,\n")],
            {"test_distribution_starts_nothing_with_the_interpreter"},
            id="ships a pth file",
        ),
        pytest.param(
            [
                ("fastmix_tiny(pretrained", "build(pretrained"),
                ("models:fastmix_tiny", "models:build"),
            ],
            {"test_factories_are_named_like_their_variants"},
            id="factory named otherwise",
        ),
        pytest.param(
            [("models:fastmix_tiny", "models:fastmix_huge")],
            {
                "test_targets_resolve_to_callables",
                "test_factories_are_named_like_their_variants",
                "test_registered_models_are_the_plugins_own",
            },
            id="target does not exist",
        ),
        pytest.param(
            [("fastmix_tiny", "resnet18")],
            {"test_names_are_free_in_timm", "test_registered_models_are_the_plugins_own"},
            id="name of a model of timm",
        ),
    ],
)
def test_fault_fails_its_checks_and_no_others(check, replacements, failing):
    outcomes = check(*replacements)
    assert outcomes.checks("failed") == failing, outcomes.messages


def test_misspelt_hook_is_named(check):
    outcomes = check(("graftwork_models", "graftwork_model"))
    assert "graftwork_model" in outcomes.messages["test_hooks_match_their_specifications"]
    assert "test_catalogue_has_no_complaint" in outcomes.checks("failed")


def test_broken_import_is_shown_with_its_cause(check):
    outcomes = check(
        ("from graftwork import ModelVariant", "import nowhere\nfrom graftwork import ModelVariant")
    )
    assert "No module named 'nowhere'" in outcomes.messages["test_describing_imports_no_framework"]


def test_unknown_slug_says_what_is_declared(check):
    other = type("Other", (FastMixContract,), {"plugin": "slowmix"})
    outcomes = check(contract=other)
    assert "'slowmix'" in outcomes.messages["test_hooks_match_their_specifications"]
    assert "['fastmix']" in outcomes.messages["test_hooks_match_their_specifications"]


def test_baseline_without_a_paper_is_declared(check):
    baseline = type("Baseline", (FastMixContract,), {"without_paper": frozenset({"fastmix_tiny"})})
    outcomes = check(("            paper=PAPER,\n", ""), contract=baseline)
    assert not outcomes.checks("failed"), outcomes.messages


def test_contract_without_a_slug_says_what_is_missing():
    outcomes = run_contract(type("Nameless", (PluginContract,), {}))
    assert outcomes == {"collection": "failed"}
    assert 'set plugin = "your-slug"' in outcomes.messages["collection"]
