"""Compilers: where they are, what they are called, how they are run."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from graftwork.extension.library import Library, Unavailable
from graftwork.extension.machine import GENERIC, CudaDevices

STANDARD_FLAGS = ("-O3", "-std=c++17", "-shared")
# what a CUDA library is compiled for where there is no device to ask: A100, H100, and PTX for later ones
USUAL_CAPABILITIES = (80, 90)

_OPENMP_PROBE = "#include <omp.h>\nint probe() { return omp_get_max_threads(); }\n"
_EMPTY_PROBE = "int probe() { return 0; }\n"
_VERSION = re.compile(r"release (\d+)\.(\d+)")
_GPU_CODE = re.compile(r"sm_(\d+)$", re.MULTILINE)
_TAIL_LINES = 25


@dataclass(frozen=True)
class Compiler:
    """A compiler that was found.

    Args:
        command: How to start it.
        version: First meaningful line of what ``--version`` prints.
        release: Version of the CUDA toolkit, (0, 0) for a C++ compiler.
    """

    command: tuple[str, ...]
    version: str
    release: tuple[int, int] = (0, 0)

    @property
    def identity(self) -> str:
        """Path and version: a build is valid for this compiler only."""
        return f"{' '.join(self.command)} | {self.version}"


class CompileError(RuntimeError):
    """The compiler refused; carries the end of its output."""

    def __init__(self, output: str, *, lasting: bool) -> None:
        super().__init__(output)
        self.output = output
        self.lasting = lasting


_identified: dict[tuple[str, ...], str] = {}


def _version_of(command: tuple[str, ...]) -> str:
    if command not in _identified:
        try:
            done = subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=60)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Unavailable(
                f"compiler {' '.join(command)!r} does not run: {error}.", "Repair or reinstall it."
            ) from error
        if done.returncode != 0:
            raise Unavailable(
                f"compiler {' '.join(command)!r} does not run: {tail(done.stderr or done.stdout)}.",
                "Repair or reinstall it.",
            )
        _identified[command] = done.stdout.strip()
    return _identified[command]


def cxx() -> Compiler:
    """Return the system's C++ compiler: ``$CXX``, or the first of c++, g++ and clang++.

    Raises:
        Unavailable: There is none, or the system is one where compiling is not supported.
    """
    if os.name != "posix":
        raise Unavailable(
            f"compiling at first use is supported on Linux and macOS, not on {sys.platform}.",
            "Install a wheel that contains the prebuilt library.",
        )
    chosen = os.environ.get("CXX", "").strip()
    candidates = [shlex.split(chosen)] if chosen else [["c++"], ["g++"], ["clang++"]]
    for candidate in candidates:
        path = shutil.which(candidate[0])
        if path is not None:
            command = (path, *candidate[1:])
            return Compiler(command, _version_of(command).partition("\n")[0])
    if chosen:
        raise Unavailable(
            f"CXX names the compiler {chosen!r}, which is not on PATH.", "Correct or unset the variable CXX."
        )
    raise Unavailable(
        "no C++ compiler was found (looked for $CXX, c++, g++ and clang++ on PATH).",
        "Install one, for example `apt install g++`, `dnf install gcc-c++`, `conda install -c conda-forge "
        "cxx-compiler` or `xcode-select --install`.",
    )


def nvcc() -> Compiler:
    """Return NVIDIA's compiler: from ``$CUDA_HOME``, ``$CUDA_PATH``, PATH, or the usual folder.

    Raises:
        Unavailable: There is none, or it lacks a host compiler.
    """
    host = cxx()
    places = [Path(os.environ[name]) / "bin" for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    found = next((path for place in places if (path := shutil.which("nvcc", path=str(place)))), None)
    found = found or shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if found is None:
        raise Unavailable(
            "no CUDA compiler was found (looked for nvcc in $CUDA_HOME/bin, $CUDA_PATH/bin, on PATH and in "
            "/usr/local/cuda/bin).",
            "Install the CUDA toolkit, for example `conda install -c nvidia cuda-nvcc cuda-cudart-dev`, "
            "or set CUDA_HOME to where it is.",
        )
    command: tuple[str, ...] = (found,)
    if len(host.command) == 1 and not os.environ.get("NVCC_CCBIN"):
        # so that CXX=g++-12 helps where the default compiler is too new for nvcc
        command = (found, "-ccbin", host.command[0])
    printed = _version_of(command)
    release = _VERSION.search(printed)
    if release is None:
        raise Unavailable(
            f"{found} prints no CUDA release: {printed!r}.", "Point CUDA_HOME at a CUDA toolkit."
        )
    version = (int(release[1]), int(release[2]))
    # the host compiler's code ends up in the library as well
    return Compiler(command, f"nvcc {version[0]}.{version[1]} with {host.version}", version)


def compiler_for(library: Library) -> Compiler:
    """Return the compiler for a library's language."""
    return cxx() if library.language == "cpu" else nvcc()


def cuda_targets(compiler: Compiler, devices: CudaDevices) -> tuple[str, ...]:
    """Return what to compile for, such as ``("sm80", "sm90", "ptx90")``.

    The devices present, or A100 and H100 where there is none. PTX is added for devices that the compiler does
    not know, and where no device was there to ask.

    Raises:
        Unavailable: The compiler no longer supports any of the devices.
    """
    listed = subprocess.run([*compiler.command, "--list-gpu-code"], capture_output=True, text=True)
    known = sorted(int(code) for code in _GPU_CODE.findall(listed.stdout))
    if not known:
        raise Unavailable(
            f"{compiler.command[0]} does not list the devices it compiles for.",
            "Install a CUDA toolkit of version 11.8 or later.",
        )
    wanted = devices.capabilities or USUAL_CAPABILITIES
    exact = [capability for capability in wanted if capability in known]
    unknown = [capability for capability in wanted if capability not in known]
    older = [capability for capability in known if unknown and capability <= min(unknown)]
    if unknown and devices.capabilities and not older:
        raise Unavailable(
            f"{compiler.version} no longer compiles for compute capability {min(unknown) / 10}.",
            "Install an older CUDA toolkit and point CUDA_HOME at it.",
        )
    targets = [f"sm{capability}" for capability in exact]
    if unknown and older:
        targets.append(f"ptx{older[-1]}")
    elif not devices.capabilities:
        targets.append(f"ptx{exact[-1] if exact else known[0]}")
    return tuple(targets)


def _cuda_flags(targets: Sequence[str]) -> list[str]:
    flags = ["-cudart=static", "-Xcompiler", "-fPIC", "--threads", "0"]
    for target in targets:
        number = target.removeprefix("sm").removeprefix("ptx")
        code = f"sm_{number}" if target.startswith("sm") else f"compute_{number}"
        flags += ["-gencode", f"arch=compute_{number},code={code}"]
    return flags


def compile_library(
    library: Library, compiler: Compiler, targets: Sequence[str], output: Path
) -> dict[str, object]:
    """Compile a library to a file.

    Args:
        library: What to compile.
        compiler: With what.
        targets: Instruction set level (one), or CUDA targets.
        output: File to write; its folder is used for temporary files.

    Returns:
        What is worth remembering: ``openmp`` and ``targets``.

    Raises:
        CompileError: The compiler refused.
    """
    command = [*compiler.command, *STANDARD_FLAGS]
    openmp = False
    used = list(targets)
    if library.language == "cuda":
        command += _cuda_flags(targets)
    else:
        command.append("-fPIC")
        openmp = _accepts(compiler, ["-fopenmp"], _OPENMP_PROBE, output.parent)
        if openmp:
            command.append("-fopenmp")
        level = targets[0]
        if level != GENERIC:
            if _accepts(compiler, [f"-march={level}"], _EMPTY_PROBE, output.parent):
                command.append(f"-march={level}")
            else:
                used = [GENERIC]
    command += [f"-I{folder}" for folder in library.include_folders()]
    command += [*library.flags, *map(str, library.source_paths()), "-o", str(output)]
    _run(command)
    return {"openmp": openmp, "targets": used}


def _accepts(compiler: Compiler, flags: Sequence[str], program: str, folder: Path) -> bool:
    """Return whether a tiny shared library compiles and links with these flags."""
    source = folder / "probe.cpp"
    source.write_text(program)
    command = [*compiler.command, "-shared", "-fPIC", *flags, str(source), "-o", str(folder / "probe.so")]
    return subprocess.run(command, capture_output=True).returncode == 0


def _run(command: Sequence[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    except OSError as error:
        raise CompileError(f"{command[0]}: {error}", lasting=False) from error
    if done.returncode != 0:
        output = done.stderr + done.stdout
        # a full disk or memory killer says nothing about the sources: worth another try by the next process
        passing = done.returncode < 0 or "No space left" in output or "Killed signal" in output
        raise CompileError(f"{shlex.join(command)}\n{tail(output)}", lasting=not passing)


def tail(text: str) -> str:
    """Return the last lines of a compiler's output."""
    return "\n".join(text.strip().splitlines()[-_TAIL_LINES:])
