"""Pictures of the clusters: which patches went into the same token, drawn over the image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from graftwork_token_pooling.patching import schedule_of
from graftwork_token_pooling.vit import TokenPoolingMixin

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@torch.no_grad()
def cluster_maps(model: TokenPoolingMixin, images: Tensor) -> dict[int, Tensor]:
    """Say which token every patch is in after each pooling block.

    Example:
        >>> maps = cluster_maps(pooled, images)  # doctest: +SKIP
        >>> {block: grid.shape for block, grid in maps.items()}  # doctest: +SKIP
        {3: torch.Size([1, 14, 14]), 6: torch.Size([1, 14, 14]), 9: torch.Size([1, 14, 14])}

    Args:
        model: With Token Pooling; evaluated in the mode it is in.
        images: (B, C, H, W).

    Returns:
        Block, counted from 1, to (B, rows, columns), int64, the number of the token.

    Raises:
        TypeError: The model does not pool.
    """
    if not isinstance(model, TokenPoolingMixin):
        raise TypeError(
            f"expected a model with Token Pooling, as apply() returns it, got {type(model).__name__}."
        )
    blocks = [block for block, _ in schedule_of(model).sites]
    _, _, _, _, owners = model.encode(images, True, [block - 1 for block in blocks], len(model.blocks) - 1)
    grid = model.patch_embed.dynamic_feat_size(tuple(images.shape[-2:]))
    return {block: owner.unflatten(1, grid) for block, owner in zip(blocks, owners)}


def draw_clusters(axes: Axes, image: Tensor, clusters: Tensor) -> None:
    """Paint every cluster in its mean colour and draw the borders between clusters.

    Args:
        axes: Where to draw.
        image: (3, H, W) or (1, H, W), 0 to 1.
        clusters: (rows, columns), int64.
    """
    rows, columns = clusters.shape
    patches = torch.nn.functional.adaptive_avg_pool2d(image, (rows, columns)).flatten(1)
    index = clusters.flatten()
    count = int(index.max()) + 1
    sums = torch.zeros(patches.shape[0], count).index_add(1, index, patches)
    painted = (sums / index.bincount(minlength=count).clamp_min(1))[:, index].view(-1, rows, columns)
    axes.imshow(painted.expand(3, -1, -1).permute(1, 2, 0).clamp(0, 1).numpy(), extent=(0, columns, rows, 0))
    grid = clusters.tolist()
    for row in range(rows):
        for column in range(columns):
            if column + 1 < columns and grid[row][column] != grid[row][column + 1]:
                axes.plot([column + 1] * 2, [row, row + 1], color="white", linewidth=0.7)
            if row + 1 < rows and grid[row][column] != grid[row + 1][column]:
                axes.plot([column, column + 1], [row + 1] * 2, color="white", linewidth=0.7)
    axes.set_aspect(image.shape[-2] * columns / (image.shape[-1] * rows))
    axes.set_axis_off()


def cluster_figure(
    model: TokenPoolingMixin, images: Tensor, *, mean: Sequence[float], std: Sequence[float]
) -> Figure:
    """Draw images beside their clusters after each pooling block.

    Example:
        >>> figure = cluster_figure(pooled, images[:4], mean=(0.5,) * 3, std=(0.5,) * 3)  # doctest: +SKIP
        >>> figure.savefig("clusters.png")  # doctest: +SKIP

    Args:
        model: With Token Pooling.
        images: (B, C, H, W), normalised as the model wants them.
        mean: What was subtracted from each channel.
        std: What each channel was divided by.

    Returns:
        A figure with one row per image, to be saved or shown.
    """
    import matplotlib.pyplot as plt

    device = next(model.parameters()).device
    maps = {block: grid.cpu() for block, grid in cluster_maps(model, images.to(device)).items()}
    channels = images.shape[1]
    scale, shift = torch.tensor(std).view(-1, 1, 1), torch.tensor(mean).view(-1, 1, 1)
    pixels = (images.cpu() * scale[:channels] + shift[:channels]).clamp(0, 1)
    figure, axes = plt.subplots(
        len(images), 1 + len(maps), figsize=(2.2 * (1 + len(maps)), 2.2 * len(images)), squeeze=False
    )
    for row, image in zip(axes, pixels):
        row[0].imshow(image.expand(3, -1, -1).permute(1, 2, 0).numpy())
        row[0].set_axis_off()
    axes[0][0].set_title("image", fontsize=9)
    for column, (block, grid) in enumerate(maps.items(), start=1):
        axes[0][column].set_title(f"after block {block}: {int(grid[0].max()) + 1} tokens", fontsize=9)
        for row, image, clusters in zip(axes, pixels, grid):
            draw_clusters(row[column], image, clusters)
    figure.tight_layout()
    return figure


def save_clusters(
    model: TokenPoolingMixin,
    images: Tensor,
    path: str | Path,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Path:
    """Write the picture of :func:`cluster_figure` as PNG.

    Args:
        model: With Token Pooling.
        images: (B, C, H, W), normalised.
        path: File to write.
        mean: What was subtracted; by default what timm's record of the model says.
        std: What it was divided by; likewise.

    Returns:
        The file.
    """
    import matplotlib.pyplot as plt

    record = getattr(model, "pretrained_cfg", {})
    figure = cluster_figure(
        model,
        images,
        mean=mean if mean is not None else record.get("mean", (0.5, 0.5, 0.5)),
        std=std if std is not None else record.get("std", (0.5, 0.5, 0.5)),
    )
    figure.savefig(path, dpi=130, bbox_inches="tight")
    plt.close(figure)
    return Path(path)
