"""What a network costs to store: measured by counting and by writing it."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file
from torch import nn


def count_parameters(model: nn.Module) -> int:
    """Count parameters; a shared tensor counts once."""
    return sum(parameter.numel() for parameter in model.parameters())


def write_checkpoint(model: nn.Module, path: Path) -> int:
    """Write a safetensors file, all of it or nothing, and return its size in bytes.

    Args:
        model: Whose state dict is written.
        path: Where to; replaced if it exists.

    Returns:
        Size of the file in bytes.
    """
    partial = path.with_name(path.name + ".partial")
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, partial)
    partial.replace(path)
    return path.stat().st_size
