"""What a renderer is told beside the scene, and what it gives back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Parity = Literal["official"]

OFFICIAL_NEAR = 0.1
OFFICIAL_NEAR_RADII = 4.0


@dataclass(frozen=True)
class Settings:
    """Constants of a rendering, the same for every backend.

    Args:
        quantiles: Transmittances whose depth is wanted, each in (0, 1); 0.5 is the median depth.
        stop: A ray ends before the first cell that it reaches with a transmittance below this. 0 renders
            everything: then rasterizer and ray tracer agree to rounding.
        near: Distance along the ray at which rendering begins, world units.
        near_radii: A cell is skipped where the ray's origin is closer to its centre than this many radii.
            0 renders every cell, also one that holds the camera.
        near_plane: A cell is skipped if its centre is less than this in front of the camera, world units;
            minus infinity for none. The ray tracer ignores it.
        grazing: Gradients divide by the cosine between ray and surface, which is clamped away from zero to
            this, keeping its sign. 0 gives exact gradients, whose outliers at grazing incidence are heavy.

    Raises:
        ValueError: A value is out of range.

    Note:
        The official renderer has ``near_radii=4`` and ``near_plane=0.1`` and damps one of the three kinds of
        surfaces, without regard to the sign.
    """

    quantiles: tuple[float, ...] = (0.5,)
    stop: float = 1e-3
    near: float = 0.0
    near_radii: float = 0.0
    near_plane: float = -float("inf")
    grazing: float = 1e-3

    def __post_init__(self) -> None:
        for quantile in self.quantiles:
            if not 0.0 < quantile < 1.0:
                raise ValueError(f"quantiles are transmittances between 0 and 1, got {quantile}.")
        if len(self.quantiles) > 8:
            raise ValueError(f"at most 8 quantiles can be asked for, got {len(self.quantiles)}.")
        if not 0.0 <= self.stop < 1.0:
            raise ValueError(f"stop is a transmittance in [0, 1), got {self.stop}.")
        for name in ("near", "near_radii", "grazing"):
            if not getattr(self, name) >= 0.0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}.")


@dataclass(frozen=True)
class Rendering:
    """Images of a scene, and what each cell had to do with them.

    ``...`` stands for ``(C, H, W)`` after :func:`rasterize` and for the batch shape of the rays after
    :func:`raytrace`; the leading ``C`` of the per-cell fields is absent after :func:`raytrace`. With w the
    weight (transmittance times opacity) of a cell on a ray:

    Args:
        rgb: ``(..., 3)``, colour including the background. Not clamped above.
        alpha: ``(...)``, opacity, one minus the final transmittance.
        depth: ``(..., Q)``, distance along the ray at which the transmittance falls below each quantile,
            world units; -1 where it does not.
        normal: ``(..., 3)``, sum of w n, world; not normalised.
        facing: ``(...)``, sum of w max(n.d, 0)^2, the paper's normal loss: how much is seen from inside.
        intersections: ``(...)`` int32, number of cells that contributed.
        contribution: ``(C, N)``, sum of w over the pixels, divided by their number.
        error: ``(C, N)``, sum of w |colour - target|_1, divided by the number of pixels; zeros without
            target. Not differentiable.
        visible: ``(C, N)`` bool. Rasterized: the cell was a candidate for some pixel, occluded or not (a
            conservative set that may differ between backends by cells between pixels). Ray traced: some ray
            passed through its ball.
    """

    rgb: Tensor
    alpha: Tensor
    depth: Tensor
    normal: Tensor
    facing: Tensor
    intersections: Tensor
    contribution: Tensor
    error: Tensor
    visible: Tensor
