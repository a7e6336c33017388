"""The description of a native library and the errors that explain why it cannot be used."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

MODE_VARIABLE = "GRAFTWORK_EXTENSION"
INCLUDE = Path(__file__).parent / "include"

Language = Literal["cpu", "cuda"]
Mode = Literal["auto", "reference", "jit", "prebuilt"]

_MODES: Mapping[str, Mode] = {
    "": "auto",
    "reference": "reference",
    "jit": "jit",
    "prebuilt": "prebuilt",
}
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_HEADER_SUFFIXES = {".h", ".hh", ".hpp", ".cuh", ".inc", ".inl"}
# linked into a shared library these make the whole process flush denormal numbers to zero
_PROCESS_WIDE_FLAGS = {"-ffast-math", "-Ofast", "-funsafe-math-optimizations"}


class Unavailable(RuntimeError):
    """Native code that cannot be used here, and what would change that.

    Example:
        >>> str(Unavailable("no C++ compiler was found.", "Install g++."))
        'no C++ compiler was found. Install g++.'

    Args:
        reason: Why, as one or more sentences.
        fix: What to do next.
    """

    def __init__(self, reason: str, fix: str) -> None:
        super().__init__(reason, fix)
        self.reason = reason
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.reason} {self.fix}".strip()


class NativeError(RuntimeError):
    """A native function returned an error code."""


def mode() -> Mode:
    """Return how native code may be obtained, as ``GRAFTWORK_EXTENSION`` says.

    Raises:
        ValueError: The variable has an unknown value.
    """
    value = os.environ.get(MODE_VARIABLE, "").strip().lower()
    if value not in _MODES:
        raise ValueError(
            f"{MODE_VARIABLE} must be reference (pure PyTorch), jit (compile, ignore what is prebuilt) "
            f"or prebuilt (never compile), got {value!r}; unset it to let graftwork choose."
        )
    return _MODES[value]


@dataclass(frozen=True, eq=False, kw_only=True)
class Library:
    """A native library behind a plain C ABI; describing it costs nothing.

    Example:
        >>> from ctypes import c_float, c_int, c_int64, c_void_p
        >>> AXPY = Library(
        ...     name="axpy_cpu",
        ...     package="graftwork_axpy",
        ...     sources=["csrc/axpy.cpp"],
        ...     functions={"axpy": (c_void_p, c_void_p, c_float, c_int64, c_int)},
        ... )

    Headers are the files with a header's suffix below the folders of the sources; those folders, and the one
    of ``graftwork.h``, are on the include path. A change of a header from elsewhere would go unnoticed.

    Args:
        name: Name of the library, unique within the package.
        package: Importable package whose folder the sources are relative to. It is located, not imported.
        sources: Files to compile, relative to the package.
        functions: Exported functions with the ctypes types of their arguments. Each returns an ``int``, 0 for
            success.
        language: ``"cpu"`` compiles with the C++ compiler and OpenMP, ``"cuda"`` with nvcc.
        flags: Compiler flags in addition to ``-O3 -std=c++17``.
    """

    name: str
    package: str
    sources: Sequence[str]
    functions: Mapping[str, Sequence[Any]]
    language: Language = "cpu"
    flags: Sequence[str] = ()

    def __post_init__(self) -> None:
        if _NAME.fullmatch(self.name) is None:
            raise ValueError(
                f"Library name {self.name!r}: use lower-case letters, digits and underscores, "
                "such as 'axpy_cpu'."
            )
        if isinstance(self.sources, str) or not self.sources:
            raise ValueError(f"library {self.name!r}: sources must be a list of files, got {self.sources!r}.")
        if not self.functions:
            raise ValueError(
                f"library {self.name!r} declares no functions; name those that it exports with their types."
            )
        if self.language not in ("cpu", "cuda"):
            raise ValueError(
                f"library {self.name!r}: language must be 'cpu' or 'cuda', got {self.language!r}."
            )
        forbidden = sorted(_PROCESS_WIDE_FLAGS.intersection(self.flags))
        if forbidden:
            raise ValueError(
                f"library {self.name!r}: {forbidden[0]} makes the whole process flush denormal numbers to "
                "zero; name what you need, such as -fno-math-errno -fassociative-math -fno-signed-zeros "
                "-fno-trapping-math."
            )
        object.__setattr__(self, "sources", tuple(self.sources))
        object.__setattr__(self, "flags", tuple(self.flags))
        object.__setattr__(
            self,
            "functions",
            MappingProxyType({name: tuple(types) for name, types in self.functions.items()}),
        )

    def folder(self) -> Path:
        """Return the folder of the package.

        Raises:
            Unavailable: The package cannot be found on disk.
        """
        try:
            found = importlib.util.find_spec(self.package)
        except (ImportError, ValueError):
            found = None
        if found is None or not found.submodule_search_locations:
            raise Unavailable(
                f"package {self.package!r}, which holds the sources of {self.name!r}, cannot be found.",
                f"Install the distribution that provides {self.package!r}.",
            )
        folder = Path(next(iter(found.submodule_search_locations)))
        if not folder.is_dir():
            raise Unavailable(
                f"package {self.package!r} is not a folder on disk ({folder}).",
                "Install it unpacked; a C++ compiler cannot read from an archive.",
            )
        return folder

    def source_paths(self) -> list[Path]:
        """Return the files to compile.

        Raises:
            Unavailable: One of them is missing.
        """
        folder = self.folder()
        paths = [folder / source for source in self.sources]
        missing = [str(path) for path in paths if not path.is_file()]
        if missing:
            raise Unavailable(
                f"source of {self.name!r} not found: {missing[0]}.",
                f"Reinstall the distribution that provides {self.package!r}; its wheel must contain them.",
            )
        return paths

    def include_folders(self) -> list[Path]:
        """Return the folders in which the compiler looks for headers."""
        return [*dict.fromkeys(path.parent for path in self.source_paths()), INCLUDE]

    def digest(self) -> str:
        """Return a hash of everything the author controls: sources, headers, language and flags."""
        content = hashlib.sha256(repr((self.language, self.flags)).encode())
        headers = {
            path
            for folder in self.include_folders()
            for path in folder.rglob("*")
            if path.suffix in _HEADER_SUFFIXES
        }
        folder = self.folder()
        for path in [*self.source_paths(), *sorted(headers)]:
            where = path.relative_to(folder) if path.is_relative_to(folder) else path.name
            data = path.read_bytes()
            content.update(f"\n{where} {len(data)}\n".encode())
            content.update(data)
        return content.hexdigest()[:16]
