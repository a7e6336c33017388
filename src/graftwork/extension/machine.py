"""What this machine can run: the CPU's instruction set level and the CUDA devices.

Nothing here imports torch, compiles, or creates a CUDA context.
"""

from __future__ import annotations

import ctypes
import functools
import platform
import sys
from dataclasses import dataclass
from pathlib import Path

GENERIC = "generic"

# Levels of the x86-64 psABI, as /proc/cpuinfo spells their flags (abm holds lzcnt, pni is SSE3).
_X86_64_LEVELS: tuple[tuple[str, frozenset[str]], ...] = (
    ("x86-64-v2", frozenset({"cx16", "lahf_lm", "popcnt", "pni", "sse4_1", "sse4_2", "ssse3"})),
    ("x86-64-v3", frozenset({"abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "xsave"})),
    ("x86-64-v4", frozenset({"avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl"})),
)
# from cuda.h: CUDA_ERROR_NO_DEVICE and two device attributes
_NO_DEVICE = 100
_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR = 75, 76


def platform_tag() -> str:
    """Return operating system and processor, such as ``"linux_x86_64"``."""
    return f"{sys.platform}_{platform.machine().lower()}"


def instruction_sets(cpuinfo: Path = Path("/proc/cpuinfo")) -> tuple[str, ...]:
    """Return the instruction set levels this CPU runs, the best first; the last is always ``"generic"``.

    Levels are told apart on x86-64 Linux only. Elsewhere code is compiled for the processor's baseline, which
    on 64-bit ARM includes vector instructions.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return (GENERIC,)
    try:
        text = cpuinfo.read_text()
    except OSError:
        return (GENERIC,)
    # the kernel lists AVX flags only if it also saves their registers; cores may differ, so all must agree
    cores = [
        frozenset(line.partition(":")[2].split()) for line in text.splitlines() if line.startswith("flags")
    ]
    if not cores:
        return (GENERIC,)
    flags = frozenset.intersection(*cores)
    levels = [GENERIC]
    for level, needed in _X86_64_LEVELS:
        if not needed <= flags:
            break
        levels.append(level)
    return tuple(reversed(levels))


@dataclass(frozen=True)
class CudaDevices:
    """The CUDA devices this process may use.

    Args:
        capabilities: Distinct compute capabilities, major * 10 + minor, ascending.
        driver: CUDA version the driver supports, as (major, minor).
        problem: Why there is none.
    """

    capabilities: tuple[int, ...] = ()
    driver: tuple[int, int] = (0, 0)
    problem: str = ""


@functools.cache
def cuda_devices() -> CudaDevices:
    """Ask the driver for the visible devices, without creating a context on any."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return CudaDevices(problem="no NVIDIA driver is installed")
    version, count, value = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    code = driver.cuInit(0)
    if code not in (0, _NO_DEVICE):
        return CudaDevices(problem=f"the NVIDIA driver does not start (cuInit returned {code})")
    if code == _NO_DEVICE or driver.cuDeviceGetCount(ctypes.byref(count)) != 0 or count.value == 0:
        return CudaDevices(
            problem="the NVIDIA driver reports no device (see nvidia-smi, CUDA_VISIBLE_DEVICES)"
        )
    driver.cuDriverGetVersion(ctypes.byref(version))
    capabilities = set()
    for index in range(count.value):
        device = ctypes.c_int()
        driver.cuDeviceGet(ctypes.byref(device), index)
        numbers = []
        for attribute in (_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR):
            driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
            numbers.append(value.value)
        capabilities.add(numbers[0] * 10 + numbers[1])
    major, minor = divmod(version.value, 1000)
    return CudaDevices(tuple(sorted(capabilities)), (major, minor // 10))
