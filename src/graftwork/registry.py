"""Registries of the scope ``graftwork``, imported by mmengine when a config says ``type='graftwork.<Name>'``.

mmengine swallows every ImportError of this module and then says "not in the registry", so it imports mmengine
and nothing else. Whatever can fail happens in :mod:`graftwork.mmengine`, when a name is looked up.
"""

from __future__ import annotations

from typing import Any

from mmengine.registry import DATA_SAMPLERS, DATASETS, HOOKS, LOOPS, TRANSFORMS, Registry

SCOPE = "graftwork"


class ComponentRegistry(Registry):  # type: ignore[misc]  # mmengine is untyped
    """A registry whose items are imported when they are first asked for.

    One component whose code cannot be imported therefore leaves all others usable, and raises its own error.
    """

    def get(self, key: str) -> Any:
        """Return the registered class, registering it from the catalogue if need be.

        Args:
            key: Name, with or without the scope.

        Raises:
            graftwork.mmengine.UnknownComponent: No installed plugin offers it.
            graftwork.catalog.LoadError: Its code cannot be imported; the cause is chained.
        """
        from graftwork.mmengine import provide

        scope, name = self.split_scope_key(key)
        if scope in (None, self.scope) and name not in self.module_dict:
            provide(self, name)
        return super().get(key)


def _child(root: Registry) -> Registry:
    """Return the root's child of our scope; mmengine refuses a second one, such as after a reload."""
    existing = root.children.get(SCOPE)
    if existing is not None:
        return existing
    # the location is imported at the first look-up, outside mmengine's guard
    return ComponentRegistry(root.name, parent=root, scope=SCOPE, locations=["graftwork.mmengine"])


REGISTRIES: dict[str, Registry] = {
    "sampler": _child(DATA_SAMPLERS),
    "batch_sampler": _child(DATA_SAMPLERS),
    "dataset": _child(DATASETS),
    "transform": _child(TRANSFORMS),
    "hook": _child(HOOKS),
    "loop": _child(LOOPS),
}
"""Kind of component -> registry. Both kinds of samplers share mmengine's one."""
