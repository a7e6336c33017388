"""Descriptions refuse what an adapter could not use, and say what they expected."""

from __future__ import annotations

import dataclasses

import pytest

from graftwork import Component, ModelVariant, Paper, RenderBackend, SceneMethod
from graftwork.spec import SpecError

PAPER = Paper(title="A Method", url="https://arxiv.org/abs/2207.10237", year=2022)


def variant(**changes):
    fields = {"name": "my_net", "summary": "A net", "target": "pack.models:my_net", "paper": PAPER}
    return ModelVariant(**{**fields, **changes})


def test_sound_descriptions_are_accepted():
    assert variant(weights={"in1k": {"num_classes": 1000}}).weights["in1k"]["num_classes"] == 1000
    assert Component(name="MySampler", summary="s", target="p.m:S", kind="sampler").kind == "sampler"
    assert SceneMethod(name="my-scene", summary="s", target="p.m:f").accelerator == "any"
    backend = RenderBackend(name="my-scene:cpu", target="p.m:f", kinds={"raytrace"}, device="cpu")
    assert backend.scene == "my-scene" and backend.kinds == frozenset({"raytrace"})


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (lambda: variant(name="My Net"), "lower-case letters, digits and underscores"),
        (lambda: variant(name=""), "name is empty"),
        (lambda: variant(summary="two\nlines"), "one non-empty line"),
        (lambda: variant(summary=" "), "one non-empty line"),
        (lambda: variant(target="pack.models.my_net"), 'must read "package.module:attribute"'),
        (lambda: variant(target="pack.models:"), 'must read "package.module:attribute"'),
        (lambda: variant(weights={"A B": {}}), "weight tag"),
        (lambda: Component(name="my_sampler", summary="s", target="p:S", kind="sampler"), "CamelCase"),
        (
            lambda: Component(name="My", summary="s", target="p:S", kind="optimizer"),
            "kind must be one of sampler",
        ),
        (lambda: SceneMethod(name="my_scene", summary="s", target="p:f"), "kebab-case"),
        (
            lambda: SceneMethod(name="my-scene", summary="s", target="p:f", accelerator="tpu"),
            "'any' or 'cuda'",
        ),
        (
            lambda: RenderBackend(name="cpu", target="p:f", kinds={"raytrace"}, device="cpu"),
            '"<scene>:<backend>"',
        ),
        (lambda: RenderBackend(name="a:b", target="p:f", kinds=set(), device="cpu"), "non-empty subset"),
        (lambda: RenderBackend(name="a:b", target="p:f", kinds={"draw"}, device="cpu"), "got ['draw']"),
        (
            lambda: RenderBackend(name="a:b", target="p:f", kinds={"raytrace"}, device="tpu"),
            "device must be one of",
        ),
        (lambda: Paper(title="T", url="arxiv.org", year=2022), "https://"),
        (lambda: Paper(title="T", url="https://a.org", year=22), "must be a year"),
    ],
)
def test_unsound_descriptions_are_refused_with_what_was_expected(build, expected):
    with pytest.raises(SpecError) as caught:
        build()
    assert expected in str(caught.value)


def test_descriptions_cannot_be_changed_after_the_fact():
    described = variant(weights={"in1k": {"num_classes": 1000}})
    with pytest.raises(dataclasses.FrozenInstanceError):
        described.name = "other"
    with pytest.raises(TypeError):
        described.weights["in1k"]["num_classes"] = 10
