"""The method itself, in plain torch: a gate on every residual branch."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Gate(nn.Module):
    """Multiply a residual branch by one learned number (ReZero, Eq. 1).

    Args:
        value: Where the number starts; 0 makes the residual block the identity.
        device: Where the parameter goes.
        dtype: Its type.
    """

    def __init__(
        self,
        value: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.full((), value, device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        """Scale a tensor of any shape."""
        return self.alpha * x


def gate_residuals(model: nn.Module, value: float = 0.0) -> nn.Module:
    """Put a gate on both residual branches of every transformer block of a timm model, in place.

    Example:
        >>> model = gate_residuals(timm.create_model("vit_small_patch16_224"))  # doctest: +SKIP

    Args:
        model: A network whose blocks hold ``nn.Identity`` as ``ls1`` and ``ls2``, where LayerScale would be.
        value: Where the gates start; 1 leaves the output of the model as it was.

    Returns:
        The same model.

    Raises:
        ValueError: The model has no such blocks, or scales its branches already.

    Note:
        The paper does without the normalisation of a gated block; here it stays, so that weights of the base
        model can be loaded.
    """
    blocks = [module for module in model.modules() if hasattr(module, "ls1") and hasattr(module, "ls2")]
    if not blocks:
        raise ValueError(
            f"{type(model).__name__} has no blocks with ls1 and ls2; give a vision transformer of timm."
        )
    scaled = {type(s).__name__ for b in blocks for s in (b.ls1, b.ls2) if not isinstance(s, nn.Identity)}
    if scaled:
        raise ValueError(
            f"{type(model).__name__} scales its residual branches already, by {', '.join(scaled)}; "
            "build it with init_values=None."
        )
    for block in blocks:
        like = next(block.parameters())
        block.ls1 = Gate(value, device=like.device, dtype=like.dtype)
        block.ls2 = Gate(value, device=like.device, dtype=like.dtype)
    return model
