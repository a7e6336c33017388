"""The folder of compiled libraries: one build at a time, finished files only, failures remembered."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from graftwork.extension.library import Library, Unavailable
from graftwork.extension.machine import platform_tag
from graftwork.extension.toolchain import (
    STANDARD_FLAGS,
    CompileError,
    Compiler,
    compile_library,
)

CACHE_VARIABLE = "GRAFTWORK_CACHE"
SUFFIX = ".dll" if sys.platform == "win32" else ".so"


def folder() -> Path:
    """Return the folder of compiled libraries: below ``$GRAFTWORK_CACHE`` or the user's cache folder."""
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen).expanduser() / "extension"
    if sys.platform == "darwin":
        base = Path("~/Library/Caches").expanduser()
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or "~/AppData/Local").expanduser()
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return base / "graftwork" / "extension"


class Slot:
    """The place of one build in the cache; everything that could change the binary is in its name.

    Args:
        library: What is compiled.
        compiler: With what.
        targets: For which instruction set level or CUDA targets.
    """

    def __init__(self, library: Library, compiler: Compiler, targets: Sequence[str]) -> None:
        self.library = library
        self.compiler = compiler
        self.targets = tuple(targets)
        identity = (library.digest(), compiler.identity, self.targets, platform_tag(), STANDARD_FLAGS)
        key = hashlib.sha256(repr(identity).encode()).hexdigest()[:20]
        base = folder() / f"{library.package}.{library.name}-{key}"
        self.path = base.with_name(base.name + SUFFIX)
        self._facts = base.with_name(base.name + ".json")
        self._failure = base.with_name(base.name + ".failed.json")

    def facts(self) -> dict[str, Any]:
        """Return what was remembered about the finished build."""
        return _read(self._facts)

    def failure(self) -> str:
        """Return the compiler's output of the last build of identical inputs if it failed, else ``""``."""
        return str(_read(self._failure).get("output", ""))

    def build(self, *, retry: bool = False) -> bool:
        """Compile unless another process did; say so on stderr.

        Args:
            retry: Try again although identical inputs failed before.

        Returns:
            True if this call compiled, False if the library was there.

        Raises:
            Unavailable: It does not compile, or the cache folder cannot be used.
        """
        if self.path.exists():
            return False
        with _locked(folder()):
            if self.path.exists():
                return False
            if not retry and (output := self.failure()):
                raise self.unavailable(output)
            for abandoned in folder().glob("build-*"):  # by a process that was killed
                shutil.rmtree(abandoned, ignore_errors=True)
            self._compile()
        return True

    def discard(self) -> None:
        """Remove the library, so that the next build starts afresh."""
        self.path.unlink(missing_ok=True)

    def describe(self) -> str:
        """Return compiler and targets, such as ``"g++ 12.2 for x86-64-v3"``."""
        return f"{self.compiler.version} for {' '.join(self.targets)}"

    def unavailable(self, output: str) -> Unavailable:
        """Return the error for a failed build."""
        return Unavailable(
            f"compiling {self.library.name!r} with {self.compiler.version} failed:\n{output}\n",
            f"Report these lines to the authors of the package {self.library.package!r}. The failure is "
            "remembered for these sources and this compiler; GRAFTWORK_EXTENSION=jit tries again.",
        )

    def _compile(self) -> None:
        name = self.library.name
        print(f"graftwork: compiling {name} ({self.describe()}) ...", end="", file=sys.stderr, flush=True)
        started = time.perf_counter()
        temporary = Path(tempfile.mkdtemp(prefix="build-", dir=folder()))
        try:
            output = temporary / self.path.name
            try:
                facts = compile_library(self.library, self.compiler, self.targets, output)
            except CompileError as error:
                print(f" failed after {time.perf_counter() - started:.1f} s", file=sys.stderr, flush=True)
                if error.lasting:
                    _write(self._failure, {"output": error.output}, temporary)
                raise self.unavailable(error.output) from None
            seconds = time.perf_counter() - started
            facts.update(compiler=self.compiler.identity, seconds=round(seconds, 2))
            _write(self._facts, facts, temporary)
            with output.open("rb+") as file:
                os.fsync(file.fileno())
            output.replace(self.path)
            self._failure.unlink(missing_ok=True)
            serial = self.library.language == "cpu" and not facts["openmp"]
            remark = ", single-threaded: this compiler has no OpenMP" if serial else ""
            print(f" done in {seconds:.1f} s{remark}", file=sys.stderr, flush=True)
        except OSError as error:
            raise _unusable(folder(), error) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def _locked(place: Path) -> Iterator[None]:
    """Hold the lock that lets one process build at a time; the system frees it if the process dies."""
    import fcntl

    try:
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = (place / "build.lock").open("a")
    except OSError as error:
        raise _unusable(place, error) from error
    with lock:
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print("graftwork: waiting for another process that is compiling", file=sys.stderr, flush=True)
                fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:
            raise _unusable(place, error) from error
        yield


def _unusable(place: Path, error: OSError) -> Unavailable:
    return Unavailable(
        f"the cache folder {place} cannot be used: {error}.",
        f"Set {CACHE_VARIABLE} to a writable folder on a local disk.",
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _write(path: Path, content: dict[str, Any], temporary: Path) -> None:
    draft = temporary / path.name
    draft.write_text(json.dumps(content, indent=1))
    draft.replace(path)
