"""How similar the layers of a network are: linear CKA of their outputs, as in the paper's qualitative study.

Centered kernel alignment: Kornblith et al., "Similarity of Neural Network Representations Revisited", 2019.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def linear_cka(x: Tensor, y: Tensor) -> float:
    """Compare two representations of the same samples, up to rotation and scale of their features.

    Example:
        >>> x = torch.randn(20, 5)
        >>> round(linear_cka(x, 3 * x), 4)
        1.0

    Args:
        x: (N, ...) features of N samples; further axes are flattened.
        y: (N, ...) features of the same samples.

    Returns:
        Linear CKA, 0 (unrelated) to 1 (equal up to rotation and scale).

    Raises:
        ValueError: The numbers of samples differ, or there are fewer than two.
    """
    if len(x) != len(y) or len(x) < 2:
        raise ValueError(
            f"CKA compares the same two or more samples, got {len(x)} and {len(y)}: use one batch."
        )
    return float(_alignment(torch.stack([_gram(x), _gram(y)]))[0, 1])


@torch.no_grad()
def layer_outputs(model: nn.Module, images: Tensor, *, batch_size: int = 32) -> list[Tensor]:
    """Collect the output of every block.

    Args:
        model: Any timm network with ``forward_intermediates``; evaluated as it stands.
        images: (N, C, H, W) normalised images.
        batch_size: Images at a time.

    Returns:
        For every block (N, features) on the CPU; all positions are kept, so N x depth x features floats.

    Raises:
        TypeError: The network gives no intermediates.
    """
    if not hasattr(model, "forward_intermediates"):
        raise TypeError(
            f"{type(model).__name__} has no forward_intermediates, so its blocks cannot be compared."
        )
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    parts: list[list[Tensor]] = []
    for batch in images.split(batch_size):
        outputs = model.forward_intermediates(batch.to(device), intermediates_only=True)
        parts.append([output.flatten(1).float().cpu() for output in outputs])
    model.train(was_training)
    return [torch.cat(of_block) for of_block in zip(*parts)]


def cka_matrix(outputs: Sequence[Tensor], others: Sequence[Tensor] | None = None) -> Tensor:
    """Compare every layer with every layer, of one network or of two.

    Args:
        outputs: (N, ...) features of each layer, from :func:`layer_outputs`.
        others: Those of a second network on the same images; None for the first.

    Returns:
        (L, M) linear CKA.
    """
    rows = torch.stack([_gram(output) for output in outputs])
    if others is None:
        return _alignment(rows)
    columns = torch.stack([_gram(output) for output in others])
    return _alignment(torch.cat([rows, columns]))[: len(rows), len(rows) :]


def plot_cka(matrices: dict[str, Tensor]) -> Figure:
    """Draw CKA matrices side by side on one colour scale.

    Args:
        matrices: Title to (L, M) matrix.

    Returns:
        A matplotlib figure.
    """
    from matplotlib.figure import Figure

    width = 3.6 * len(matrices) + 0.8
    figure = Figure(figsize=(width, 3.6), layout="constrained")
    axes = figure.subplots(1, len(matrices), squeeze=False)[0]
    for axis, (title, matrix) in zip(axes, matrices.items()):
        picture = axis.imshow(matrix.numpy(), vmin=0, vmax=1, origin="lower", cmap="magma")
        axis.set(title=title, xlabel="layer", ylabel="layer")
    figure.colorbar(picture, ax=list(axes), label="linear CKA of layer outputs", shrink=0.9)
    return figure


def _gram(features: Tensor) -> Tensor:
    """Return the (N, N) Gram matrix of centred features; its size does not depend on their number."""
    flat = features.flatten(1).double()
    flat = flat - flat.mean(0)
    return flat @ flat.T


def _alignment(grams: Tensor) -> Tensor:
    """Compute <K, L> / (|K| |L|) for every pair of Gram matrices: |Y'X|^2 / (|X'X| |Y'Y|)."""
    flat = grams.flatten(1)
    norms = flat.norm(dim=1)
    return (flat @ flat.T) / (norms[:, None] * norms[None, :]).clamp_min(torch.finfo(flat.dtype).tiny)
