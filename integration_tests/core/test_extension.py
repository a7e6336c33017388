"""graftwork.extension, exercised by a tiny operator whose arithmetic CPU and CUDA share in one header."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import textwrap
import threading
from ctypes import c_float, c_int, c_int64, c_void_p
from pathlib import Path

import pytest
import torch

from graftwork import extension
from graftwork.extension import loader, machine, prebuilt, toolchain
from graftwork.extension.cache import Slot

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="no C++ compiler on PATH"
)
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc on PATH")
pytestmark = needs_compiler

HEADER = """
#pragma once
#include <cstdint>
#include "graftwork.h"
GRAFTWORK_HOST_DEVICE float axpy_one(float a, float x, float y) { return a * x + y; }
"""
CPU_SOURCE = """
#include "axpy_math.h"
GRAFTWORK_API int axpy(const float *x, float *y, float a, int64_t n, int threads) {
  if (threads < 1) return graftwork_fail("threads must be positive, got %d", threads);
#pragma omp parallel for num_threads(threads)
  for (int64_t i = 0; i < n; ++i) y[i] = axpy_one(a, x[i], y[i]);
  return 0;
}
// how many threads take part in a parallel region
GRAFTWORK_API int team(int threads, int *size) {
  *size = 0;
#pragma omp parallel num_threads(threads)
#pragma omp atomic
  ++*size;
  return 0;
}
"""
CUDA_SOURCE = """
#include "axpy_math.h"
__global__ void kernel(const float *x, float *y, float a, int64_t n) {
  const int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x;
  if (i < n) y[i] = axpy_one(a, x[i], y[i]);
}
GRAFTWORK_API int axpy(const float *x, float *y, float a, int64_t n, void *stream) {
  if (n == 0) return 0;
  kernel<<<(n + 255) / 256, 256, 0, (cudaStream_t)stream>>>(x, y, a, n);
  GRAFTWORK_CUDA(cudaGetLastError());
  return 0;
}
"""
AXPY_TYPES = (c_void_p, c_void_p, c_float, c_int64, c_int)

# what another process does: the library's description without torch, so that it starts at once
OTHER_PROCESS = """
import ctypes, sys
sys.path.insert(0, {path!r})
from ctypes import c_float, c_int, c_int64, c_void_p
from graftwork import extension
AXPY = extension.Library(
    name="axpy_cpu", package="axpy_package", sources=["csrc/axpy.cpp"],
    functions={{"axpy": (c_void_p, c_void_p, c_float, c_int64, c_int), "team": (c_int, c_void_p)}},
)
"""
LOAD_AND_USE = """
lib = extension.load(AXPY)
x, y = (ctypes.c_float * 3)(1, 2, 3), (ctypes.c_float * 3)(1, 1, 1)
lib.axpy(ctypes.addressof(x), ctypes.addressof(y), 2.0, 3, 1)
assert list(y) == [3, 5, 7], list(y)
print(lib.origin)
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of an importable package with the sources; caches and settings are the test's own."""
    folder = tmp_path / "site" / "axpy_package"
    (folder / "csrc").mkdir(parents=True)
    (folder / "__init__.py").write_text(
        "raise AssertionError('locating sources must not import the package')"
    )
    (folder / "csrc" / "axpy_math.h").write_text(HEADER)
    (folder / "csrc" / "axpy.cpp").write_text(CPU_SOURCE)
    (folder / "csrc" / "axpy.cu").write_text(CUDA_SOURCE)
    monkeypatch.syspath_prepend(str(folder.parent))
    monkeypatch.setenv("GRAFTWORK_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("GRAFTWORK_EXTENSION", raising=False)
    return folder


def cpu_library(**changes: object) -> extension.Library:
    fields = {
        "name": "axpy_cpu",
        "package": "axpy_package",
        "sources": ["csrc/axpy.cpp"],
        "functions": {"axpy": AXPY_TYPES, "team": (c_int, c_void_p)},
    }
    return extension.Library(**{**fields, **changes})  # type: ignore[arg-type]


def cuda_library() -> extension.Library:
    functions = {"axpy": (c_void_p, c_void_p, c_float, c_int64, c_void_p)}
    return cpu_library(name="axpy_cuda", sources=["csrc/axpy.cu"], language="cuda", functions=functions)


def start(package: Path, program: str) -> subprocess.Popen[str]:
    text = OTHER_PROCESS.format(path=str(package.parent)) + textwrap.dedent(program)
    return subprocess.Popen(
        [sys.executable, "-c", text], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen[str]) -> tuple[str, str]:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out.strip(), err


def axpy(lib: extension.Native, x: torch.Tensor, y: torch.Tensor, a: float) -> torch.Tensor:
    result = y.clone()
    lib.axpy(
        extension.pointer(x, torch.float32, name="x"),
        extension.pointer(result, torch.float32, shape=x.shape, name="y"),
        a,
        x.numel(),
        extension.threads(),
    )
    return result


# ------------------------------------------------------------------------------------------ build and load


def test_compiled_function_agrees_with_torch_and_the_build_is_announced(package, capfd):
    x, y = torch.randn(10_001), torch.randn(10_001)
    lib = extension.load(cpu_library())
    assert lib.origin == "compiled"
    torch.testing.assert_close(axpy(lib, x, y, 2.5), 2.5 * x + y)
    line = capfd.readouterr().err
    assert (
        line.startswith("graftwork: compiling axpy_cpu (") and " done in " in line and line.count("\n") == 1
    )
    extension.load(cpu_library())
    assert capfd.readouterr().err == ""


def test_error_code_raises_with_the_message_of_the_c_side(package):
    lib = extension.load(cpu_library())
    with pytest.raises(extension.NativeError, match=r"axpy_cpu\.axpy .* threads must be positive, got 0"):
        lib.axpy(None, None, 1.0, 0, 0)
    with pytest.raises(AttributeError, match="no function 'axpby'; it declares axpy, team"):
        lib.axpby()


def test_same_description_is_loaded_once(package):
    library = cpu_library()
    assert extension.load(library) is extension.load(library)


def test_concurrent_processes_compile_once(package):
    processes = [start(package, LOAD_AND_USE) for _ in range(4)]
    results = [finish(process) for process in processes]
    assert sorted(out for out, _ in results) == ["cached", "cached", "cached", "compiled"]
    assert sum(err.count("compiling axpy_cpu") for _, err in results) == 1


def test_concurrent_threads_compile_once(package, capfd):
    libraries = [cpu_library() for _ in range(4)]
    threads = [threading.Thread(target=extension.load, args=(library,)) for library in libraries]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    origins = sorted(extension.load(library).origin for library in libraries)
    assert origins == ["cached", "cached", "cached", "compiled"]
    assert capfd.readouterr().err.count("compiling") == 1


@pytest.mark.parametrize("file", ["axpy.cpp", "axpy_math.h"])
def test_a_changed_source_or_header_is_compiled_again(package, file):
    before = extension.build(cpu_library())
    path = package / "csrc" / file
    path.write_text(path.read_text() + "\n// changed\n")
    assert extension.build(cpu_library()) != before


def test_flags_and_instruction_set_are_part_of_the_cache_key(package):
    builds = {
        extension.build(cpu_library()),
        extension.build(cpu_library(flags=["-fno-math-errno"])),
        extension.build(cpu_library(), targets=["generic"]),
    }
    assert len(builds) == 3


def test_a_damaged_cached_library_is_compiled_again(package):
    extension.build(cpu_library()).write_bytes(b"not a library")
    assert extension.load(cpu_library()).origin == "compiled"


def test_remains_of_a_killed_build_are_removed(package, tmp_path):
    remains = tmp_path / "cache" / "extension" / "build-killed"
    remains.mkdir(parents=True)
    built = extension.build(cpu_library())
    assert not remains.exists()
    assert sorted(path.suffix for path in built.parent.iterdir()) == [".json", ".lock", ".so"]


def test_a_forked_child_may_load_although_the_parent_was_loading(package):
    program = """
    import os, threading
    from graftwork.extension import loader
    extension.load(AXPY).team(2, ctypes.addressof(ctypes.c_int()))
    held = threading.Event()
    threading.Thread(target=lambda: (loader._lock.acquire(), held.set()), daemon=False).start()
    held.wait()
    child = os.fork()
    if child == 0:
        size = ctypes.c_int()
        os.environ["GRAFTWORK_EXTENSION"] = "jit"  # another key, so that the lock is needed
        extension.load(AXPY).team(1, ctypes.addressof(size))
        os._exit(0 if size.value == 1 else 1)
    print(os.waitpid(child, 0)[1])
    """
    assert finish(start(package, program))[0] == "0"


# ------------------------------------------------------------------------------------------ failures


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A compiler in CXX that counts its runs, and refuses flags listed in the file ``refused``."""
    real = next(path for name in ("c++", "g++", "clang++") if (path := shutil.which(name)))
    folder = tmp_path / "compiler"
    folder.mkdir()
    (folder / "version").write_text("testcc 1.0\n")
    (folder / "refused").write_text("")
    script = folder / "testcc"
    script.write_text(
        f"""#!/bin/sh
        case "$*" in --version) exec cat {folder}/version;; esac
        echo run >> {folder}/runs
        while read -r flag; do
          case "$*" in *"$flag"*) echo "testcc: refused $flag" >&2; exit 1;; esac
        done < {folder}/refused
        exec {real} "$@"
        """
    )
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    monkeypatch.setattr(toolchain, "_identified", {})
    return folder


def runs(compiler: Path) -> int:
    log = compiler / "runs"
    return len(log.read_text().splitlines()) if log.exists() else 0


def test_broken_source_is_unavailable_with_the_compilers_message(package, capfd):
    (package / "csrc" / "axpy.cpp").write_text("this is not C++;")
    with pytest.raises(extension.Unavailable) as caught:
        extension.load(cpu_library())
    assert "error:" in caught.value.reason and "axpy.cpp" in caught.value.reason
    assert "Prebuilt: none for" in caught.value.reason and "compiling 'axpy_cpu'" in caught.value.reason
    assert "axpy_package" in caught.value.fix
    assert " failed after " in capfd.readouterr().err


def test_a_failed_build_is_not_repeated_until_something_changes(package, compiler, monkeypatch):
    good = (package / "csrc" / "axpy.cpp").read_text()
    (package / "csrc" / "axpy.cpp").write_text("this is not C++;")
    library = cpu_library()
    for _ in range(2):
        with pytest.raises(extension.Unavailable):
            extension.load(library)
    first = runs(compiler)
    with pytest.raises(extension.Unavailable, match="error:"):  # another description, as in another process
        extension.load(cpu_library())
    status = extension.status(cpu_library())
    assert status.state == "unavailable" and "error:" in status.detail and status.fix
    assert runs(compiler) == first

    monkeypatch.setenv("GRAFTWORK_EXTENSION", "jit")
    with pytest.raises(extension.Unavailable):
        extension.load(cpu_library())
    assert runs(compiler) > first
    monkeypatch.delenv("GRAFTWORK_EXTENSION")

    second = runs(compiler)
    (compiler / "version").write_text("testcc 2.0\n")
    monkeypatch.setattr(toolchain, "_identified", {})
    with pytest.raises(extension.Unavailable, match=r"testcc 2\.0"):
        extension.load(cpu_library())
    assert runs(compiler) > second

    (package / "csrc" / "axpy.cpp").write_text(good)
    assert extension.load(cpu_library()).origin == "compiled"


def test_a_full_disk_is_not_remembered(package, compiler):
    (compiler / "refused").write_text("No space left\n")
    slot = Slot(cpu_library(flags=["-DX='No space left'"]), toolchain.cxx(), ["generic"])
    with pytest.raises(extension.Unavailable, match="No space left"):
        slot.build()
    assert slot.failure() == ""


def test_missing_compiler_is_explained(package, monkeypatch, tmp_path):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(extension.Unavailable) as caught:
        extension.load(cpu_library())
    assert "no C++ compiler was found (looked for $CXX, c++, g++ and clang++" in caught.value.reason
    assert "apt install g++" in caught.value.fix
    monkeypatch.setenv("CXX", "no-such-compiler -O1")
    assert "CXX names the compiler" in extension.status(cpu_library()).detail


def test_compiler_without_openmp_builds_single_threaded_and_says_so(package, compiler, capfd):
    (compiler / "refused").write_text("-fopenmp\n")
    lib = extension.load(cpu_library())
    assert "single-threaded: this compiler has no OpenMP" in capfd.readouterr().err
    size = c_int()
    lib.team(4, ctypes.addressof(size))
    assert size.value == 1
    torch.testing.assert_close(axpy(lib, torch.ones(9), torch.zeros(9), 3.0), torch.full((9,), 3.0))


def test_compiler_too_old_for_the_instruction_set_builds_generic_code(package, compiler):
    (compiler / "refused").write_text("-march=\n")
    slot = Slot(cpu_library(), toolchain.cxx(), ["x86-64-v3"])
    slot.build()
    assert slot.facts()["targets"] == ["generic"]


def test_function_that_is_not_exported_is_named(package):
    with pytest.raises(extension.Unavailable, match="does not export the function 'axpby'"):
        extension.load(cpu_library(functions={"axpby": ()}))


def test_missing_package_or_source_is_explained(package):
    with pytest.raises(extension.Unavailable, match="package 'nowhere_to_be_found'"):
        extension.load(cpu_library(package="nowhere_to_be_found"))
    with pytest.raises(extension.Unavailable, match=r"source of 'axpy_cpu' not found: .*missing\.cpp"):
        extension.load(cpu_library(sources=["csrc/missing.cpp"]))


def test_unusable_cache_folder_is_explained(package, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GRAFTWORK_CACHE", str(tmp_path / "file"))
    with pytest.raises(extension.Unavailable, match=r"cache folder .* cannot be used") as caught:
        extension.load(cpu_library())
    assert "GRAFTWORK_CACHE" in caught.value.fix


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "Axpy-CPU"}, "lower-case letters"),
        ({"sources": "csrc/axpy.cpp"}, "must be a list"),
        ({"sources": []}, "must be a list"),
        ({"functions": {}}, "declares no functions"),
        ({"language": "opencl"}, "'cpu' or 'cuda', got 'opencl'"),
        ({"flags": ["-ffast-math"]}, "whole process flush denormal"),
    ],
)
def test_impossible_descriptions_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        cpu_library(**changes)


# ------------------------------------------------------------------------------------------ modes and status


def test_reference_mode_switches_native_code_off(package, monkeypatch):
    extension.prebuild(cpu_library(), targets=["generic"])
    monkeypatch.setenv("GRAFTWORK_EXTENSION", "reference")
    with pytest.raises(extension.Unavailable, match="switched off by GRAFTWORK_EXTENSION=reference"):
        extension.load(cpu_library())
    assert extension.status(cpu_library()).state == "unavailable"


def test_prebuilt_mode_never_compiles(package, compiler, monkeypatch):
    monkeypatch.setenv("GRAFTWORK_EXTENSION", "prebuilt")
    with pytest.raises(extension.Unavailable, match="GRAFTWORK_EXTENSION=prebuilt forbids compiling"):
        extension.load(cpu_library())
    assert "forbids compiling" in extension.status(cpu_library()).detail
    assert runs(compiler) == 0


def test_unknown_mode_is_a_clear_error(package, monkeypatch):
    monkeypatch.setenv("GRAFTWORK_EXTENSION", "fast")
    with pytest.raises(ValueError, match=r"GRAFTWORK_EXTENSION must be reference .*, got 'fast'"):
        extension.load(cpu_library())
    assert "got 'fast'" in str(extension.status(cpu_library()))


def test_status_follows_a_library_through_its_life_without_compiling(package, compiler):
    library = cpu_library()
    status = extension.status(library)
    assert status.state == "buildable" and "testcc 1.0 for " in str(status)
    assert runs(compiler) == 0
    extension.build(library)
    built = runs(compiler)
    assert extension.status(library).state == "cached"
    extension.prebuild(library, targets=["generic"])
    assert extension.status(library).state == "prebuilt"
    assert str(extension.load(library).path) in str(extension.status(library))
    assert extension.status(library).state == "loaded"
    assert runs(compiler) > built


def test_import_is_light():
    program = "import sys, graftwork.extension; print([m for m in ('torch', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ------------------------------------------------------------------------------------------ prebuilt


def test_prebuilt_library_comes_first_and_needs_no_compiler(package, monkeypatch, tmp_path):
    made = extension.prebuild(cpu_library(), targets=["generic"])
    assert [path.parent for path in made] == [package / "_native"]
    monkeypatch.setenv("GRAFTWORK_CACHE", str(tmp_path / "another cache"))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")
    lib = extension.load(cpu_library())
    assert (lib.origin, lib.path) == ("prebuilt", made[0])
    torch.testing.assert_close(axpy(lib, torch.ones(5), torch.ones(5), 2.0), torch.full((5,), 3.0))


def test_jit_mode_ignores_the_prebuilt_library(package, monkeypatch):
    extension.prebuild(cpu_library(), targets=["generic"])
    monkeypatch.setenv("GRAFTWORK_EXTENSION", "jit")
    assert extension.load(cpu_library()).origin != "prebuilt"


def test_best_prebuilt_that_the_cpu_runs_is_chosen_never_a_newer_one(package, monkeypatch):
    library = cpu_library()
    folder = package / "_native"
    folder.mkdir()
    for level in ("generic", "x86-64-v2", "x86-64-v3", "x86-64-v4", "x86-64-v9"):
        (folder / prebuilt.file_name(library, level)).write_bytes(b"")

    def chosen() -> str:
        found = prebuilt.find(library)
        assert found is not None
        return found.name

    monkeypatch.setattr(machine, "instruction_sets", lambda: ("x86-64-v3", "x86-64-v2", "generic"))
    assert chosen() == prebuilt.file_name(library, "x86-64-v3")
    monkeypatch.setattr(machine, "instruction_sets", lambda: ("generic",))
    assert chosen() == prebuilt.file_name(library, "generic")
    (folder / prebuilt.file_name(library, "generic")).unlink()
    assert prebuilt.find(library) is None


def test_prebuilt_of_other_sources_is_refused_with_its_name(package, monkeypatch):
    made = extension.prebuild(cpu_library(), targets=["generic"])
    (package / "csrc" / "axpy.cpp").write_text(CPU_SOURCE + "// newer\n")
    monkeypatch.setenv("GRAFTWORK_EXTENSION", "prebuilt")
    with pytest.raises(extension.Unavailable, match=f"none of {made[0].name} is for these sources"):
        extension.load(cpu_library())


def test_unloadable_prebuilt_falls_back_to_compiling(package):
    made = extension.prebuild(cpu_library(), targets=["generic"])
    made[0].unlink()
    made[0].write_bytes(b"made for another C library")
    assert extension.load(cpu_library()).origin in ("cached", "compiled")


def test_command_line_prebuilds_into_a_folder(package, tmp_path, monkeypatch):
    (package / "__init__.py").write_text("")
    (package / "ops.py").write_text(OTHER_PROCESS.format(path=str(package.parent)))
    command = [sys.executable, "-m", "graftwork.extension", "prebuild", "axpy_package.ops:AXPY"]
    environment = {**os.environ, "PYTHONPATH": str(package.parent)}
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "out"), "--target", "generic"],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).parent == tmp_path / "out" and Path(done.stdout.strip()).is_file()


# ------------------------------------------------------------------------------------------ this machine


V2 = "cx16 lahf_lm popcnt pni sse4_1 sse4_2 ssse3"
V3 = V2 + " abm avx avx2 bmi1 bmi2 f16c fma movbe xsave"
V4 = V3 + " avx512bw avx512cd avx512dq avx512f avx512vl"


@pytest.mark.skipif(machine.platform_tag() != "linux_x86_64", reason="levels are told apart on x86-64 Linux")
@pytest.mark.parametrize(
    ("cores", "best"),
    [
        (["fpu sse2"], "generic"),
        ([V2], "x86-64-v2"),
        ([V3], "x86-64-v3"),
        ([V4], "x86-64-v4"),
        ([V4, V3], "x86-64-v3"),
        ([V4.replace("avx2", "")], "x86-64-v2"),
        ([], "generic"),
    ],
)
def test_instruction_set_is_what_all_cores_have(tmp_path, cores, best):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("".join(f"processor : {i}\nflags\t\t: {flags}\n" for i, flags in enumerate(cores)))
    levels = machine.instruction_sets(cpuinfo)
    assert levels[0] == best and levels[-1] == "generic"


def test_unknown_processors_get_generic_code(monkeypatch, tmp_path):
    assert machine.instruction_sets(tmp_path / "absent") == ("generic",)
    monkeypatch.setattr(machine.platform, "machine", lambda: "riscv64")
    assert machine.instruction_sets() == ("generic",)


# ------------------------------------------------------------------------------------------ threads


def test_thread_count_of_torch_reaches_the_library_and_torch_still_works(package):
    lib = extension.load(cpu_library())
    a = torch.randn(128, 128)
    expected = a @ a
    before = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            size = c_int()
            lib.team(extension.threads(), ctypes.addressof(size))
            assert size.value == count
            x = torch.randn(100_000)
            torch.testing.assert_close(axpy(lib, x, x, 1.0), 2 * x)
            torch.testing.assert_close(a @ a, expected)
    finally:
        torch.set_num_threads(before)


def test_library_loaded_before_torch_coexists_with_it(package):
    program = """
    lib = extension.load(AXPY)
    lib.team(2, ctypes.addressof(ctypes.c_int()))
    import torch
    x = torch.randn(200, 200)
    for _ in range(20):
        y = x @ x
        out = torch.zeros(200, 200)
        pointers = [extension.pointer(tensor, torch.float32) for tensor in (y, out)]
        lib.axpy(*pointers, 1.0, y.numel(), 2)
        torch.testing.assert_close(out, y)
    print("fine")
    """
    assert finish(start(package, program))[0] == "fine"


# ------------------------------------------------------------------------------------------ tensors


def test_pointer_is_the_address_and_keeps_the_tensor_alive():
    tensor = torch.arange(6, dtype=torch.float32)
    assert extension.pointer(tensor, torch.float32).value == tensor.data_ptr()
    held = extension.pointer(torch.full((1000,), 7.0), torch.float32)
    assert held.value is not None
    torch.zeros(1000)
    assert ctypes.c_float.from_address(held.value).value == 7.0


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: [1.0], TypeError, "w must be a tensor, got list"),
        (
            lambda: torch.zeros(2, 3, dtype=torch.float64),
            TypeError,
            r"dtype torch.float32, got torch.float64",
        ),
        (lambda: torch.zeros(2, 3, device="meta"), ValueError, r"on device cpu, got meta"),
        (lambda: torch.zeros(3, 2), ValueError, r"shape \(2, any\), got \(3, 2\)"),
        (lambda: torch.zeros(3, 2).T, ValueError, r"contiguous, got shape \(2, 3\) with strides \(1, 2\)"),
        (lambda: torch.zeros(2, 3).to_sparse(), ValueError, "plain dense tensor"),
        (lambda: torch.zeros(2, 3, dtype=torch.complex64).conj().imag, ValueError, "resolve_neg"),
    ],
)
def test_pointer_refuses_what_native_code_would_misread(make, error, message):
    with pytest.raises(error, match=message):
        extension.pointer(make(), torch.float32, shape=(2, None), name="w")


def test_pointer_takes_strided_tensors_and_several_dtypes_on_request():
    transposed = torch.zeros(3, 2, dtype=torch.bfloat16).T
    pointer = extension.pointer(transposed, (torch.float32, torch.bfloat16), contiguous=False)
    assert pointer.value == transposed.data_ptr()


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
def test_pointer_of_a_fake_tensor_says_where_native_code_belongs():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        tensor = torch.zeros(3)
    with pytest.raises(ValueError, match="custom_op"):
        extension.pointer(tensor, torch.float32)
    with pytest.raises(ValueError, match="custom_op"):
        torch.vmap(lambda row: extension.pointer(row, torch.float32))(torch.zeros(2, 3))


def test_cuda_stream_refuses_other_devices():
    with (
        pytest.raises(ValueError, match="needs a CUDA device, got cpu"),
        extension.cuda_stream(torch.device("cpu")),
    ):
        pass


def test_native_function_as_custom_operator_passes_opcheck(package):
    lib = extension.load(cpu_library())

    @torch.library.custom_op("graftwork_core_test::axpy", mutates_args=())
    def operator(x: torch.Tensor, y: torch.Tensor, a: float) -> torch.Tensor:
        return axpy(lib, x.contiguous(), y.contiguous(), a)

    operator.register_fake(lambda x, y, a: torch.empty_like(y, memory_format=torch.contiguous_format))
    operator.register_autograd(
        lambda ctx, grad: (ctx.a * grad, grad, None),
        setup_context=lambda ctx, inputs, output: setattr(ctx, "a", inputs[2]),
    )
    x, y = torch.randn(4, 5, requires_grad=True), torch.randn(4, 5, requires_grad=True)
    torch.library.opcheck(operator, (x, y, 1.5))
    torch.library.opcheck(operator, (torch.randn(5, 4).T, torch.randn(4, 5), 1.5))
    got = torch.autograd.grad(operator(x, y, 1.5).square().sum(), (x, y))
    want = torch.autograd.grad((1.5 * x + y).square().sum(), (x, y))
    torch.testing.assert_close(got, want)


# ------------------------------------------------------------------------------------------ CUDA


def devices(*capabilities: int, driver: tuple[int, int] = (99, 0)) -> machine.CudaDevices:
    return machine.CudaDevices(capabilities=capabilities, driver=driver)


@needs_nvcc
def test_cuda_source_compiles_without_a_device_and_shares_the_cpus_header(package):
    path = extension.build(cuda_library())
    lib = loader.Native(cuda_library(), path, "compiled")  # cudart is inside: it loads anywhere
    assert lib.axpy(None, None, 1.0, 0, None) == 0
    if machine.cuda_devices().problem:
        with pytest.raises(extension.NativeError, match="cudaGetLastError"):
            lib.axpy(None, None, 1.0, 1, None)


FAKE_DRIVER = """
extern "C" {
int cuInit(unsigned) { return INIT; }
int cuDriverGetVersion(int *version) { *version = 12040; return 0; }
int cuDeviceGetCount(int *count) { *count = COUNT; return 0; }
int cuDeviceGet(int *device, int index) { *device = 40 + index; return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
  // device 40 has compute capability 9.0, the others 8.6
  *value = attribute == 75 ? (device == 40 ? 9 : 8) : attribute == 76 ? (device == 40 ? 0 : 6) : -1;
  return 0;
}
}
"""


@pytest.mark.parametrize(
    ("init", "count", "expected"),
    [
        (0, 3, machine.CudaDevices(capabilities=(86, 90), driver=(12, 4))),
        (0, 0, "reports no device"),
        (100, 0, "reports no device"),
        (999, 1, "cuInit returned 999"),
    ],
)
def test_devices_are_what_the_driver_says(package, monkeypatch, init, count, expected):
    (package / "csrc" / "driver.cpp").write_text(FAKE_DRIVER)
    flags = [f"-DINIT={init}", f"-DCOUNT={count}"]
    path = extension.build(cpu_library(name="driver", sources=["csrc/driver.cpp"], flags=flags))
    driver = ctypes.CDLL(str(path))
    monkeypatch.setattr(machine.ctypes, "CDLL", lambda name: driver)
    found = machine.cuda_devices.__wrapped__()
    assert expected in found.problem if isinstance(expected, str) else found == expected


@needs_nvcc
def test_cuda_prebuilt_holds_the_usual_devices(package):
    (path,) = extension.prebuild(cuda_library())
    assert ".sm80.sm90.ptx90-" in path.name and path.is_file()


@needs_nvcc
def test_cuda_targets_follow_the_devices_and_the_compiler():
    compiler = toolchain.nvcc()
    assert toolchain.cuda_targets(compiler, devices()) == ("sm80", "sm90", "ptx90")
    assert toolchain.cuda_targets(compiler, devices(80, 90)) == ("sm80", "sm90")
    future = toolchain.cuda_targets(compiler, devices(80, 999))
    assert future[0] == "sm80" and future[1].startswith("ptx")
    with pytest.raises(extension.Unavailable, match=r"no longer compiles for compute capability 2\.0"):
        toolchain.cuda_targets(compiler, devices(20))


@needs_nvcc
def test_driver_older_than_the_toolkit_is_explained_before_compiling(package, monkeypatch):
    monkeypatch.setattr(machine, "cuda_devices", lambda: devices(80, driver=(9, 2)))
    with pytest.raises(extension.Unavailable, match=r"the driver supports CUDA 9\.2 only") as caught:
        extension.load(cuda_library())
    assert "Update the NVIDIA driver" in caught.value.fix


def test_cuda_library_without_a_device_is_explained(package, monkeypatch):
    none = machine.CudaDevices(problem="no NVIDIA driver is installed")
    monkeypatch.setattr(machine, "cuda_devices", lambda: none)
    with pytest.raises(extension.Unavailable, match="needs a CUDA device: no NVIDIA driver") as caught:
        extension.load(cuda_library())
    assert "CPU" in caught.value.fix
    assert extension.status(cuda_library()).state == "unavailable"


def test_missing_nvcc_is_explained(package, monkeypatch, tmp_path):
    cxx = toolchain.cxx()
    monkeypatch.setattr(toolchain, "cxx", lambda: cxx)
    monkeypatch.setattr(toolchain.shutil, "which", lambda *args, **kwargs: None)
    with pytest.raises(extension.Unavailable, match=r"no CUDA compiler was found .*CUDA_HOME") as caught:
        extension.build(cuda_library())
    assert "CUDA_HOME" in caught.value.fix


@pytest.mark.parametrize(
    ("tag", "present", "runs_there"),
    [
        ("cuda12.sm80.sm90", devices(80), True),
        ("cuda12.sm80.sm90", devices(86), True),  # same generation, later
        ("cuda12.sm86", devices(80), False),
        ("cuda12.sm80", devices(90), False),
        ("cuda12.sm80.ptx80", devices(90), True),
        ("cuda12.sm80.ptx90", devices(75), False),
        ("cuda12.sm80", devices(80, 90), False),  # all devices or none
        ("cuda13.sm80", devices(80, driver=(12, 4)), False),
    ],
)
def test_prebuilt_cuda_library_is_chosen_only_for_devices_it_covers(
    package, monkeypatch, tag, present, runs_there
):
    library = cuda_library()
    path = package / "_native" / prebuilt.file_name(library, tag)
    path.parent.mkdir()
    path.write_bytes(b"")
    monkeypatch.setattr(machine, "cuda_devices", lambda: present)
    assert prebuilt.find(library) == (path if runs_there else None)


@pytest.mark.gpu
@needs_nvcc
def test_cuda_function_agrees_with_torch_on_torchs_own_stream(package):
    lib = extension.load(cuda_library())
    device = torch.device("cuda", torch.cuda.device_count() - 1)
    side = torch.cuda.Stream(device)
    with torch.cuda.stream(side):
        x = torch.randn(1_000_003, device=device)
        y = torch.randn(1_000_003, device=device)
        expected = 2.5 * x + y
        with extension.cuda_stream(device) as stream:
            assert stream.value == side.cuda_stream
            lib.axpy(
                extension.pointer(x, torch.float32, device=device),
                extension.pointer(y, torch.float32, device=device),
                2.5,
                x.numel(),
                stream,
            )
        torch.testing.assert_close(y, expected)
