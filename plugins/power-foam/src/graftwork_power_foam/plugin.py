"""What the plugin offers: the render backends of the scene ``power-foam``."""

from __future__ import annotations

from collections.abc import Iterable

from graftwork import RenderBackend, hookimpl

BOTH = frozenset({"rasterize", "raytrace"})


@hookimpl
def graftwork_render_backends() -> Iterable[RenderBackend]:
    """The renderer in plain torch, the one for CPUs and the one for CUDA devices."""
    return [
        RenderBackend(
            name="power-foam:reference",
            target="graftwork_power_foam.ops.backends:reference",
            kinds=BOTH,
            device="any",
        ),
        RenderBackend(
            name="power-foam:cpu",
            target="graftwork_power_foam.ops.backends:cpu",
            kinds=BOTH,
            device="cpu",
            priority=10,
        ),
        RenderBackend(
            name="power-foam:cuda",
            target="graftwork_power_foam.ops.backends:cuda",
            kinds=BOTH,
            device="cuda",
            priority=10,
        ),
    ]
