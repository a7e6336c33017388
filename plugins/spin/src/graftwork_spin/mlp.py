"""The perceptron of transformer and ConvNeXt blocks, with layers that may be shared."""

from __future__ import annotations

from timm.layers import GluMlp, Mlp
from torch import Tensor, nn
from torch.nn import functional


class SpinMlp(nn.Module):
    """timm's ``Mlp`` or ``GluMlp`` on (..., C); a shared layer is None and its tensors are handed in.

    Args:
        mlp: Whose layers are taken over.

    Raises:
        TypeError: It is another kind of perceptron, or a convolutional one.
    """

    __constants__ = ("gate_last", "gated")

    def __init__(self, mlp: nn.Module) -> None:
        super().__init__()
        if type(mlp) not in (Mlp, GluMlp) or not isinstance(mlp.fc1, nn.Linear):
            raise TypeError(
                f"sharing inside blocks supports timm's Mlp and GluMlp with linear layers, got "
                f"{type(mlp).__name__} with a {type(getattr(mlp, 'fc1', None)).__name__} as fc1."
            )
        self.fc1, self.act, self.drop1 = mlp.fc1, mlp.act, mlp.drop1
        self.norm, self.fc2, self.drop2 = mlp.norm, mlp.fc2, mlp.drop2
        self.gated = isinstance(mlp, GluMlp)
        self.gate_last = getattr(mlp, "gate_last", False)
        self.fc1_at = self.fc2_at = -1

    def forward(self, x: Tensor, weights: list[Tensor], biases: list[Tensor | None]) -> Tensor:
        """Map (..., C) to the same shape, with this layer's shared tensors in the order of ``shared``."""
        if self.fc1 is not None:
            x = self.fc1(x)
        else:
            x = functional.linear(x, weights[self.fc1_at], biases[self.fc1_at])
        if self.gated:
            x1, x2 = x.chunk(2, dim=-1)
            x = x1 * self.act(x2) if self.gate_last else self.act(x1) * x2
        else:
            x = self.act(x)
        x = self.norm(self.drop1(x))
        if self.fc2 is not None:
            x = self.fc2(x)
        else:
            x = functional.linear(x, weights[self.fc2_at], biases[self.fc2_at])
        return self.drop2(x)
