"""What timm knows about a variant: its name, its records, its published size."""

# ruff: noqa: D102  the name of a check is its sentence

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from graftwork.testing.model.subject import (
    ModelDeclaration,
    Subject,
    agree,
    register_variants,
    single,
    without_memory,
)

REQUIRED = (
    "input_size",
    "mean",
    "std",
    "crop_pct",
    "interpolation",
    "num_classes",
    "first_conv",
    "classifier",
)


def full_size(name: str) -> nn.Module:
    """Build a variant at its published size, without memory for its weights where possible."""
    import timm

    register_variants()
    return without_memory(lambda: timm.create_model(name)).eval()


def count_macs(model: nn.Module, input_size: tuple[int, int, int]) -> int:
    """Count multiply-accumulates of matrix products and convolutions for one image.

    An operator of your own counts once it has a formula: ``torch.utils.flop_counter.register_flop_formula``.

    Args:
        model: In evaluation mode, on any device; on the meta device nothing is computed.
        input_size: Channels, height, width.

    Returns:
        Half of the floating-point operations that torch counts.
    """
    from torch.utils.flop_counter import FlopCounterMode

    device = next(model.parameters()).device
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, *input_size, device=device))
    return int(counter.get_total_flops()) // 2


class RegistryChecks(ModelDeclaration):
    """A variant is found, described and refused as a native timm model is."""

    def test_name_is_registered(self, subject: Subject) -> None:
        import timm

        assert timm.is_model(subject.name), f"{subject.name} is unknown to timm; see `graftwork doctor`"
        assert timm.model_entrypoint(subject.name).__name__ == subject.name

    def test_listing_finds_the_name(self, subject: Subject) -> None:
        import timm

        module = timm.model_entrypoint(subject.name).__module__.rpartition(".")[2]
        assert subject.name in timm.list_models(f"{subject.name[:-1]}*")
        assert subject.name in timm.list_models(module=module)
        assert subject.name in timm.list_models(subject.name, name_matches_cfg=True)
        assert subject.name not in timm.list_models(exclude_filters=subject.name)

    def test_every_tag_is_listed_and_built(self, subject: Subject) -> None:
        import timm

        cfgs = timm.models.get_arch_pretrained_cfgs(subject.name)
        assert cfgs, (
            f"{subject.name} has no weight record; add ModelVariant.weights with at least its input size"
        )
        listed = timm.list_models(subject.name, include_tags=True)
        for tagged, cfg in cfgs.items():
            assert tagged in listed
            assert (tagged in timm.list_pretrained(f"{subject.name}*")) == bool(cfg.has_weights)
            model: Any = without_memory(partial(timm.create_model, tagged, **subject.kwargs()))
            assert (model.pretrained_cfg["tag"] or "") == tagged.partition(".")[2]

    def test_record_is_complete(self, subject: Subject) -> None:
        from timm.models import get_arch_pretrained_cfgs

        for tagged, cfg in get_arch_pretrained_cfgs(subject.name).items():
            missing = [field for field in REQUIRED if getattr(cfg, field) in (None, "", ())]
            assert not missing, f"the record of {tagged} lacks {', '.join(missing)}"
            if cfg.has_weights:
                assert cfg.license, f"the record of {tagged} names weights, but not their license"
                assert cfg.origin_url or cfg.paper_ids, (
                    f"the record of {tagged} names no origin_url or paper_ids"
                )

    def test_record_names_existing_layers(self, subject: Subject) -> None:
        model: Any = subject.model
        state = model.state_dict()
        for field in ("first_conv", "classifier"):
            names = model.pretrained_cfg[field]
            for name in (names,) if isinstance(names, str) else names:
                assert f"{name}.weight" in state, (
                    f"{field} = {name!r}, but {name}.weight is not in the state dict"
                )

    def test_first_convolution_takes_the_image(self, subject: Subject) -> None:
        model: Any = subject.model
        names = model.pretrained_cfg["first_conv"]
        for name in (names,) if isinstance(names, str) else names:
            weight = model.state_dict()[f"{name}.weight"]
            assert weight.shape[1] == subject.input_size[0], f"{name} has {weight.shape[1]} input channels"

    def test_data_config_follows_the_record(self, subject: Subject) -> None:
        from timm.data import create_transform, resolve_data_config

        model: Any = subject.model
        resolved = resolve_data_config({}, model=model)
        for field in ("input_size", "mean", "std", "crop_pct", "interpolation"):
            assert resolved[field] == model.pretrained_cfg[field]
        assert create_transform(**resolved) is not None

    def test_pretrained_without_weights_is_refused(self, subject: Subject) -> None:
        import timm

        if subject.cfg.has_weights:
            pytest.skip(f"{subject.name} has published weights")
        with pytest.raises((RuntimeError, ValueError)) as refusal:
            timm.create_model(subject.name, pretrained=True, **subject.kwargs())
        assert "pretrained" in str(refusal.value), f"the refusal does not name its cause: {refusal.value}"

    def test_parameter_count_is_the_published_one(self, published_parameters: tuple[str, int]) -> None:
        name, expected = published_parameters
        assert sum(parameter.numel() for parameter in full_size(name).parameters()) == expected

    def test_macs_are_the_published_ones(self, published_macs: tuple[str, int]) -> None:
        name, expected = published_macs
        model: Any = full_size(name)
        counted = count_macs(model, model.pretrained_cfg["input_size"])
        assert abs(counted - expected) <= self.macs_tolerance * expected, (
            f"counted {counted}, published {expected}"
        )

    def test_limit_case_equals_the_base_model(self, subject: Subject) -> None:
        pair = self.limit_case(subject)
        if pair is None:
            pytest.skip("limit_case is not overridden")
        ours, base = pair
        with torch.no_grad():
            agree(
                single(ours.eval()(subject.images())),
                single(base.eval()(subject.images())),
                "the method at its limit and the base model",
            )

    def limit_case(self, subject: Subject) -> tuple[nn.Module, nn.Module] | None:
        """Return the method at the setting where it changes nothing, and the base model with equal weights.

        Override it: sharing with rate 1, pooling that keeps every token. Both take ``subject.images()``.
        """
        return None
