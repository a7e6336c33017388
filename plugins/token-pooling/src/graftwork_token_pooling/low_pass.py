"""The paper's premise, measured: attention is a low-pass filter, so its output can be sampled more coarsely.

If queries and keys had constant norms, softmax attention would be a normalised Gaussian filter in the
space of the keys, exp(-|q - k|^2 / (2 sqrt d)), whose output is smooth; and smooth tokens are redundant.
Two things are measured on a model and images: how far real attention is from that Gaussian filter, and how
strongly each block's attention damps the spatial frequencies of the values on the token grid.

Shapes: B images, H heads, N patch tokens, D channels per head, L blocks, F frequency bins.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from timm.layers import Attention
from timm.models import VisionTransformer
from timm.models.vision_transformer import ResPostBlock
from torch import Tensor, nn

from graftwork_token_pooling.patching import remove
from graftwork_token_pooling.vit import TokenPoolingMixin

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class LowPass:
    """What the attention of every block does.

    Args:
        frequency: (F,) centres of the bins, in cycles per token, 0 to 0.5.
        gain: (L, F) amplitude of attention's output over that of its values.
        key_variation: (L,) standard deviation of the keys' norms over their mean; 0 in the paper's
        assumption. gaussian_gap: (L,) mean total variation, 0 to 1, between attention and the Gaussian
        filter of its queries and
            keys.
    """

    frequency: Tensor
    gain: Tensor
    key_variation: Tensor
    gaussian_gap: Tensor


@torch.no_grad()
def analyse_attention(model: nn.Module, images: Tensor, bins: int = 8) -> LowPass:
    """Measure how much each block's attention smooths.

    Example:
        >>> result = analyse_attention(model, images)  # doctest: +SKIP
        >>> plot_low_pass(result).savefig("low_pass.png")  # doctest: +SKIP

    Args:
        model: A vision transformer of timm with its standard attention; pooling is removed for the analysis.
        images: (B, C, H, W), normalised.
        bins: Frequency bins.

    Returns:
        Gains and distances by block.

    Raises:
        TypeError: Not such a model.
    """
    plain = remove(model) if isinstance(model, TokenPoolingMixin) else model
    if not isinstance(plain, VisionTransformer) or not all(
        type(block.attn).forward is Attention.forward for block in plain.blocks
    ):
        raise TypeError(
            f"the analysis reads the attention of timm's VisionTransformer, got {type(model).__name__}."
        )
    prefix = plain.num_prefix_tokens
    x = plain.norm_pre(plain._pos_embed(plain.patch_embed(images)))
    grid = plain.patch_embed.dynamic_feat_size(tuple(images.shape[-2:]))
    gains, variations, gaps = [], [], []
    for block in plain.blocks:
        inside = x if isinstance(block, ResPostBlock) else block.norm1(x)
        attn = block.attn
        q, k, v = (
            attn.qkv(inside).unflatten(2, (3, attn.num_heads, attn.head_dim)).permute(2, 0, 3, 1, 4).float()
        )
        q, k = attn.q_norm(q), attn.k_norm(k)
        weights = (attn.scale * q @ k.transpose(2, 3)).softmax(3)
        gaussian = (-0.5 * attn.scale * torch.cdist(q, k).square()).softmax(3)
        norms = k.norm(dim=3)
        variations.append((norms.std(2) / norms.mean(2)).mean())
        gaps.append(0.5 * (weights - gaussian).abs().sum(3).mean())
        before = radial_amplitude(v[:, :, prefix:], grid, bins)
        gains.append(radial_amplitude((weights @ v)[:, :, prefix:], grid, bins) / before.clamp_min(1e-12))
        x = block(x)
    frequency = (torch.arange(bins) + 0.5) * 0.5 / bins
    return LowPass(
        frequency, torch.stack(gains).cpu(), torch.stack(variations).cpu(), torch.stack(gaps).cpu()
    )


def radial_amplitude(values: Tensor, grid: tuple[int, int], bins: int) -> Tensor:
    """Return the root mean square amplitude of tokens by spatial frequency.

    Args:
        values: (B, H, N, D), on the grid.
        grid: Rows and columns.
        bins: Bins from 0 to 0.5 cycles per token; the mean of the image, frequency zero, belongs to none.

    Returns:
        (bins,); zero for a bin without any frequency of the grid.
    """
    spectrum = torch.fft.fft2(values.unflatten(2, grid), dim=(2, 3), norm="ortho").abs().square()
    power = spectrum.mean(dim=(0, 1, 4)).flatten()
    rows, columns = (torch.fft.fftfreq(side, device=values.device) for side in grid)
    radius = (rows.unsqueeze(1).square() + columns.unsqueeze(0).square()).sqrt().flatten()
    # the corners of the spectrum lie beyond 0.5; they join the last bin
    index = ((radius * 2 * bins).ceil().long() - 1).clamp(0, bins - 1)
    valid = radius > 0
    total = torch.zeros(bins, device=values.device).index_add(0, index[valid], power[valid])
    return (total / index[valid].bincount(minlength=bins).clamp_min(1)).sqrt()


def plot_low_pass(result: LowPass) -> Figure:
    """Draw the gains by frequency, and by block how far the paper's assumption is from true.

    Args:
        result: Of :func:`analyse_attention`.

    Returns:
        A figure, to be saved or shown.
    """
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.6))
    depth = len(result.gain)
    colours = plt.get_cmap("viridis")
    for index, gain in enumerate(result.gain):
        measured = gain > 0
        left.plot(
            result.frequency[measured],
            gain[measured],
            color=colours(index / max(1, depth - 1)),
            label=f"block {index + 1}" if index in (0, depth - 1) else None,
        )
    left.axhline(1.0, color="grey", linewidth=0.8)
    left.set(xlabel="spatial frequency, cycles per token", ylabel="gain of attention", yscale="log")
    left.legend(frameon=False)
    blocks = range(1, depth + 1)
    right.plot(blocks, result.key_variation, marker="o", label="variation of key norms")
    right.plot(blocks, result.gaussian_gap, marker="s", label="distance to a Gaussian filter")
    right.set(xlabel="block", ylim=(0, None))
    right.legend(frameon=False)
    figure.tight_layout()
    return figure
