"""Intermediate features: ``features_only``, ``forward_intermediates`` and pruning."""

# ruff: noqa: D102  the name of a check is its sentence

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from graftwork.testing.model.subject import ModelDeclaration, Subject, agree


def intermediates_of(model: Any, images: Tensor, **options: Any) -> tuple[Tensor, list[Tensor]]:
    """Call ``forward_intermediates`` for channel-first maps, or skip where the model has none."""
    if not hasattr(model, "forward_intermediates"):
        pytest.skip(f"{type(model).__name__} has no forward_intermediates")
    final, intermediates = model.forward_intermediates(images, output_fmt="NCHW", **options)
    return final, list(intermediates)


class FeatureChecks(ModelDeclaration):
    """What a detector or a distillation loss takes from inside the model."""

    def test_features_only_gives_three_levels_or_a_clear_refusal(self, subject: Subject) -> None:
        if isinstance(self.features, str):
            with pytest.raises((RuntimeError, ValueError, NotImplementedError)) as refusal:
                subject.raw(features_only=True)
            assert "feature" in str(refusal.value), (
                f"the refusal does not say what is refused: {refusal.value}"
            )
            return
        self.declared("features")
        backbone: Any = subject.raw(features_only=True).eval()
        with torch.no_grad():
            levels = backbone(subject.images())
        channels, reductions = backbone.feature_info.channels(), backbone.feature_info.reduction()
        assert len(channels) >= 3, f"features_only offers {len(channels)} levels, timm expects three or more"
        assert [level.shape[1] for level in levels] == list(channels)
        for level, reduction in zip(levels, reductions):
            assert level.shape[0] == 2
            assert level.shape[2] <= math.ceil(subject.input_size[1] / reduction) + 1
            assert bool(torch.isfinite(level).all())

    def test_features_only_takes_chosen_levels(self, subject: Subject) -> None:
        self.declared("features")
        every: Any = subject.raw(features_only=True).eval()
        first: Any = subject.raw(features_only=True, out_indices=(every.feature_info.out_indices[0],)).eval()
        with torch.no_grad():
            level = first(subject.images())
            agree(level[0], every(subject.images())[0], "the first level, alone and among others")
        assert len(level) == 1

    def test_intermediates_match_their_description(self, subject: Subject) -> None:
        model: Any = subject.model
        with torch.no_grad():
            _, levels = intermediates_of(model, subject.images())
        assert len(levels) >= 3, f"{len(levels)} intermediates, timm expects three or more"
        assert len(levels) == len(model.feature_info)
        for level, info in zip(levels, model.feature_info):
            assert level.ndim == 4, f"{info['module']}: asked for NCHW, got {tuple(level.shape)}"
            assert level.shape[1] == info["num_chs"]
            assert level.shape[2] <= math.ceil(subject.input_size[1] / info["reduction"]) + 1
            assert level.shape[3] <= math.ceil(subject.input_size[2] / info["reduction"]) + 1

    def test_intermediates_end_in_forward_features(self, subject: Subject) -> None:
        model: Any = subject.model
        with torch.no_grad():
            final, _ = intermediates_of(model, subject.images())
            agree(
                final, model.forward_features(subject.images()), "forward_intermediates and forward_features"
            )

    def test_intermediates_follow_indices(self, subject: Subject) -> None:
        model: Any = subject.model
        images = subject.images()
        with torch.no_grad():
            _, every = intermediates_of(model, images)
            _, ends = intermediates_of(model, images, indices=[0, len(every) - 1])
            _, last = intermediates_of(model, images, indices=1)
            early = model.forward_intermediates(
                images, indices=[0, 1], stop_early=True, intermediates_only=True, output_fmt="NCHW"
            )
        for chosen, expected in ((ends, [every[0], every[-1]]), (last, every[-1:]), (early, every[:2])):
            assert len(chosen) == len(expected)
            for level, other in zip(chosen, expected):
                agree(level, other, "a chosen intermediate and the same among all")

    def test_intermediates_survive_gradient_checkpointing(self, subject: Subject) -> None:
        self.declared("grad_checkpointing")
        model: Any = subject.build()
        final, levels = intermediates_of(model, subject.images())
        model.set_grad_checkpointing()
        other_final, other_levels = intermediates_of(model, subject.images())
        agree(other_final, final, "final features with and without checkpointing")
        for level, other in zip(other_levels, levels):
            agree(level, other, "intermediates with and without checkpointing")

    def test_pruning_keeps_the_wanted_intermediates_only(self, subject: Subject) -> None:
        model: Any = subject.build()
        if not hasattr(model, "prune_intermediate_layers"):
            pytest.skip(f"{type(model).__name__} has no prune_intermediate_layers")
        images = subject.images()
        with torch.no_grad():
            _, before = intermediates_of(model, images, indices=[0, 1])
        kept = model.prune_intermediate_layers([0, 1], prune_norm=True)
        _, after = intermediates_of(model, images, indices=kept)
        assert len(after) == len(before)
        for level, other in zip(after, before):
            agree(level, other, "intermediates before and after pruning")
        sum(level.square().mean() for level in after).backward()  # type: ignore[union-attr]
        unused = [name for name, parameter in model.named_parameters() if parameter.grad is None]
        assert not unused, f"pruning leaves parameters that no intermediate needs: {', '.join(unused)}"
