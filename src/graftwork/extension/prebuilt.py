"""Libraries inside a wheel: found by platform, instruction set and digest of the sources; made for one."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from graftwork.extension import machine
from graftwork.extension.cache import SUFFIX, Slot
from graftwork.extension.library import Library
from graftwork.extension.toolchain import compiler_for, cuda_targets

FOLDER = "_native"


def file_name(library: Library, tag: str) -> str:
    """Return the file name of a prebuilt library, which holds the digest of the sources it was made from."""
    return f"{library.name}-{machine.platform_tag()}-{tag}-{library.digest()}{SUFFIX}"


def find(library: Library) -> Path | None:
    """Return the best prebuilt library that this machine can run, or None."""
    folder = library.folder() / FOLDER
    if not folder.is_dir():
        return None
    if library.language == "cuda":
        for path in sorted(folder.glob(file_name(library, "cuda*")), reverse=True):
            tag = path.name.removesuffix(SUFFIX).split("-")[-2]
            if _cuda_tag_runs(tag, machine.cuda_devices()):
                return path
        return None
    # names are made, not parsed: a level this CPU lacks is never even looked for
    candidates = (folder / file_name(library, level) for level in machine.instruction_sets())
    return next((path for path in candidates if path.is_file()), None)


def _cuda_tag_runs(tag: str, devices: machine.CudaDevices) -> bool:
    toolkit, *targets = tag.removeprefix("cuda").split(".")
    if int(toolkit) > devices.driver[0]:
        return False

    def covered(capability: int) -> bool:
        exact = (int(target[2:]) for target in targets if target.startswith("sm"))
        portable = (int(target[3:]) for target in targets if target.startswith("ptx"))
        # machine code runs on later devices of the same generation, PTX on all later ones
        same = any(code // 10 == capability // 10 and code <= capability for code in exact)
        return same or any(code <= capability for code in portable)

    return all(covered(capability) for capability in devices.capabilities)


def why_none(library: Library) -> str:
    """Return why :func:`find` has no answer."""
    folder = library.folder() / FOLDER
    others = sorted(path.name for path in folder.glob(f"{library.name}-*{SUFFIX}")) if folder.is_dir() else []
    if not others:
        return f"none for {machine.platform_tag()} in {folder}."
    return f"none of {', '.join(others)} is for these sources and this machine ({machine.platform_tag()})."


def prebuild(
    library: Library, *, folder: Path | None = None, targets: Sequence[str] | None = None
) -> list[Path]:
    """Make the prebuilt libraries that a wheel carries.

    Example:
        ``python -m graftwork.extension prebuild graftwork_axpy.ops:AXPY`` before building the wheel.

    Args:
        library: What to compile.
        folder: Where to; None stands for ``_native`` in the package.
        targets: For the CPU the instruction set levels, one library each; for CUDA the devices, all in one.
            None stands for ``generic`` and, on x86-64, ``x86-64-v3``; and for the usual devices.

    Returns:
        The files.

    Raises:
        Unavailable: There is no compiler or the sources do not compile.
    """
    compiler = compiler_for(library)
    folder = folder if folder is not None else library.folder() / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    if library.language == "cuda":
        chosen = tuple(targets) if targets is not None else cuda_targets(compiler, machine.CudaDevices())
        variants = {".".join((f"cuda{compiler.release[0]}", *chosen)): chosen}
    else:
        on_x86 = machine.platform_tag().endswith(("x86_64", "amd64"))
        usual = (machine.GENERIC, "x86-64-v3") if on_x86 else (machine.GENERIC,)
        variants = {level: (level,) for level in (targets if targets is not None else usual)}
    made = []
    for tag, variant in variants.items():
        made.append(folder / file_name(library, tag))
        slot = Slot(library, compiler, variant)
        slot.build()
        # never write into the file: a process may have mapped it
        draft = made[-1].with_suffix(".part")
        shutil.copy2(slot.path, draft)
        draft.replace(made[-1])
    return made
