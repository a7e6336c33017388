"""Turning a timm network into its shared form."""

from __future__ import annotations

from collections.abc import Sequence

from timm.models.convmixer import ConvMixer
from timm.models.convnext import ConvNeXt
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from graftwork_spin.convmixer import SpinConvMixer
from graftwork_spin.network import SharedNetwork
from graftwork_spin.vit import SpinVisionTransformer, SpinVisionTransformerDistilled

_FORMS: dict[type[nn.Module], type[SharedNetwork]] = {
    ConvMixer: SpinConvMixer,
    VisionTransformer: SpinVisionTransformer,
    VisionTransformerDistilled: SpinVisionTransformerDistilled,
}


def share(
    model: nn.Module,
    rate: int = 2,
    mapping: str | Sequence[int] = "sequential",
    distribution: str = "uniform",
    components: str | Sequence[str] | None = None,
    transform: str = "none",
    *,
    mapping_seed: int = 0,
) -> SharedNetwork:
    """Make the shared form of an isotropic network.

    Example:
        >>> import timm
        >>> deit = timm.create_model("deit_tiny_patch16_224")
        >>> sum(p.numel() for p in share(deit, rate=2).parameters())
        3052840

    Args:
        model: A timm ConvMixer, ViT or DeiT, or an unshared network of this package; left as it is.
        rate: Share rate r = L / P: how many layers use one stored tensor.
        mapping: ``"sequential"``, ``"strided"``, ``"random"`` or the tensor index of every layer.
        distribution: ``"uniform"``, ``"front"``, ``"middle"``, ``"back"`` or ``"pyramid"``.
        components: What is shared; None for what the paper shares. ConvMixer: ``"pw"``, ``"dw"``, ``"norm"``;
            ViT: ``"qkv"``, ``"proj"``, ``"fc1"``, ``"fc2"``; ConvNeXt: ``"dw"``, ``"pw"``.
        transform: Private transform of every layer's weight: ``"none"``, ``"affine_channel"``,
            ``"affine_group"``.
        mapping_seed: Of ``"random"``.

    Returns:
        A new network. A stored tensor starts as that of the first layer which uses it, which suits an
        untrained network; for a trained one use :func:`graftwork_spin.fuse`.

    Raises:
        TypeError: The architecture is not supported.
        ValueError: An argument is unknown or out of range, or the network shares already.
    """
    form = shared_form(model)
    sharing = form.plan(
        len(model.blocks),
        rate=rate,
        mapping=mapping,
        distribution=distribution,
        components=components,
        transform=transform,
        mapping_seed=mapping_seed,
    )
    return form.from_unshared(model, sharing)


def shared_form(model: nn.Module) -> type[SharedNetwork]:
    """Return the class of a network's shared form.

    Args:
        model: A network.

    Returns:
        A class of this package.

    Raises:
        TypeError: The architecture is not supported.
    """
    if isinstance(model, SharedNetwork):
        return type(model)
    # Exact types: a subclass may compute something else in its forward pass.
    if type(model) in _FORMS:
        return _FORMS[type(model)]
    reason = "only layers of equal shape can share tensors, and this is not a known isotropic network"
    if isinstance(model, ConvNeXt):
        reason = (
            "its stages differ in width and resolution; the isotropic form is graftwork_spin.SpinConvNeXt"
        )
    supported = ", ".join(sorted(form.__name__ for form in _FORMS))
    raise TypeError(
        f"cannot share the layers of a {type(model).__module__}.{type(model).__qualname__}: {reason}. "
        f"Supported: {supported} of timm, and the networks of graftwork_spin."
    )
