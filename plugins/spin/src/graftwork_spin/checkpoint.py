"""Checkpoints in the layout of the paper's released code, and in that of timm's ConvMixer.

The released files hold ``pwise_w.{i}``, ``pwise_b.{i}`` for the P stored tensors, ``patch_embed.*``,
``blocks.{l}.*`` for the L layers and ``head.fc.*``: 457 tensors for ConvMixer-768/32 without sharing, 425
with rate 2.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from graftwork_spin.convmixer import SpinConvMixer
from graftwork_spin.mapping import sharing_mapping

_LFS = b"version https://git-lfs.github.com/spec/"
_WRAPPERS = ("model_state", "state_dict", "model")
_BATCH_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
_CONV = ("weight", "bias")
# Released name, our name and the tensors of every part; {} is a layer.
_PARTS = (
    ("patch_embed.conv", "stem.0", _CONV),
    ("patch_embed.bn", "stem.2", _BATCH_NORM),
    ("blocks.{}.dwise_blk.0", "blocks.{}.dw", _CONV),
    ("blocks.{}.dwise_blk.2", "blocks.{}.norm1", _BATCH_NORM),
    ("blocks.{}.bn2", "blocks.{}.norm2", _BATCH_NORM),
    ("head.fc", "head", _CONV),
)
_TIMM_PARTS = {"0.fn.0": "dw", "0.fn.2": "norm1", "1": "pw", "3": "norm2"}


class CheckpointError(ValueError):
    """A file or state dict that is not what was asked for, with the first thing that is wrong."""


def load_released(path: str | Path, mapping: str | Sequence[int] = "sequential") -> SpinConvMixer:
    """Build the ConvMixer that a file of the released layout holds, and load it.

    Example:
        >>> model = load_released("WS-ConvMixer_768_32_14_3-Stripped.pyth")  # doctest: +SKIP

    Args:
        path: ``.pyth``, ``.pt`` or ``.safetensors`` file: a state dict, or one inside ``model_state``,
            with or without the prefix ``module.``. Only tensors are unpickled.
        mapping: Sharing mapping it was trained with; the file does not say. The released ones are
            sequential.

    Returns:
        The network, in evaluation mode, ReLU, with the residual around the pointwise half.

    Raises:
        FileNotFoundError: Nothing is there.
        CheckpointError: The file is a git-LFS pointer, unreadable, or of another layout.
    """
    state = read_state_dict(path)
    sizes = _check_released(state, Path(path).name)
    layers = _released_mapping(sizes["depth"], sizes["stored"], mapping)
    converted = convert_released(state, layers)
    model = SpinConvMixer(
        dim=sizes["dim"],
        depth=sizes["depth"],
        kernel_size=sizes["kernel_size"],
        patch_size=sizes["patch_size"],
        in_chans=sizes["in_chans"],
        num_classes=sizes["num_classes"],
        mapping=layers,
        device="meta",
    )
    model.load_state_dict(converted, assign=True)
    return model.requires_grad_().eval()


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read the state dict of a file, whatever it is wrapped in.

    Args:
        path: See :func:`load_released`.

    Returns:
        Name to tensor, on the CPU.

    Raises:
        FileNotFoundError: Nothing is there.
        CheckpointError: The file is a git-LFS pointer or cannot be read.
    """
    path = Path(path)
    with path.open("rb") as file:
        start = file.read(512)
    if start.startswith(_LFS):
        size = re.search(rb"size (\d+)", start)
        raise CheckpointError(
            f"{path} is a git-LFS pointer of {path.stat().st_size} bytes that stands for a file of "
            f"{int(size.group(1)) if size else 'unknown'} bytes, not the weights: run `git lfs pull` in the "
            "repository it comes from."
        )
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except ImportError:
        raise
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds more than tensors, or is damaged: {error}. Only tensors are read, because "
            "unpickling other objects can run code."
        ) from error
    except Exception as error:  # torch and safetensors raise a dozen types for damaged files
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint: {type(error).__name__}: {error}"
        ) from error
    return unwrap(content, path.name)


def unwrap(content: Any, where: str = "the checkpoint") -> dict[str, Tensor]:
    """Take the state dict out of what a training script saved, without the prefix of parallel wrappers.

    Args:
        content: What was loaded.
        where: Its name in error messages.

    Returns:
        Name to tensor.

    Raises:
        CheckpointError: There is no state dict inside.
    """
    for key in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f"{where} holds no state dict but a {type(content).__name__}.")
    for name, value in content.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(
                f"{where} holds no state dict: the first wrong key is {name!r}, a {type(value).__name__}."
            )
    if all(name.startswith("module.") for name in content):
        return {name.removeprefix("module."): value for name, value in content.items()}
    return dict(content)


def convert_released(state_dict: Mapping[str, Tensor], mapping: Sequence[int]) -> dict[str, Tensor]:
    """Rename the tensors of the released layout to those of :class:`SpinConvMixer`.

    Args:
        state_dict: Of the released layout.
        mapping: Stored-tensor index of every layer.

    Returns:
        Name to tensor.

    Raises:
        CheckpointError: The layout is another one; the first wrong key is named.
    """
    _check_released(state_dict, "the state dict")
    depth = len(mapping)
    renamed: dict[str, Tensor] = {}
    for theirs, ours, tensors in _PARTS:
        for layer in range(depth if "{}" in theirs else 1):
            for tensor in tensors:
                renamed[f"{ours.format(layer)}.{tensor}"] = state_dict[f"{theirs.format(layer)}.{tensor}"]
    shares = len(set(mapping)) < depth
    for index in range(max(mapping) + 1):
        for theirs, tensor in (("pwise_w", "weight"), ("pwise_b", "bias")):
            ours = f"shared.pw.{tensor}.{index}" if shares else f"blocks.{mapping.index(index)}.pw.{tensor}"
            renamed[ours] = state_dict[f"{theirs}.{index}"]
    if shares:
        renamed["layer_map"] = torch.tensor(list(mapping))
    return renamed


def from_timm(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of timm's ConvMixer to those of an unshared :class:`SpinConvMixer`.

    Args:
        state_dict: Of timm's layout.

    Returns:
        Name to tensor; it fits a network with ``rate=1, pw_residual=False``.
    """
    renamed = {}
    for name, value in state_dict.items():
        match = re.fullmatch(r"(blocks\.\d+)\.(0\.fn\.0|0\.fn\.2|1|3)\.(\w+)", name)
        renamed[f"{match[1]}.{_TIMM_PARTS[match[2]]}.{match[3]}" if match else name] = value
    return renamed


def own_layout(state_dict: Mapping[str, Any], mapping: Sequence[int]) -> dict[str, Tensor]:
    """Bring a ConvMixer state dict of any of the three layouts into that of :class:`SpinConvMixer`.

    Args:
        state_dict: Of this package, of the released code or of timm; wrapped or not.
        mapping: Stored-tensor index of every layer of the network it is for.

    Returns:
        Name to tensor.
    """
    state = unwrap(state_dict)
    if "pwise_w.0" in state:
        return convert_released(state, mapping)
    return from_timm(state) if "blocks.0.0.fn.0.weight" in state else state


def _check_released(state: Mapping[str, Tensor], where: str) -> dict[str, int]:
    """Check every name and shape; return the sizes they imply."""
    head, stem, depthwise = "head.fc.weight", "patch_embed.conv.weight", "blocks.0.dwise_blk.0.weight"
    for name, dims in (("pwise_w.0", 4), (stem, 4), (depthwise, 4), (head, 2)):
        if name not in state or state[name].dim() != dims:
            known = re.compile(
                r"pwise_[wb]\.\d+|patch_embed\.(conv|bn)\.\w+|blocks\.\d+\.(dwise_blk\.[02]|bn2)\.\w+"
            )
            foreign = [key for key in state if not known.fullmatch(key) and not key.startswith("head.fc.")]
            first = f"the first wrong key is {foreign[0]!r}" if foreign else f"{name!r} is missing"
            raise CheckpointError(
                f"{where} is not a checkpoint of the released SPIN layout: {first}; expected pwise_w.0, "
                f"patch_embed.conv.weight, blocks.0.dwise_blk.0.weight, head.fc.weight and so on."
            )
    dim, in_chans, patch_size, _ = state[stem].shape
    classes, kernel_size = state[head].shape[0], state[depthwise].shape[-1]
    stored = sum(bool(re.fullmatch(r"pwise_w\.\d+", name)) for name in state)
    depth = sum(bool(re.fullmatch(r"blocks\.\d+\.dwise_blk\.0\.weight", name)) for name in state)
    expected = _released_shapes(dim, depth, stored, kernel_size, patch_size, in_chans, classes)
    for name, shape in expected.items():
        if name not in state:
            raise CheckpointError(f"{where} is incomplete: the first missing key is {name!r}.")
        if tuple(state[name].shape) != shape:
            raise CheckpointError(
                f"{where}: the first wrong key is {name!r} of shape {tuple(state[name].shape)}, "
                f"expected {shape}."
            )
    for name in state:
        if name not in expected:
            raise CheckpointError(
                f"{where}: the first wrong key is {name!r}, which the layout does not have."
            )
    return {
        "dim": dim,
        "depth": depth,
        "stored": stored,
        "kernel_size": kernel_size,
        "patch_size": patch_size,
        "in_chans": in_chans,
        "num_classes": classes,
    }


def _released_shapes(
    dim: int, depth: int, stored: int, kernel: int, patch: int, channels: int, classes: int
) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for i in range(stored):
        shapes |= {f"pwise_w.{i}": (dim, dim, 1, 1), f"pwise_b.{i}": (dim,)}
    weights = {
        "patch_embed.conv": (dim, channels, patch, patch),
        "blocks.{}.dwise_blk.0": (dim, 1, kernel, kernel),
        "head.fc": (classes, dim),
    }
    for part, _, tensors in _PARTS:
        for layer in range(depth if "{}" in part else 1):
            for tensor in tensors:
                shape: tuple[int, ...] = (classes,) if part == "head.fc" else (dim,)
                if tensor == "weight":
                    shape = weights.get(part, (dim,))
                shapes[f"{part.format(layer)}.{tensor}"] = () if tensor == "num_batches_tracked" else shape
    return shapes


def _released_mapping(depth: int, stored: int, mapping: str | Sequence[int]) -> tuple[int, ...]:
    if isinstance(mapping, str) and depth % stored:
        raise CheckpointError(
            f"{stored} tensors for {depth} layers are not a uniform sharing: give the mapping as a list."
        )
    layers = sharing_mapping(depth, depth // stored, mapping)
    if max(layers) + 1 != stored:
        raise CheckpointError(f"the mapping uses {max(layers) + 1} tensors, the checkpoint holds {stored}.")
    return layers
