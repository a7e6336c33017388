"""What the plugin offers; imports no framework."""

from __future__ import annotations

from collections.abc import Iterable

from graftwork import Component, Paper, hookimpl

PAPER = Paper(
    title="On the Efficacy of Multi-scale Data Samplers for Vision Applications",
    url="https://arxiv.org/abs/2309.04502",
    year=2023,
)
_PARTS = "graftwork_multiscale.mmengine_parts"

COMPONENTS = (
    Component(
        name="MultiScaleBatchSampler",
        kind="batch_sampler",
        summary="Draws an image size per step and fits the batch size to it",
        paper=PAPER,
        target="graftwork_multiscale.sampler:MultiScaleBatchSampler",
    ),
    Component(
        name="MultiScaleDatasetWrapper",
        kind="dataset",
        summary="Hands the sampled size to the pipeline of the data set it wraps",
        paper=PAPER,
        target=f"{_PARTS}:MultiScaleDatasetWrapper",
    ),
    Component(
        name="ResizeToSampledScale",
        kind="transform",
        summary="Resizes image, boxes and masks to the sampled size",
        paper=PAPER,
        target=f"{_PARTS}:ResizeToSampledScale",
    ),
    Component(
        name="MultiScaleHook",
        kind="hook",
        summary="Sets the epoch, logs size and batch, saves and restores the sampler",
        paper=PAPER,
        target=f"{_PARTS}:MultiScaleHook",
    ),
    Component(
        name="MultiScaleTrainLoop",
        kind="loop",
        summary="Epoch-based training that knows the exact number of iterations",
        paper=PAPER,
        target=f"{_PARTS}:MultiScaleTrainLoop",
    ),
)


@hookimpl
def graftwork_components() -> Iterable[Component]:
    """Offer the sampler and what travels with it."""
    return COMPONENTS
