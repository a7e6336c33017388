"""``graftwork new``: the folder of a plugin that passes its contract as written."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from string import Template

from graftwork.discovery import normalise, scan

SUFFIX = ".tmpl"
PREFIX = "graftwork-"
TEMPLATE = Path(__file__).with_name("template")

_SLUG = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


class Refusal(ValueError):
    """Why no folder is written, with what to do instead."""


@dataclass(frozen=True)
class Names:
    """The names of a plugin, all derived from one.

    Args:
        slug: What the plugin is called: lower-case words joined by hyphens.
    """

    slug: str

    @classmethod
    def parse(cls, name: str) -> Names:
        """Take what the author typed, with or without the prefix of the distribution.

        Args:
            name: Such as ``fast-mix`` or ``graftwork-fast-mix``.

        Returns:
            The names.

        Raises:
            Refusal: It is not lower-case words joined by hyphens.
        """
        slug = name.removeprefix(PREFIX)
        if _SLUG.fullmatch(slug) is None:
            words = re.sub(r"([a-z0-9])([A-Z])", r"\1-\2", slug)
            near = re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")
            hint = f"Try {near!r}." if _SLUG.fullmatch(near) else "An example is 'fast-mix'."
            raise Refusal(f"a plugin's name is lower-case words joined by hyphens, got {name!r}. {hint}")
        return cls(slug)

    @property
    def distribution(self) -> str:
        """Name for pip, and of the folder."""
        return PREFIX + self.slug

    @property
    def short(self) -> str:
        """The slug as part of a Python name."""
        return self.slug.replace("-", "_")

    @property
    def module(self) -> str:
        """Name of the import package."""
        return f"graftwork_{self.short}"

    @property
    def class_name(self) -> str:
        """The slug as part of a class name."""
        return "".join(word.capitalize() for word in self.slug.split("-"))

    def placeholders(self) -> dict[str, str]:
        """Return what templates may refer to."""
        names = ("slug", "distribution", "short", "module", "class_name")
        return {name: getattr(self, name) for name in names}


def kinds() -> tuple[str, ...]:
    """Return the kinds of plugin that have a template."""
    return tuple(sorted(folder.name for folder in TEMPLATE.iterdir() if folder.is_dir()))


def render(names: Names, kind: str) -> dict[str, str]:
    """Fill in a template, without writing anything.

    Args:
        names: The plugin's names.
        kind: One of :func:`kinds`.

    Returns:
        Text by path relative to the plugin's folder.
    """
    placeholders = names.placeholders()
    texts = {}
    for path in sorted((TEMPLATE / kind).rglob(f"*{SUFFIX}")):
        name = path.relative_to(TEMPLATE / kind).as_posix().removesuffix(SUFFIX)
        text = Template(path.read_text(encoding="utf-8")).substitute(placeholders)
        texts[name.replace("__module__", names.module)] = text
    return texts


def write(folder: Path, texts: Mapping[str, str]) -> None:
    """Write the files of a new folder.

    Args:
        folder: Where; it must not exist.
        texts: Text by relative path.

    Raises:
        Refusal: The folder, or a file of that name, exists or cannot be made.
    """
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        raise Refusal(
            f"{str(folder)!r} exists and is left as it is. Remove it, or choose another with --out."
        ) from None
    except OSError as error:
        raise Refusal(f"cannot make the folder: {error}. Choose another with --out.") from None
    for name, text in texts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="\n")


def clashes(names: Names) -> Iterator[str]:
    """Yield what would happen beside the plugins that are installed here."""
    for found in scan()[0]:
        other = f"{found.distribution} {found.version}"
        if normalise(found.distribution) == names.distribution:
            yield f"{other} is installed; installing the new plugin would replace it."
        elif normalise(found.slug) == names.slug:
            yield f"{other} is called {names.slug!r} too; both would go by their distributions' names."


def _timm_module(name: str) -> bool:
    """Say whether timm has a model file of this name, without importing timm."""
    spec = find_spec("timm")
    roots = (spec.submodule_search_locations or ()) if spec else ()
    return any(Path(root, "models", f"{name}.py").is_file() for root in roots)


def create(name: str, kind: str, out: Path | None = None) -> int:
    """Write the folder of a new plugin and say what to do next.

    Args:
        name: What the author calls the plugin.
        kind: What it offers.
        out: The folder; ``graftwork-<name>`` in the current one when None.

    Returns:
        0, or 2 after an explanation on standard error.
    """
    try:
        names = Names.parse(name)
        if kind not in kinds():
            raise Refusal(f"there is no template for a {kind}; there is one for: {', '.join(kinds())}.")
        if kind == "model" and _timm_module(names.short):
            raise Refusal(
                f"timm has a model module named {names.short!r} and would not take the plugin's models "
                "beside it. Choose another name."
            )
        folder = out or Path(names.distribution)
        write(folder, render(names, kind))
    except Refusal as refusal:
        print(f"graftwork new: {refusal}", file=sys.stderr)
        return 2
    for clash in clashes(names):
        print(f"graftwork new: warning: {clash}", file=sys.stderr)
    print(
        f"{folder}: a plugin with one {kind}, which passes its contract as it is. Next:\n\n"
        f'  pip install -e "{folder}[test]"\n'
        f"  pytest {folder}\n"
        f"  graftwork list\n\n"
        f"Then put your own method into {folder / 'src' / names.module}."
    )
    return 0
