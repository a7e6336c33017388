"""Shapes, heads and constructor arguments that every timm classifier has."""

# ruff: noqa: D102  the name of a check is its sentence

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import nn

from graftwork.testing.model.subject import CLASSES, ModelDeclaration, Subject, agree, single


def accepts(model: nn.Module, argument: str) -> bool:
    """Say whether a constructor on the model's inheritance path names an argument."""
    return any(
        argument in inspect.signature(base).parameters
        for base in type(model).__mro__
        if issubclass(base, nn.Module) and base is not nn.Module
    )


class HeadChecks(ModelDeclaration):
    """Calling, cutting and replacing the head."""

    def test_one_row_of_finite_logits_per_image(self, subject: Subject) -> None:
        assert subject.logits.shape == (2, CLASSES)
        assert bool(torch.isfinite(subject.logits).all()), "the output holds NaN or infinity"

    def test_images_of_a_batch_do_not_influence_each_other(self, subject: Subject) -> None:
        with torch.no_grad():
            alone = single(subject.model(subject.images()[1:]))
        agree(alone, subject.logits[1:], "an image alone and in a batch of two")

    def test_zero_classes_give_pooled_features(self, subject: Subject) -> None:
        model: Any = subject.build(num_classes=0)
        with torch.no_grad():
            embedding = model(subject.images())
        assert embedding.shape == (2, model.head_hidden_size)

    def test_grey_images_are_taken(self, subject: Subject) -> None:
        model: Any = subject.build(in_chans=1)
        with torch.no_grad():
            logits = single(model(subject.images(channels=1)))
        assert logits.shape == (2, CLASSES)
        assert getattr(model, "in_chans", 1) == 1

    def test_head_after_features_equals_forward(self, subject: Subject) -> None:
        model: Any = subject.model
        with torch.no_grad():
            features = model.forward_features(subject.images())
            logits = single(model.forward_head(features))
        agree(logits, subject.logits, "forward_head(forward_features(x)) and forward(x)")

    def test_pre_logits_have_the_head_hidden_size(self, subject: Subject) -> None:
        model: Any = subject.model
        with torch.no_grad():
            features = model.forward_features(subject.images())
            hidden = single(model.forward_head(features, pre_logits=True))
        assert hidden.shape == (2, model.head_hidden_size)

    def test_features_carry_num_features_channels(self, subject: Subject) -> None:
        model: Any = subject.model
        with torch.no_grad():
            features = single(model.forward_features(subject.images()))
        axis = 1 if features.ndim == 4 and getattr(model, "output_fmt", "NCHW") == "NCHW" else -1
        assert features.shape[axis] == model.num_features

    def test_classifier_is_the_last_linear_layer(self, subject: Subject) -> None:
        model: Any = subject.model
        classifier = model.get_classifier()
        heads = classifier if isinstance(classifier, tuple | list) else [classifier]
        own = {id(module) for module in model.modules()}
        for head in heads:
            assert id(head) in own, "get_classifier() returns a module that is not part of the model"
            assert head.out_features == CLASSES
            assert head.in_features == model.head_hidden_size

    def test_reset_classifier_replaces_the_head(self, subject: Subject) -> None:
        model: Any = subject.build()
        images = subject.images()
        with torch.no_grad():
            model.reset_classifier(7)
            assert model.num_classes == 7
            assert single(model(images)).shape == (2, 7)
            model.reset_classifier(0)
            assert model.num_classes == 0
            assert single(model(images)).shape == (2, model.head_hidden_size)

    def test_reset_classifier_keeps_mode_and_precision(self, subject: Subject) -> None:
        model: Any = subject.build().double().train()
        model.reset_classifier(7)
        heads = model.get_classifier()
        for head in heads if isinstance(heads, tuple | list) else [heads]:
            assert head.weight.dtype == torch.float64, "the new head has lost the model's dtype"
            assert head.training, "the new head is in evaluation mode while the model trains"

    @pytest.mark.parametrize("when", ["built", "reset"])
    def test_empty_global_pool_keeps_positions(self, subject: Subject, when: str) -> None:
        self.declared("global_pool")
        if when == "built":
            model: Any = subject.build(num_classes=0, global_pool="")
        else:
            model = subject.build()
            model.reset_classifier(0, "")
        with torch.no_grad():
            unpooled = model(subject.images())
            features = model.forward_features(subject.images())
        assert unpooled.ndim > 2, f"global_pool='' still pools: the output is {tuple(unpooled.shape)}"
        assert unpooled.shape == features.shape

    @pytest.mark.parametrize("argument", ["drop_rate", "drop_path_rate"])
    def test_dropout_acts_in_training_only(self, subject: Subject, argument: str) -> None:
        if not accepts(subject.model, argument):
            pytest.skip(f"{type(subject.model).__name__} has no {argument}")
        rate: dict[str, Any] = {argument: 0.5}
        model = subject.build(**rate)
        images = subject.images(batch=4)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            agree(
                single(model(images)), single(subject.model(images)), f"{argument}=0.5 in evaluation and none"
            )
            torch.manual_seed(0)
            first, second = single(model.train()(images)), single(model(images))
        assert not torch.equal(first, second), f"{argument}=0.5 changes nothing in training"

    def test_factory_places_parameters_where_asked(self, subject: Subject) -> None:
        self.declared("placement")
        model = subject.raw(device="meta", dtype=torch.bfloat16)
        wrong = [
            f"{name} ({parameter.dtype} on {parameter.device})"
            for name, parameter in model.named_parameters()
            if parameter.device.type != "meta" or parameter.dtype != torch.bfloat16
        ]
        assert not wrong, f"device and dtype are not passed on to: {', '.join(wrong)}"
