"""Folding batch normalisation for inference, into convolutions and into the butterfly kernel.

At equal multiply-adds a network with butterflies is wider than its dense twin, so what is left besides channel
fusion weighs more: depthwise convolutions, normalisations, activations. The last two need no pass of their own.
"""  # noqa: E501

from __future__ import annotations

import copy
import math

import torch
from timm.models._features_fx import get_notrace_modules
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from graftwork_butterfly import native
from graftwork_butterfly.dispatch import choose
from graftwork_butterfly.layers import ButterflyConv1x1

CLAMPS = {nn.Identity: (-math.inf, math.inf), nn.ReLU: (0.0, math.inf), nn.ReLU6: (0.0, 6.0)}
"""Activations that the kernel applies on its way out."""


class FoldedButterfly(nn.Module):
    """A butterfly layer with the normalisation and the clamping activation that follow it. Inference only.

    Args:
        layer: The butterfly.
        scale: (out,) factors.
        shift: (out,) terms.
        low: Smallest output.
        high: Largest output.
    """

    def __init__(
        self, layer: ButterflyConv1x1, scale: Tensor, shift: Tensor, low: float, high: float
    ) -> None:
        super().__init__()
        plan = layer.structure
        if layer.bias is not None:
            shift = shift + scale * layer.bias.detach()
            layer.bias = None
        self.layer = layer
        self.low, self.high = low, high
        # the kernel computes all rows of every square, also those that are dropped
        spare = plan.copies * plan.padded - plan.out_channels
        self.register_buffer("scale", nn.functional.pad(scale.detach().float(), [0, spare]))
        self.register_buffer("shift", nn.functional.pad(shift.detach().float(), [0, spare]))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in, H, W) to (B, out, H, W)."""
        if not torch.jit.is_scripting() and self._fused(x):
            affine = (self.scale, self.shift, self.low, self.high)
            return native.forward(x, self.layer.weight, self.layer.layout, affine)
        y = self.layer(x)
        count = y.shape[1]
        y = y * self.scale[:count].to(y.dtype).view(-1, 1, 1) + self.shift[:count].to(y.dtype).view(-1, 1, 1)
        return y.clamp(self.low, self.high)

    @torch.jit.unused
    def _fused(self, x: Tensor) -> bool:
        """Whether this is a plain inference call that the kernel serves."""
        return (
            type(x) is Tensor
            and not torch.compiler.is_compiling()
            and not torch.is_grad_enabled()
            and not torch._C._len_torch_dispatch_stack()
            and not torch._C._are_functorch_transforms_active()
            and torch._C._get_tracing_state() is None
            and x.device.type == "cpu"
            and not torch.is_autocast_enabled("cpu")
            and self.layer.backend in ("auto", "fused")
            and choose(self.layer.layout, "cpu", x.dtype) == "fused"
        )


class _Tracer(fx.Tracer):
    """Traces down to layers, timm's combined normalisation and activation being one."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Say whether a module becomes one node."""
        kinds = (_BatchNorm, ButterflyConv1x1, *get_notrace_modules())
        return isinstance(m, kinds) or super().is_leaf_module(m, module_qualified_name)


def fold_batch_norm(model: nn.Module) -> nn.Module:
    """Fold every batch normalisation that follows a convolution or a butterfly, for inference.

    A convolution takes it into its weights. A butterfly cannot, because of its residual; its kernel applies it,
    and a ReLU or ReLU6 behind it, while the outputs are still in registers.

    Example:
        >>> from graftwork_butterfly.models import mobilenetv1_100_bft
        >>> model = mobilenetv1_100_bft().eval()
        >>> faster = fold_batch_norm(model)

    Args:
        model: In evaluation mode; left as it is.

    Returns:
        A copy without these normalisations. It computes the same, and is not to be trained.

    Raises:
        ValueError: The model is in training mode or cannot be traced.
    """  # noqa: E501
    if model.training:
        raise ValueError("batch statistics change in training: call model.eval() before folding them.")
    model = copy.deepcopy(model)
    try:
        graph = _Tracer().trace(model)
    except (fx.proxy.TraceError, TypeError) as error:
        raise ValueError(
            f"{type(model).__name__} cannot be traced, so its layers' order is unknown: {error}"
        ) from error
    calls = [node for node in graph.nodes if node.op == "call_module"]
    once = {node.target for node in calls if sum(other.target == node.target for other in calls) == 1}
    for node in calls:
        norm = model.get_submodule(str(node.target))
        before = node.args[0]
        if not isinstance(norm, _BatchNorm) or not isinstance(before, fx.Node) or before.op != "call_module":
            continue
        if len(before.users) > 1 or not {node.target, before.target} <= once or norm.running_mean is None:
            continue
        layer = model.get_submodule(str(before.target))
        activation = getattr(norm, "act", nn.Identity())
        if type(layer) is nn.Conv2d:
            model.set_submodule(str(before.target), fuse_conv_bn_eval(layer, norm))
            model.set_submodule(str(node.target), activation)
        elif isinstance(layer, ButterflyConv1x1):
            after = _activation_after(model, node, once) if type(activation) is nn.Identity else None
            if after is not None:
                activation = model.get_submodule(after)
            low, high = CLAMPS.get(type(activation), CLAMPS[nn.Identity])
            folded = FoldedButterfly(layer, *_affine(norm), low, high)
            model.set_submodule(str(before.target), folded.eval())
            applied = type(activation) in CLAMPS
            model.set_submodule(str(node.target), nn.Identity() if applied or after else activation)
            if after is not None and applied:
                model.set_submodule(after, nn.Identity())
    return model


def _affine(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = torch.rsqrt(norm.running_var + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight
    shift = -norm.running_mean * scale
    return scale, shift if norm.bias is None else shift + norm.bias


def _activation_after(model: nn.Module, node: fx.Node, once: set[object]) -> str | None:
    """Name the clamping activation that alone reads a node's output, if there is one."""
    if len(node.users) != 1:
        return None
    (user,) = node.users
    if user.op != "call_module" or user.target not in once:
        return None
    return str(user.target) if type(model.get_submodule(str(user.target))) in CLAMPS else None
