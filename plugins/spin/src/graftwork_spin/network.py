"""What the shared forms of all families have in common: tying blocks, loading, pruning, collapsing.

A block computes with its own layers where they are private and with handed-in tensors where they are shared;
the network owns the shared tensors in ``shared`` and hands them out in its forward pass.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from graftwork_spin.layers import INITIALISATIONS, SharedLayer
from graftwork_spin.plan import Sharing, plan_sharing


class SharedNetwork(nn.Module):
    """Mixin of networks whose equal blocks share tensors.

    ``COMPONENTS`` maps the name of a component to the paths of its layers inside a block; ``DEFAULT`` names
    what the paper shares. A subclass provides ``adapt_block`` and calls :meth:`share_blocks` once its blocks
    exist.
    """

    # No class-level annotations here or below: TorchScript reads those of the first class that has any, and
    # timm's VisionTransformer needs its own to be found.
    COMPONENTS = None
    DEFAULT = ()

    @classmethod
    def plan(cls, depth: int, **choice: Any) -> Sharing:
        """Check a choice of sharing for this family; the arguments are those of :func:`plan_sharing`."""
        return plan_sharing(depth, cls.COMPONENTS, cls.DEFAULT, **choice)

    @classmethod
    def from_unshared(cls, model: nn.Module, sharing: Sharing, init: str = "choose_first") -> SharedNetwork:
        """Build the shared form of a network of this family; the given network stays as it is.

        Args:
            model: A plain timm network, or one of this class that shares nothing.
            sharing: What to share.
            init: How a stored tensor starts from those of its layers, ``"choose_first"`` or ``"mean"``.

        Returns:
            A new network.

        Raises:
            ValueError: The network shares already.
        """
        if init not in INITIALISATIONS:
            raise ValueError(f"init must be one of {', '.join(INITIALISATIONS)}, got {init!r}.")
        if isinstance(model, SharedNetwork) and len(model.shared):
            raise ValueError(
                f"this {type(model).__name__} shares tensors already ({model.sharing}): start from the "
                "network that shares nothing."
            )
        # timm networks do not keep their constructor's arguments, so this is copy construction: a new object
        # of this class with a copy of every attribute.
        network = cls.__new__(cls)
        network.__dict__.update(copy.deepcopy(model).__dict__)
        if not isinstance(model, SharedNetwork):
            network.adopt_blocks()
        network.share_blocks(sharing, init)
        return network

    def adopt_blocks(self, **options: Any) -> None:
        """Replace timm's blocks by blocks that take shared tensors; nothing is shared yet."""
        self.blocks = nn.ModuleList(self.adapt_block(block, **options) for block in self.blocks)

    @staticmethod
    def adapt_block(block: nn.Module) -> nn.Module:
        """Make one block that takes shared tensors, with the layers of the given one."""
        raise NotImplementedError

    def share_blocks(self, sharing: Sharing, init: str = "choose_first") -> None:
        """Move the tensors of the chosen components from the blocks into ``shared``."""
        self.sharing = sharing
        self.shared = nn.ModuleDict()
        self.register_buffer("layer_map", None)
        if sharing.shares_nothing():
            return
        device = next(self.parameters()).device
        self.register_buffer("layer_map", torch.tensor(sharing.mapping, device=device))
        paths = [path for component in sharing.components for path in self.COMPONENTS[component]]
        stored = {}
        for path in paths:
            layers = [block.get_submodule(path) for block in self.blocks]
            biases = None if layers[0].bias is None else [layer.bias for layer in layers]
            stored[slot_of(path)] = SharedLayer(
                [layer.weight for layer in layers],
                biases,
                sharing.mapping,
                init=init,
                fusion=sharing.fusion,
                transform=sharing.transform,
            )
        self.shared = nn.ModuleDict(stored)
        for block in self.blocks:
            for at, path in enumerate(paths):
                _borrow(block, path, at)

    @torch.jit.ignore
    def reset_adapters(self) -> None:
        """Set transforms and reductions to the identity, and refill the stored mapping."""
        for layer in self.shared.values():
            layer.reset_adapters()
        if self.layer_map is not None:
            self.layer_map.copy_(torch.tensor(self.sharing.mapping))

    def layer_tensors(self) -> tuple[list[list[Tensor]], list[list[Tensor | None]]]:
        """Return for every block the shared weights and biases it needs, in the order of ``shared``."""
        weights: list[list[Tensor]] = []
        biases: list[list[Tensor | None]] = []
        for _ in range(len(self.blocks)):
            no_weight: list[Tensor] = []
            no_bias: list[Tensor | None] = []
            weights.append(no_weight)
            biases.append(no_bias)
        for layer in self.shared.values():
            of_layer, bias_of_layer = layer()
            for i in range(len(of_layer)):
                weights[i].append(of_layer[i])
                biases[i].append(bias_of_layer[i])
        return weights, biases

    @torch.jit.ignore
    def collapse_(self) -> SharedNetwork:
        """End online fusion in place; :func:`graftwork_spin.fusion.collapse` is the public way."""
        for layer in self.shared.values():
            layer.collapse_()
        self.sharing = replace(self.sharing, fusion=None)
        return self

    @torch.jit.ignore
    def truncate_blocks(self, depth: int) -> None:
        """Keep the first `depth` blocks and the stored tensors they use."""
        self.blocks = self.blocks[:depth]
        mapping = list(range(depth))
        for layer in self.shared.values():
            layer.truncate_(depth)
            mapping = layer.mapping
        self.sharing = replace(self.sharing, mapping=tuple(mapping))
        if self.layer_map is not None:
            self.layer_map = torch.tensor(mapping, device=self.layer_map.device)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Name the parameters that decay would pull away from the identity: transforms and reductions."""
        parent = getattr(super(), "no_weight_decay", set)
        adapters = (".scale.", ".shift.", ".reduction.")
        return set(parent()) | {
            name
            for name, _ in self.named_parameters()
            if name.startswith("shared.") and any(adapter in name for adapter in adapters)
        }

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Group parameters by depth; a stored tensor belongs to the first block that uses it."""
        matcher = dict(super().group_matcher(coarse))
        blocks = matcher["blocks"]
        specs = [(blocks, None)] if isinstance(blocks, str) else list(blocks)
        return {**matcher, "blocks": [*specs, *self.shared_groups()]}

    @torch.jit.ignore
    def shared_groups(self) -> list[tuple[str, tuple[int, ...] | None]]:
        """Give the patterns by which timm's layer-wise decay finds the depth of a stored tensor."""
        specs: list[tuple[str, tuple[int, ...] | None]] = []
        for layer in self.shared.values():
            specs = [(r"^shared\.\w+\.(?:scale|shift)\.(\d+)$", None)]
            for index, members in enumerate(layer.groups):
                depth = (layer.mapping.index(index),)
                specs += [
                    (rf"^shared\.\w+\.(?:weight|bias|reduction)\.{member}$", depth) for member in members
                ]
        return specs  # all kinds of layers follow one mapping

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, local_metadata: Any, strict: bool, *rest: Any
    ) -> None:
        errors = rest[-1]
        if len(self.shared):
            plain = f"{prefix}blocks.0.{self._paths()[0]}.weight" in state_dict
            if plain and self.sharing.fusion:
                self._take_unshared(state_dict, prefix)
            elif plain:
                errors.append(
                    "the state dict is that of a network that shares nothing. Fuse it first: "
                    "graftwork_spin.fuse(state_dict, 'mean', ...) with the mapping of this network."
                )
            saved = state_dict.get(f"{prefix}layer_map")
            if saved is not None and saved.tolist() != list(self.sharing.mapping):
                errors.append(
                    f"the state dict was saved with the sharing mapping {saved.tolist()}, this network has "
                    f"{list(self.sharing.mapping)}: build it with mapping={saved.tolist()}."
                )
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, *rest)

    def _paths(self) -> list[str]:
        return [path for component in self.sharing.components for path in self.COMPONENTS[component]]

    def _take_unshared(self, state_dict: dict[str, Tensor], prefix: str) -> None:
        """Start online fusion from a plainly trained network: its L tensors are the ones to be fused."""
        for path in self._paths():
            for layer in range(len(self.blocks)):
                for kind in ("weight", "bias"):
                    value = state_dict.pop(f"{prefix}blocks.{layer}.{path}.{kind}", None)
                    if value is not None:
                        state_dict[f"{prefix}shared.{slot_of(path)}.{kind}.{layer}"] = value
        own = self.state_dict()
        for name, value in own.items():
            if name == "layer_map" or name.startswith("shared."):
                state_dict.setdefault(prefix + name, value)


def slot_of(path: str) -> str:
    """Return the name in ``shared`` of the layer at a path inside a block."""
    return path.rpartition(".")[2]


def _borrow(block: nn.Module, path: str, at: int) -> None:
    """Drop a layer from a block, and note where its tensors stand among those handed in."""
    parent, _, name = path.rpartition(".")
    owner = block.get_submodule(parent)
    layer = getattr(owner, name)
    setattr(owner, f"{name}_at", at)
    if isinstance(layer, nn.modules.batchnorm._BatchNorm):
        # Running statistics describe this depth and stay; only the affine part is shared.
        layer.affine = False
        layer.register_parameter("weight", None)
        layer.register_parameter("bias", None)
    else:
        setattr(owner, name, None)
