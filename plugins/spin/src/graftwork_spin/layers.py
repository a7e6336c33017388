"""The stored tensors of one kind of layer, and what each depth computes with.

Every stored tensor is an entry of a ``ParameterList``, so it has exactly one state-dict key and one owner:
copies, pickles, averaged copies, safetensors files and DistributedDataParallel need no special care.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from graftwork_spin.mapping import groups_of

INITIALISATIONS = ("choose_first", "mean")
ONLINE_FUSIONS = ("mean", "scalar_weighted_mean", "channel_weighted_mean")
TRANSFORMS = ("none", "affine_channel", "affine_group")


class SharedLayer(nn.Module):
    """Stores the tensors of one kind of layer and hands every depth its weight and bias.

    Args:
        weights: Weight of every layer, L tensors of one shape.
        biases: Bias of every layer, or None where the layers have none.
        mapping: Stored-tensor index of every layer, see :func:`graftwork_spin.mapping.sharing_mapping`.
        init: How a stored tensor starts from those of its layers: ``"choose_first"`` or ``"mean"``.
        fusion: None, or the online fusion of training: all L tensors stay stored and each forward
            pass fuses every group. ``"mean"``, ``"scalar_weighted_mean"`` or ``"channel_weighted_mean"``.
        transform: Private transform a * W + b of every layer's weight: ``"none"``, ``"affine_channel"`` (one
            pair per output channel) or ``"affine_group"`` (one pair per `group_size` consecutive weights).
        group_size: G of ``"affine_group"``.
    """

    __constants__ = ("fusion", "transform")

    def __init__(
        self,
        weights: Sequence[Tensor],
        biases: Sequence[Tensor] | None,
        mapping: Sequence[int],
        *,
        init: str = "choose_first",
        fusion: str | None = None,
        transform: str = "none",
        group_size: int = 64,
    ) -> None:
        super().__init__()
        shape = list(weights[0].shape)
        for layer, weight in enumerate(weights):
            if list(weight.shape) != shape:
                raise ValueError(
                    f"only layers of one shape can share: the weight of layer 0 is {tuple(shape)}, that of "
                    f"layer {layer} is {tuple(weight.shape)}."
                )
        # A vector (the affine part of a norm) has no channels to weight or transform.
        self.transform = transform if len(shape) > 1 else "none"
        self.fusion = fusion or ""
        self.mapping = list(mapping)
        self.shape = shape
        self.per_channel = [-1] + [1] * (len(shape) - 1)
        self.group_size = group_size

        layers_of = groups_of(mapping)
        if fusion:
            self.groups = layers_of
            chosen = [[layer] for layer in range(len(weights))]
        else:
            self.groups = [[index] for index in range(len(layers_of))]
            chosen = layers_of
        self.weight = _stored(weights, chosen, init)
        self.bias = _stored(biases, chosen, init) if biases is not None else nn.ParameterList()

        dd = {"device": weights[0].device, "dtype": weights[0].dtype}
        reductions = {"scalar_weighted_mean": 1, "channel_weighted_mean": shape[0]}.get(self.fusion, 0)
        if len(shape) == 1:
            reductions = 0
        self.reduction = nn.ParameterList(
            nn.Parameter(torch.ones(reductions, **dd)) for _ in weights if reductions
        )
        pairs = self._pair_shape()
        self.scale = nn.ParameterList(nn.Parameter(torch.ones(pairs, **dd)) for _ in weights if pairs)
        self.shift = nn.ParameterList(nn.Parameter(torch.zeros(pairs, **dd)) for _ in weights if pairs)

    def _pair_shape(self) -> list[int]:
        if self.transform == "affine_channel":
            return [self.shape[0]] + [1] * (len(self.shape) - 1)
        if self.transform == "affine_group":
            count = torch.Size(self.shape).numel()
            if count % self.group_size:
                raise ValueError(
                    f"transform='affine_group' needs weights divisible into groups of {self.group_size}, but "
                    f"a weight of shape {tuple(self.shape)} has {count} values: use 'affine_channel'."
                )
            return [count // self.group_size, 1]
        return []

    def reset_adapters(self) -> None:
        """Set what is learned beside the weights to the identity: a = 1, b = 0, reductions 1."""
        with torch.no_grad():
            for one in (*self.scale, *self.reduction):
                one.fill_(1)
            for zero in self.shift:
                zero.zero_()

    def fused_weights(self) -> list[Tensor]:
        """Compute the P weights: as stored, or (1 / |S_i|) * sum of a_l * W_l."""
        stored = [weight for weight in self.weight]  # noqa: C416  (TorchScript cannot index a ParameterList)
        if self.fusion == "":
            return stored
        reduction = [a for a in self.reduction]  # noqa: C416
        fused: list[Tensor] = []
        for group in self.groups:
            terms: list[Tensor] = []
            for member in group:
                weight = stored[member]
                if len(reduction) > 0:
                    weight = weight * reduction[member].view(self.per_channel)
                terms.append(weight)
            fused.append(_mean(terms))
        return fused

    def fused_biases(self) -> list[Tensor]:
        """Compute the P biases: as stored, or the plain mean of each group; empty where layers have none."""
        stored = [bias for bias in self.bias]  # noqa: C416
        if self.fusion == "" or len(stored) == 0:
            return stored
        fused: list[Tensor] = []
        for group in self.groups:
            terms: list[Tensor] = []
            for member in group:
                terms.append(stored[member])
            fused.append(_mean(terms))
        return fused

    def forward(self) -> tuple[list[Tensor], list[Tensor | None]]:
        """Return the weight and the bias of every layer."""
        fused_weights, fused_biases = self.fused_weights(), self.fused_biases()
        scale = [a for a in self.scale]  # noqa: C416
        shift = [b for b in self.shift]  # noqa: C416
        weights: list[Tensor] = []
        biases: list[Tensor | None] = []
        for layer, index in enumerate(self.mapping):
            weight = fused_weights[index]
            if self.transform == "affine_channel":
                weight = weight * scale[layer] + shift[layer]
            elif self.transform == "affine_group":
                grouped = weight.reshape(-1, self.group_size)
                weight = (grouped * scale[layer] + shift[layer]).reshape(self.shape)
            weights.append(weight)
            biases.append(fused_biases[index] if len(fused_biases) > 0 else None)
        return weights, biases

    @torch.no_grad()
    def collapse_(self) -> None:
        """Replace the L tensors of online fusion by the P tensors they amount to."""
        weights, biases = self.fused_weights(), self.fused_biases()
        self.weight = nn.ParameterList(nn.Parameter(weight.clone()) for weight in weights)
        self.bias = nn.ParameterList(nn.Parameter(bias.clone()) for bias in biases)
        self.reduction = nn.ParameterList()
        self.fusion = ""
        self.groups = [[index] for index in range(len(self.weight))]

    def truncate_(self, depth: int) -> None:
        """Keep the first `depth` layers and only the tensors they use, renumbered in order."""
        used = sorted(set(self.mapping[:depth]))
        members = sorted({member for index in used for member in self.groups[index]})
        self.groups = [[members.index(member) for member in self.groups[index]] for index in used]
        self.mapping = [used.index(index) for index in self.mapping[:depth]]
        for name in ("weight", "bias", "reduction"):
            kept = getattr(self, name)
            setattr(self, name, nn.ParameterList(kept[member] for member in members if len(kept)))
        self.scale, self.shift = self.scale[:depth], self.shift[:depth]

    def extra_repr(self) -> str:
        """Summarise for ``print(model)``."""
        text = f"{len(self.mapping)} layers on {len(self.groups)} tensors of {tuple(self.shape)}"
        text += f", fusion={self.fusion}" if self.fusion else ""
        return text + (f", transform={self.transform}" if self.transform != "none" else "")


def fuse_group(tensors: Sequence[Tensor], how: str) -> Tensor:
    """Make one tensor of those of a group: the first, or their mean.

    Args:
        tensors: Tensors of one shape.
        how: ``"choose_first"`` or ``"mean"``.

    Returns:
        A new tensor of that shape.
    """
    if how == "choose_first" or len(tensors) == 1:
        return tensors[0].detach().clone()
    return torch.stack([tensor.detach() for tensor in tensors]).mean(0)


def _stored(tensors: Sequence[Tensor], groups: Sequence[Sequence[int]], init: str) -> nn.ParameterList:
    return nn.ParameterList(
        nn.Parameter(
            fuse_group([tensors[layer] for layer in group], init),
            requires_grad=tensors[group[0]].requires_grad,
        )
        for group in groups
    )


def _mean(terms: list[Tensor]) -> Tensor:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total / len(terms)
