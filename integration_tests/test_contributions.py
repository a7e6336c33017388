"""Whatever the installed plugins promise the command line is there."""

from __future__ import annotations

import pytest

from graftwork.contributed import Contribution
from graftwork.discovery import scan


@pytest.mark.parametrize("group", ["graftwork.demo", "graftwork.bench"])
def test_every_promised_scene_and_benchmark_can_be_imported(group):
    candidates, errors = scan(group)
    assert candidates and not errors
    for candidate in candidates:
        assert callable(Contribution(candidate.slug, candidate.module).load()), candidate.slug


def test_every_plugin_is_listed_in_the_readme_table():
    from pathlib import Path

    text = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")
    candidates, _ = scan()
    for candidate in candidates:
        assert f"plugins/{candidate.slug}" in text, candidate.slug
