"""The contract of a timm variant."""

from __future__ import annotations

from graftwork.testing.model.features import FeatureChecks
from graftwork.testing.model.graphs import GraphChecks
from graftwork.testing.model.heads import HeadChecks
from graftwork.testing.model.registry import RegistryChecks, count_macs
from graftwork.testing.model.state import StateChecks
from graftwork.testing.model.subject import ModelDeclaration, Subject
from graftwork.testing.model.training import TrainingChecks

__all__ = ["ModelContract", "ModelDeclaration", "Subject", "count_macs"]


class ModelContract(HeadChecks, FeatureChecks, StateChecks, TrainingChecks, GraphChecks, RegistryChecks):
    """Everything that timm and its scripts expect of a model, checked on a small copy of a variant.

    Example:
        >>> class TestConvMixerSpin(ModelContract):
        ...     variant = "convmixer_spin"
        ...     input_size = (3, 64, 64)
        ...     model_kwargs = dict(dim=32, depth=4)
        ...     parameters = 11_016_424

    The attributes are described in :class:`ModelDeclaration`. A check that a model cannot meet is declared
    with a reason (``torchscript = "the clustering loop is data dependent"``), or overridden and marked xfail.
    The factory must let ``model_kwargs`` override its own arguments: ``dict(model_args, **kwargs)``.
    """
