"""Forward passes of the convolutional families: a stem, then blocks that take shared tensors."""

from __future__ import annotations

import torch
from timm.models._features import feature_take_indices
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from graftwork_spin.network import SharedNetwork


class SharedConvNet(SharedNetwork):
    """Mixin of networks made of ``stem`` and ``blocks``.

    Shapes: B images of H * P x W * P pixels, C channels, H x W patches.
    """

    def forward_features(self, x: Tensor) -> Tensor:
        """Map images (B, in_chans, H * P, W * P) to (B, C, H, W)."""
        x = self.stem(x)
        weights, biases = self.layer_tensors()
        for i, block in enumerate(self.blocks):
            if self.grad_checkpointing and not torch.jit.is_scripting():
                # Not reentrant, whatever timm's default: shared tensors come in lists, used repeatedly.
                x = checkpoint(block, x, weights[i], biases[i], use_reentrant=False)
            else:
                x = block(x, weights[i], biases[i])
        return x

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Return the outputs of chosen blocks, with the final features unless told otherwise.

        Args:
            x: Images.
            indices: The last n blocks if a number, all if None, else these.
            norm: Without effect; there is no final norm.
            stop_early: Stop after the last block wanted.
            output_fmt: Only ``"NCHW"``.
            intermediates_only: Leave out the final features.

        Returns:
            Features and intermediates, or the intermediates.
        """
        assert output_fmt in ("NCHW",), "Output shape must be NCHW."
        intermediates = []
        take_indices, max_index = feature_take_indices(len(self.blocks), indices)
        x = self.stem(x)
        weights, biases = self.layer_tensors()
        for i, block in enumerate(self.blocks):
            if stop_early and i > max_index:
                continue  # TorchScript neither slices blocks nor breaks out of their loop
            if self.grad_checkpointing and not torch.jit.is_scripting():
                x = checkpoint(block, x, weights[i], biases[i], use_reentrant=False)
            else:
                x = block(x, weights[i], biases[i])
            if i in take_indices:
                intermediates.append(x)
        if intermediates_only:
            return intermediates
        return x, intermediates
