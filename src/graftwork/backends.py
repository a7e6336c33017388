"""Which implementation renders a scene: the best that works here, or the one that was named, with reasons.

A backend's factory may carry a ``status`` attribute, a function ``(kind, device) -> extension.Status`` that
says without compiling what calling the factory would do; :func:`explain` asks it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from graftwork.catalog import Catalog, Entry, load, plugins
from graftwork.extension import Status, Unavailable
from graftwork.extension.library import mode
from graftwork.spec import RenderBackend, RenderKind

if TYPE_CHECKING:
    import torch

AUTO = "auto"

_log = logging.getLogger("graftwork")


@dataclass(frozen=True)
class Verdict:
    """What became, or would become, of one backend.

    Args:
        name: The backend, or ``"plugin <slug>"`` where a missing plugin may have offered one.
        plugin: Slug of its plugin.
        state: ``"chosen"`` is what ``"auto"`` takes, ``"available"`` serves if it is named.
        reason: Why; for a backend that serves, what is or would be loaded.
        fix: What would change a refusal.
    """

    name: str
    plugin: str
    state: Literal["chosen", "available", "refused"]
    reason: str
    fix: str = ""

    def __str__(self) -> str:
        return f"{self.name} {self.state}: {self.reason} {self.fix}".strip()


@dataclass(frozen=True)
class Choice:
    """The backend that serves.

    Args:
        entry: Its description and the plugin it comes from.
        callable: Renders, with the signature of the scene's reference of the kind asked for.
        refusals: The backends that were preferred or excluded, and why.
    """

    entry: Entry
    callable: Callable[..., Any]
    refusals: tuple[Verdict, ...] = ()


class NoBackend(Unavailable):
    """No backend serves, or not the one that was named.

    Args:
        reason: Why.
        fix: What to do next.
        refusals: What was refused on the way.
    """

    def __init__(self, reason: str, fix: str, refusals: tuple[Verdict, ...] = ()) -> None:
        super().__init__(reason, fix)
        self.refusals = refusals


def choose(
    scene: str,
    kind: RenderKind,
    device: str | torch.device,
    name: str = AUTO,
    *,
    catalog: Catalog | None = None,
) -> Choice:
    """Return the renderer of a scene that works here.

    ``"auto"`` tries the scene's backends of this kind and device by falling priority, ties by name; the first
    that loads is taken. A backend that is named is the only one tried. Call this once per model and kind, not
    per frame.

    Example:
        >>> choose("power-foam", "rasterize", "cuda").callable(cells, camera)  # doctest: +SKIP

    Args:
        scene: The representation, such as ``"power-foam"``.
        kind: What it renders.
        device: Where the tensors are.
        name: ``"auto"``, ``"<backend>"``, ``"<scene>:<backend>"`` or ``"<plugin>/<scene>:<backend>"``.
        catalog: What is on offer; None stands for the installed plugins.

    Returns:
        The choice, with the reason for every refusal.

    Raises:
        NoBackend: None serves, or not the one that was named.
        ValueError: ``kind`` or ``GRAFTWORK_EXTENSION`` has an unknown value.
    """
    import torch

    _check_kind(kind)
    mode()  # a misspelt setting is the user's to correct, not a reason to render slowly
    device = torch.device(device)
    catalog = catalog if catalog is not None else plugins()
    if name != AUTO:
        key, entry = _named(scene, name, catalog)
        outcome = _misfit(key, entry, kind, device.type) or _start(key, entry, kind, device)
        if isinstance(outcome, Verdict):
            raise NoBackend(f"render backend {key!r} cannot serve: {outcome.reason}", outcome.fix, (outcome,))
        _announce(scene, kind, device, key, entry, [])
        return Choice(entry, outcome)
    refusals = list(_missing_plugins(catalog))
    tried: list[Verdict] = []
    for key, entry, misfit in _candidates(scene, kind, device.type, catalog):
        outcome = misfit or _start(key, entry, kind, device)
        if not isinstance(outcome, Verdict):
            _announce(scene, kind, device, key, entry, tried)
            return Choice(entry, outcome, tuple(refusals))
        refusals.append(outcome)
        if misfit is None:
            tried.append(outcome)
    listed = "".join(f"\n  {refusal}" for refusal in refusals) or " No plugin offers any."
    raise NoBackend(
        f"no render backend serves {kind} of scene {scene!r} on {device}.{listed}\n",
        "`graftwork list` shows what is installed; the plugin of the scene brings its reference backend.",
        tuple(refusals),
    )


def explain(
    scene: str, kind: RenderKind, device: str | torch.device, *, catalog: Catalog | None = None
) -> tuple[Verdict, ...]:
    """Say what :func:`choose` would do, without compiling or loading native code.

    Factories are imported; one without a ``status`` attribute is taken to need nothing.

    Args:
        scene: The representation, such as ``"power-foam"``.
        kind: What it renders.
        device: Where the tensors would be.
        catalog: What is on offer; None stands for the installed plugins.

    Returns:
        One line for every backend of the scene, in the order in which ``"auto"`` tries them.
    """
    import torch

    _check_kind(kind)
    device = torch.device(device)
    catalog = catalog if catalog is not None else plugins()
    verdicts: list[Verdict] = []
    chosen = False
    for key, entry, misfit in _candidates(scene, kind, device.type, catalog):
        verdict = misfit or _ask(key, entry, kind, device)
        if verdict.state == "available" and not chosen:
            chosen = True
            verdict = replace(verdict, state="chosen")
        verdicts.append(verdict)
    return (*verdicts, *_missing_plugins(catalog))


def _check_kind(kind: str) -> None:
    if kind not in get_args(RenderKind):
        raise ValueError(f"kind must be one of {', '.join(get_args(RenderKind))}, got {kind!r}.")


def _refused(name: str, plugin: str, reason: str, fix: str) -> Verdict:
    return Verdict(name, plugin, "refused", reason, fix)


def _description(entry: Entry) -> RenderBackend:
    assert isinstance(entry.description, RenderBackend)
    return entry.description


def _candidates(
    scene: str, kind: RenderKind, device_type: str, catalog: Catalog
) -> Iterator[tuple[str, Entry, Verdict | None]]:
    """Yield the scene's backends in the order of ``"auto"``, with the refusal of those that do not fit."""
    own = [(key, entry) for key, entry in catalog.backends.items() if _description(entry).scene == scene]
    for key, entry in sorted(own, key=lambda item: (-_description(item[1]).priority, item[0])):
        misfit = _misfit(key, entry, kind, device_type)
        if misfit is None and key != entry.name:
            misfit = _refused(
                key,
                entry.plugin,
                f"several plugins offer {entry.name!r}, so 'auto' takes none of them.",
                f"Name it as {key!r}, or block one of the plugins with GRAFTWORK_PLUGINS=-{entry.plugin}.",
            )
        yield key, entry, misfit


def _misfit(key: str, entry: Entry, kind: RenderKind, device_type: str) -> Verdict | None:
    description = _description(entry)
    if kind not in description.kinds:
        offered = ", ".join(sorted(description.kinds))
        return _refused(key, entry.plugin, f"it renders by {offered}, not {kind}.", "Choose another backend.")
    if description.device not in ("any", device_type):
        return _refused(
            key,
            entry.plugin,
            f"it takes tensors on {description.device}, these are on {device_type}.",
            f"Move the model to {description.device}, or choose another backend.",
        )
    return None


def _missing_plugins(catalog: Catalog) -> Iterator[Verdict]:
    """Yield the plugins that were not asked for backends, since one of them may be what the user misses."""
    for slug in catalog.blocked:
        yield _refused(
            f"plugin {slug}",
            slug,
            "blocked by GRAFTWORK_PLUGINS, so its backends are unknown.",
            "Change or unset the variable to use them.",
        )
    for problem in catalog.problems:
        if problem.fatal and problem.stage in ("metadata", "version", "import", "hook"):
            cause = f"{type(problem.exception).__name__}: {problem.exception}"
            yield _refused(
                f"plugin {problem.plugin}",
                problem.plugin,
                f"it failed ({problem.stage}: {cause}), so its backends are unknown.",
                problem.hint,
            )


def _named(scene: str, name: str, catalog: Catalog) -> tuple[str, Entry]:
    """Return the backend that a user's name means."""
    key = name if ":" in name else f"{scene}:{name}"
    for listed_as, entry in catalog.backends.items():
        if key in (listed_as, f"{entry.plugin}/{entry.name}"):
            if _description(entry).scene == scene:
                return listed_as, entry
            raise NoBackend(
                f"render backend {key!r} renders scene {_description(entry).scene!r}, not {scene!r}.",
                _offer(scene, catalog),
            )
    claims = sorted(other for other, entry in catalog.backends.items() if entry.name == key)
    if claims:
        raise NoBackend(f"several plugins offer {key!r}.", f"Name one of {', '.join(claims)}.")
    absent = tuple(_missing_plugins(catalog))
    listed = "".join(f"\n  {refusal}" for refusal in absent)
    raise NoBackend(f"there is no render backend {key!r}.{listed}", _offer(scene, catalog), absent)


def _offer(scene: str, catalog: Catalog) -> str:
    own = sorted(key for key, entry in catalog.backends.items() if _description(entry).scene == scene)
    if own:
        return f"Scene {scene!r} has {', '.join(own)}; 'auto' takes the best that works."
    scenes = sorted({_description(entry).scene for entry in catalog.backends.values()})
    return (
        f"No installed plugin renders scene {scene!r}; there are backends for {', '.join(scenes) or 'none'}."
    )


def _guarded(key: str, entry: Entry, action: Callable[[Any], Any]) -> Any:
    """Give the factory to an action; whatever a plugin raises becomes a refusal."""
    try:
        return action(load(_description(entry)))
    except Unavailable as error:
        return _refused(key, entry.plugin, error.reason, error.fix)
    except Exception as error:
        _log.warning("render backend %s of plugin %s is broken", key, entry.plugin, exc_info=True)
        return _refused(
            key,
            entry.plugin,
            f"it is broken ({type(error).__name__}: {error}).",
            f"Report it to the authors of {entry.distribution} {entry.version}.",
        )


def _start(key: str, entry: Entry, kind: RenderKind, device: torch.device) -> Verdict | Callable[..., Any]:
    def start(factory: Any) -> Callable[..., Any]:
        renderer = factory(kind, device)
        if not callable(renderer):
            raise TypeError(f"its factory must return a function, got {type(renderer).__name__}")
        return cast("Callable[..., Any]", renderer)

    started: Verdict | Callable[..., Any] = _guarded(key, entry, start)
    return started


def _ask(key: str, entry: Entry, kind: RenderKind, device: torch.device) -> Verdict:
    def ask(factory: Any) -> Verdict:
        if not hasattr(factory, "status"):
            return Verdict(key, entry.plugin, "available", "needs nothing else.")
        status: Status = factory.status(kind, device)
        if status.state == "unavailable":
            return _refused(key, entry.plugin, status.detail, status.fix)
        return Verdict(key, entry.plugin, "available", str(status))

    verdict: Verdict = _guarded(key, entry, ask)
    return verdict


def _announce(
    scene: str,
    kind: str,
    device: torch.device,
    key: str,
    entry: Entry,
    passed_over: list[Verdict],
) -> None:
    # only the first line of a reason: it may hold a compiler's output
    others = "".join(f"; not {one.name}: {one.reason.strip().splitlines()[0]}" for one in passed_over)
    _log.info(
        "%s %s on %s: backend %s (%s %s)%s",
        scene,
        kind,
        device,
        key,
        entry.distribution,
        entry.version,
        others,
    )
