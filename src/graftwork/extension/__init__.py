"""Native libraries behind a plain C ABI: prebuilt, compiled at first use, or an explained refusal.

A plugin describes a library once, at no cost, and loads it when it is first needed::

    from ctypes import c_float, c_int, c_int64, c_void_p

    from graftwork import extension

    AXPY = extension.Library(
        name="axpy_cpu",
        package="graftwork_axpy",
        sources=["csrc/axpy.cpp"],
        functions={"axpy": (c_void_p, c_void_p, c_float, c_int64, c_int)},
    )


    def axpy(x, y, scale):
        lib = extension.load(AXPY)  # raises extension.Unavailable with a reason and a fix
        lib.axpy(
            extension.pointer(x, torch.float32, name="x"),
            extension.pointer(y, torch.float32, shape=x.shape, name="y"),
            scale,
            x.numel(),
            extension.threads(),
        )

The sources export functions that return 0, or an error code beside a message (``graftwork.h`` is on the
include path)::

    #include "graftwork.h"

    GRAFTWORK_API int axpy(const float *x, float *y, float a, int64_t n, int threads) {
      if (threads < 1) return graftwork_fail("threads must be positive, got %d", threads);
    #pragma omp parallel for num_threads(threads)
      for (int64_t i = 0; i < n; ++i) y[i] += a * x[i];
      return 0;
    }

They include no torch header, so a build takes seconds and serves every version of torch.
``GRAFTWORK_EXTENSION`` chooses for debugging: ``reference`` (no native code), ``jit`` (compile, ignore what
is prebuilt and retry what failed), ``prebuilt`` (never compile). Builds live below ``$GRAFTWORK_CACHE`` or
the user's cache folder.
"""

from __future__ import annotations

from graftwork.extension.library import Library, NativeError, Unavailable
from graftwork.extension.loader import Native, Status, build, load, status
from graftwork.extension.prebuilt import prebuild
from graftwork.extension.tensors import cuda_stream, pointer, threads

__all__ = [
    "Library",
    "Native",
    "NativeError",
    "Status",
    "Unavailable",
    "build",
    "cuda_stream",
    "load",
    "pointer",
    "prebuild",
    "status",
    "threads",
]
