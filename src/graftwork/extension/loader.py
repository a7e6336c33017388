"""From a description to callable functions: a prebuilt library, one from the cache, or a fresh build."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from graftwork.extension import machine, prebuilt
from graftwork.extension.cache import CACHE_VARIABLE, Slot
from graftwork.extension.library import MODE_VARIABLE, Library, NativeError, Unavailable, mode
from graftwork.extension.toolchain import Compiler, compiler_for, cuda_targets

# what a failed look-up depends on: a change of these in a running process (a notebook) deserves another try
_ENVIRONMENT = (MODE_VARIABLE, CACHE_VARIABLE, "XDG_CACHE_HOME", "PATH", "CXX", "CUDA_HOME", "CUDA_PATH")

Origin = Literal["prebuilt", "cached", "compiled"]


class Native:
    """A loaded library: its functions as attributes.

    A function raises :class:`NativeError` when it returns an error code. Other Python threads run meanwhile.

    Args:
        library: Its description.
        path: The file that was loaded.
        origin: Where the file came from.
    """

    def __init__(self, library: Library, path: Path, origin: Origin) -> None:
        self.path = path
        self.origin = origin
        self._name = library.name
        try:
            handle = ctypes.CDLL(str(path))
        except OSError as error:
            raise Unavailable(
                f"library {path} cannot be loaded: {error}.",
                "Remove the file; it is made again at the next use.",
            ) from error
        message = getattr(handle, "graftwork_error", None)
        if message is not None:
            message.restype = ctypes.c_char_p
        self._functions: dict[str, Callable[..., int]] = {}
        for name, types in library.functions.items():
            try:
                function = handle[name]
            except AttributeError as error:
                raise Unavailable(
                    f"library {path} does not export the function {name!r} that {library.name!r} declares.",
                    f'Declare it as `extern "C" int {name}(...)` in the sources of {library.package!r}.',
                ) from error
            function.argtypes = types
            function.restype = ctypes.c_int
            function.errcheck = _error_check(f"{library.name}.{name}", message)
            self._functions[name] = function

    def __getattr__(self, name: str) -> Callable[..., int]:
        functions = self.__dict__.get("_functions", {})
        try:
            found: Callable[..., int] = functions[name]
        except KeyError:
            raise AttributeError(
                f"native library has no function {name!r}; it declares {', '.join(sorted(functions))}."
            ) from None
        return found

    def __repr__(self) -> str:
        return f"<native library {self._name!r}, {self.origin}: {self.path}>"


def _error_check(where: str, message: Any) -> Callable[[Any, Any, Any], Any]:
    def check(code: Any, function: Any, arguments: Any) -> Any:
        if code != 0:
            text = (message() or b"").decode(errors="replace") if message is not None else ""
            raise NativeError(f"{where} returned error code {code}{': ' + text if text else '.'}")
        return code

    return check


@dataclass(frozen=True)
class Status:
    """What :func:`load` would do.

    Args:
        state: ``"loaded"``, ``"prebuilt"`` and ``"cached"`` need no compiler, ``"buildable"`` has one.
        detail: The file, the compiler, or the reason.
        fix: What to do about ``"unavailable"``.
    """

    state: Literal["loaded", "prebuilt", "cached", "buildable", "unavailable"]
    detail: str
    fix: str = ""

    def __str__(self) -> str:
        words = {
            "loaded": "loaded",
            "prebuilt": "prebuilt library found:",
            "cached": "compiled library found:",
            "buildable": "would be compiled at first use:",
            "unavailable": "unavailable:",
        }
        return f"{words[self.state]} {self.detail} {self.fix}".strip()


_lock = threading.RLock()
_results: dict[tuple[object, ...], Native | tuple[str, str]] = {}


def _after_fork() -> None:
    # another thread of the parent may have held it, and does not exist in the child
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _key(library: Library) -> tuple[object, ...]:
    return (library, *(os.environ.get(name) for name in _ENVIRONMENT))


def load(library: Library) -> Native:
    """Return a library's functions, compiling it if that is the only way.

    Prebuilt libraries come first, then an earlier build in the user's cache folder, then a build now, which
    one line on stderr announces. Success and failure are remembered in the process, a failed build also on
    disk.

    Example:
        >>> lib = extension.load(AXPY)  # doctest: +SKIP
        >>> lib.axpy(pointer(x, torch.float32), pointer(y, torch.float32), 2.0, x.numel(), threads())
        0

    Args:
        library: What to load.

    Returns:
        The loaded library.

    Raises:
        Unavailable: It cannot be had here; carries reason and fix.
        ValueError: ``GRAFTWORK_EXTENSION`` has an unknown value.
    """
    key = _key(library)
    found = _results.get(key)
    if found is None:
        with _lock:
            found = _results.get(key)
            if found is None:
                try:
                    found = _resolve(library)
                except Unavailable as error:
                    found = (error.reason, error.fix)
                    _results[key] = found
                    raise
                _results[key] = found
    if isinstance(found, Native):
        return found
    raise Unavailable(*found)


def status(library: Library) -> Status:
    """Say what :func:`load` would do, without compiling or loading anything.

    Args:
        library: What would be loaded.

    Returns:
        Its state, with the reason and the fix if it is unavailable.
    """
    known = _results.get(_key(library))
    if isinstance(known, Native):
        return Status("loaded", f"({known.origin}) {known.path}")
    if known is not None:
        return Status("unavailable", *known)
    try:
        how = mode()
        _refuse_where_useless(library, how)
        shipped = None if how == "jit" else prebuilt.find(library)
        if shipped is not None:
            return Status("prebuilt", str(shipped))
        if how == "prebuilt":
            raise _only_prebuilt(library, prebuilt.why_none(library))
        slot = _slot(library)
        if slot.path.exists():
            return Status("cached", str(slot.path))
        if how != "jit" and (output := slot.failure()):
            raise slot.unavailable(output)
    except Unavailable as error:
        return Status("unavailable", error.reason, error.fix)
    except ValueError as error:
        return Status("unavailable", str(error))
    return Status("buildable", f"with {slot.describe()}")


def _resolve(library: Library) -> Native:
    how = mode()
    _refuse_where_useless(library, how)
    why_not = f"{MODE_VARIABLE}=jit ignores it."
    if how != "jit":
        why_not = prebuilt.why_none(library)
        shipped = prebuilt.find(library)
        if shipped is not None:
            try:
                return Native(library, shipped, "prebuilt")
            except Unavailable as error:
                why_not = error.reason
        if how == "prebuilt":
            raise _only_prebuilt(library, why_not)
    try:
        slot = _slot(library)
        compiled = slot.build(retry=how == "jit")
        try:
            return Native(library, slot.path, "compiled" if compiled else "cached")
        except Unavailable:
            if compiled:
                raise
            # damaged, or made under another system that shares the folder
            slot.discard()
            slot.build(retry=True)
            return Native(library, slot.path, "compiled")
    except Unavailable as error:
        raise Unavailable(
            f"native library {library.name!r} of {library.package!r} is not available. "
            f"Prebuilt: {why_not} Compiled at first use: {error.reason}",
            error.fix,
        ) from error


def _refuse_where_useless(library: Library, how: str) -> None:
    if how == "reference":
        raise Unavailable(
            f"native code is switched off by {MODE_VARIABLE}=reference.",
            f"Unset {MODE_VARIABLE} to use {library.name!r}.",
        )
    if library.language == "cuda" and machine.cuda_devices().problem:
        raise Unavailable(
            f"{library.name!r} needs a CUDA device: {machine.cuda_devices().problem}.",
            "Use the CPU, or run where `nvidia-smi` lists a device.",
        )


def _only_prebuilt(library: Library, why_not: str) -> Unavailable:
    return Unavailable(
        f"native library {library.name!r}: {why_not} {MODE_VARIABLE}=prebuilt forbids compiling it.",
        f"Install a wheel of {library.package!r} that contains it, or unset {MODE_VARIABLE}.",
    )


def _slot(library: Library) -> Slot:
    compiler = compiler_for(library)
    devices = machine.cuda_devices()
    if library.language == "cuda" and devices.capabilities and compiler.release[0] > devices.driver[0]:
        raise Unavailable(
            f"{compiler.version} makes code for CUDA {compiler.release[0]}, the driver supports CUDA "
            f"{devices.driver[0]}.{devices.driver[1]} only.",
            "Update the NVIDIA driver, or point CUDA_HOME at an older CUDA toolkit.",
        )
    return Slot(library, compiler, default_targets(library, compiler))


def default_targets(library: Library, compiler: Compiler) -> tuple[str, ...]:
    """Return what a build for this machine is compiled for."""
    if library.language == "cuda":
        return cuda_targets(compiler, machine.cuda_devices())
    return (machine.instruction_sets()[0],)


def build(library: Library, *, targets: Sequence[str] | None = None) -> Path:
    """Compile a library into the cache without loading it, so that no device is needed.

    ``GRAFTWORK_EXTENSION=jit`` retries what failed before; its other values do not matter here.

    Args:
        library: What to compile.
        targets: One instruction set level such as ``["x86-64-v3"]``, or CUDA targets such as
            ``["sm90", "ptx90"]``; None stands for this machine, or the usual devices where there is none.

    Returns:
        The library's file.

    Raises:
        Unavailable: There is no compiler or the sources do not compile.
    """
    compiler = compiler_for(library)
    slot = Slot(library, compiler, targets if targets is not None else default_targets(library, compiler))
    slot.build(retry=mode() == "jit")
    return slot.path
