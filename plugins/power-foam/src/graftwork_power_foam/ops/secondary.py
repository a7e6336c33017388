"""Secondary rays: reflection and refraction, at surfaces of the scene or at mirrors and glass put into it.

Colours of cells depend on where they are seen from; the ray tracer evaluates them at each ray's own origin,
so a reflected ray sees the scene as from the mirror.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from graftwork_power_foam.ops.cameras import Rays
from graftwork_power_foam.ops.rendering import Rendering


def reflect(rays: Rays, distance: Tensor, normal: Tensor, *, offset: float = 1e-4) -> Rays:
    """Return the rays that mirrors send on, starting just above the surface.

    Example:
        >>> rays = Rays(torch.zeros(1, 3), torch.tensor([[0.0, 0.0, 1.0]]))
        >>> reflect(rays, torch.ones(1), torch.tensor([[0.0, 0.0, -1.0]])).directions
        tensor([[ 0.,  0., -1.]])

    Differentiable in all tensors.

    Args:
        rays: Incoming rays of shape ``(...)``.
        distance: ``(...)``, length at which each meets the surface, such as a depth.
        normal: ``(..., 3)``, of any length and sign, such as a rendered normal; zero ends the ray.
        offset: How far above the surface the new ray starts, world units.

    Returns:
        Rays of shape ``(...)`` without an end.
    """
    unit = _facing(rays, normal)
    inward = (rays.directions * unit).sum(-1, keepdim=True)
    directions = rays.directions - 2 * inward * unit
    some = (unit.square().sum(-1, keepdim=True) > 0.5) & (distance > 0)[..., None]
    directions = torch.where(some, directions, torch.zeros_like(directions))
    return Rays(rays.at(distance) + offset * unit, directions)


def refract(
    rays: Rays, distance: Tensor, normal: Tensor, ratio: float, *, offset: float = 1e-4
) -> tuple[Rays, Tensor]:
    """Return the rays that enter another medium by Snell's law, and where there is total reflection.

    Differentiable in all tensors.

    Args:
        rays: Incoming rays of shape ``(...)``.
        distance: ``(...)``, length at which each meets the surface.
        normal: ``(..., 3)``, of any length and sign; where it is zero the ray ends.
        ratio: Refractive index on the incoming side over that beyond, such as 1 / 1.5 into glass.
        offset: How far below the surface the new ray starts, world units.

    Returns:
        Rays of shape ``(...)``, zero directions where nothing is refracted, and a mask ``(...)`` of total
        internal reflection.
    """
    unit = _facing(rays, normal)
    cosine = -(rays.directions * unit).sum(-1, keepdim=True)
    square = 1 - ratio * ratio * (1 - cosine * cosine)
    total = square[..., 0] < 0
    root = torch.where(square > 0, square, torch.ones_like(square)).sqrt()
    directions = ratio * rays.directions + (ratio * cosine - root) * unit
    some = (unit.square().sum(-1) > 0.5) & (distance > 0)
    directions = torch.where((some & ~total)[..., None], directions, torch.zeros_like(directions))
    directions = torch.nn.functional.normalize(directions, dim=-1)
    return Rays(rays.at(distance) - offset * unit, directions), total & some


def _facing(rays: Rays, normal: Tensor) -> Tensor:
    """Return unit normals turned against the rays; zero where the normal is."""
    unit = torch.nn.functional.normalize(normal, dim=-1)
    return torch.where((unit * rays.directions).sum(-1, keepdim=True) > 0, -unit, unit)


@dataclass(frozen=True)
class Sphere:
    """A ball of mirror or glass that is put into a scene.

    Args:
        center: ``(3,)``, world.
        radius: World units.
        index: Refractive index of glass against the scene; None for a mirror.
    """

    center: Tensor
    radius: float
    index: float | None = None

    def meet(self, rays: Rays) -> Tensor:
        """Return the ``(...)`` lengths at which rays meet the surface first, infinite where they do not."""
        to_center = self.center - rays.origins
        along = (to_center * rays.directions).sum(-1)
        aside = (to_center - along[..., None] * rays.directions).square().sum(-1)
        half = self.radius**2 - aside
        root = half.clamp(min=0).sqrt()
        near, far = along - root, along + root
        # a ray that has just left the surface does not meet it again at once
        least = 1e-3 * self.radius
        distance = torch.where(near > least, near, far)
        met = (half > 0) & (distance > least) & (rays.directions.square().sum(-1) > 0.5)
        return torch.where(met, distance, torch.full_like(distance, torch.inf))


def raytrace_with_sphere(
    render: Callable[[Rays], Rendering], rays: Rays, sphere: Sphere, *, bounces: int = 4
) -> tuple[Tensor, Tensor]:
    """Render a scene with a mirror or glass ball in it.

    Example:
        >>> ball = Sphere(torch.zeros(3), 0.3, index=1.5)
        >>> render = lambda rays: raytrace(cells, rays, adjacency=diagram)  # doctest: +SKIP
        >>> rgb, alpha = raytrace_with_sphere(render, cameras.rays(), ball)  # doctest: +SKIP

    Each bounce renders the scene up to the ball and composites it before what the ball sends on.

    Args:
        render: Renders rays; their ``far`` is set to where they meet the ball.
        rays: Rays of shape ``(...)``.
        sphere: The ball.
        bounces: How often a ray may meet the surface.

    Returns:
        Colour ``(..., 3)`` over black and opacity ``(...)``.
    """
    color = torch.zeros_like(rays.origins)
    passed = torch.ones_like(rays.origins[..., 0])
    for bounce in range(bounces + 1):
        distance = sphere.meet(rays) if bounce < bounces else torch.full_like(passed, torch.inf)
        image = render(replace(rays, far=distance))
        color = color + passed[..., None] * image.rgb
        passed = passed * (1 - image.alpha)
        met = distance.isfinite()
        if not bool(met.any()):
            break
        rays = _bounce(rays, torch.where(met, distance, torch.zeros_like(distance)), sphere)
    return color, 1 - passed


def _bounce(rays: Rays, distance: Tensor, sphere: Sphere) -> Rays:
    """Send on the rays that meet the ball at a positive distance; the others end, their light is settled."""
    normal = rays.at(distance) - sphere.center
    step = 1e-4 * sphere.radius
    mirrored = reflect(rays, distance, normal, offset=step)
    if sphere.index is None:
        return mirrored
    inside = (rays.directions * normal).sum(-1) > 0
    entering, _ = refract(rays, distance, normal, 1 / sphere.index, offset=step)
    leaving, total = refract(rays, distance, normal, sphere.index, offset=step)
    back, out = (inside & total)[..., None], (inside & ~total)[..., None]

    def pick(there: Tensor, on: Tensor, mirror: Tensor) -> Tensor:
        return torch.where(back, mirror, torch.where(out, on, there))

    return Rays(
        pick(entering.origins, leaving.origins, mirrored.origins),
        pick(entering.directions, leaving.directions, mirrored.directions),
    )
