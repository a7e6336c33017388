"""Which plugins are installed and wanted, read from distribution metadata without importing any of them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata

GROUP = "graftwork"
ALLOW_VARIABLE = "GRAFTWORK_PLUGINS"


@dataclass(frozen=True)
class Candidate:
    """An installed plugin that has not been imported.

    Args:
        slug: Entry-point name; what the plugin is called.
        module: Module that holds the hook implementations.
        distribution: Name of the installed distribution.
        version: Its version.
        requires: Its raw requirement strings.
    """

    slug: str
    module: str
    distribution: str
    version: str
    requires: tuple[str, ...]

    def names(self) -> frozenset[str]:
        """All names under which allow and block lists may refer to it, normalised."""
        return frozenset(
            map(normalise, (self.slug, self.distribution, self.module.partition(".")[0], self.module))
        )


@dataclass(frozen=True)
class MetadataError:
    """A distribution whose metadata could not be read."""

    distribution: str
    exception: Exception


def normalise(name: str) -> str:
    """Normalise a distribution, module or plugin name as package indexes do."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def scan(group: str = GROUP) -> tuple[list[Candidate], list[MetadataError]]:
    """Find every installed distribution with an entry point of the group.

    Only distributions whose ``entry_points.txt`` mentions the group are parsed, so seventy installed packages
    cost a few dozen milliseconds. Of two copies of one distribution the first on ``sys.path`` counts.

    Args:
        group: Entry-point group.

    Returns:
        Candidates sorted by slug and distribution, and what could not be read.
    """
    candidates: list[Candidate] = []
    errors: list[MetadataError] = []
    seen: set[str] = set()
    for distribution in metadata.distributions():
        label = "unknown distribution"
        try:
            text = distribution.read_text("entry_points.txt")
            if text is None or f"[{group}]" not in text:
                continue
            label = distribution.metadata["Name"] or label
            if normalise(label) in seen:
                continue
            seen.add(normalise(label))
            points = [point for point in distribution.entry_points if point.group == group]
            for point in points:
                candidates.append(
                    Candidate(
                        slug=point.name,
                        module=point.value.strip(),
                        distribution=label,
                        version=distribution.version,
                        requires=tuple(distribution.requires or ()),
                    )
                )
        except Exception as error:  # foreign metadata may be broken in any way
            where = getattr(distribution, "_path", None)
            name = label if label != "unknown distribution" or where is None else where.name
            errors.append(MetadataError(name, error))
    return sorted(candidates, key=lambda c: (c.slug, c.distribution)), errors


class Selection:
    """The user's allow and block list.

    ``"spin,butterfly"`` allows only those, an empty string none, ``"-subspaces"`` all but that one. Slug,
    distribution and module name are all understood. This is hygiene, not a sandbox.

    Args:
        text: The list, or None for "everything".
    """

    def __init__(self, text: str | None) -> None:
        parts = [part.strip() for part in (text or "").split(",") if part.strip()]
        self.blocked = frozenset(normalise(part[1:]) for part in parts if part.startswith("-"))
        allowed = frozenset(normalise(part) for part in parts if not part.startswith("-"))
        self.allowed = None if text is None or (not allowed and self.blocked) else allowed

    @classmethod
    def from_environment(cls) -> Selection:
        """Read ``GRAFTWORK_PLUGINS``."""
        return cls(os.environ.get(ALLOW_VARIABLE))

    def admits(self, names: frozenset[str]) -> bool:
        """Say whether a plugin with these normalised names may be loaded."""
        return not names & self.blocked and (self.allowed is None or bool(names & self.allowed))

    def unknown(self, known: Iterable[frozenset[str]]) -> Iterator[str]:
        """Yield the names in the list that fit no installed plugin."""
        everything = frozenset().union(*known)
        yield from sorted((self.blocked | (self.allowed or frozenset())) - everything)


def unmet_core_requirement(requires: Iterable[str], version: str) -> str | None:
    """Return the requirement on graftwork that this version does not meet, if there is one.

    Args:
        requires: Raw requirement strings of a distribution.
        version: Version of the installed core.

    Returns:
        The requirement, or None when all is well.
    """
    from packaging.requirements import Requirement

    for text in requires:
        if normalise(re.split(r"[^A-Za-z0-9._-]", text, maxsplit=1)[0]) != GROUP:
            continue
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            return text
    return None
