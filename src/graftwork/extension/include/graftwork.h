// The C side of graftwork.extension: exported functions, an error message, code shared by CPU and CUDA.
// Include it in the sources of a library; no torch header is needed.
#pragma once

#include <cstdarg>
#include <cstdio>

// Every exported function is `GRAFTWORK_API int name(...)` and returns 0, or graftwork_fail(...).
#if defined(_WIN32)
#define GRAFTWORK_API extern "C" __declspec(dllexport)
#else
#define GRAFTWORK_API extern "C" __attribute__((visibility("default")))
#endif

// Marks a function that both g++ and nvcc compile, so that one header holds the mathematics of both devices.
#if defined(__CUDACC__)
#define GRAFTWORK_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define GRAFTWORK_HOST_DEVICE inline
#endif

// `inline`, so that several sources of one library share the buffer; hidden, so that two libraries do not.
__attribute__((visibility("hidden"))) inline char *graftwork_message() {
  static thread_local char message[512] = "";
  return message;
}

// Text of the calling thread's last failure; read by Python when a function returns non-zero.
extern "C" __attribute__((weak, visibility("default"))) const char *graftwork_error() {
  return graftwork_message();
}

// Store a printf-style message and return the error code 1.
inline int graftwork_fail(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(graftwork_message(), 512, format, arguments);
  va_end(arguments);
  return 1;
}

#if defined(__CUDACC__)
// Leave the calling function with an error if a CUDA call fails: GRAFTWORK_CUDA(cudaGetLastError());
#define GRAFTWORK_CUDA(call)                                                                      \
  do {                                                                                            \
    const cudaError_t graftwork_status = (call);                                                  \
    if (graftwork_status != cudaSuccess)                                                          \
      return graftwork_fail("%s: %s", #call, cudaGetErrorString(graftwork_status));               \
  } while (0)
#endif
