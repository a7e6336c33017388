// A stand-in for CUDA's header that runs kernels on the host: blocks one after the other, the threads of a block as
// system threads with a real barrier. It proves indexing and synchronisation of a kernel where there is no device.
#pragma once
#include <barrier>
#include <cstddef>
#include <memory>
#include <thread>
#include <vector>

#define __host__
#define __device__
#define __global__
#define __forceinline__ inline
#define __shared__

struct dim3 {
  unsigned x;
  dim3(unsigned n = 1) : x(n) {}
};

constexpr unsigned kHostThreads = 5;  // not a divisor of anything
thread_local inline dim3 threadIdx, blockIdx;
inline dim3 blockDim(kHostThreads), gridDim;
inline std::unique_ptr<std::barrier<>> host_barrier;
inline void __syncthreads() { host_barrier->arrive_and_wait(); }

typedef int cudaError_t;
typedef void* cudaStream_t;
constexpr int cudaSuccess = 0, cudaDevAttrMaxSharedMemoryPerBlockOptin = 0;
constexpr int cudaFuncAttributeMaxDynamicSharedMemorySize = 0;
constexpr int kSharedBytes = 64 << 10;
namespace {
float shared[kSharedBytes / 4];
}

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
};

inline const char* cudaGetErrorString(cudaError_t) { return "none"; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0; }
inline cudaError_t cudaDeviceGetAttribute(int* value, int, int) {
  *value = kSharedBytes;
  return 0;
}
inline cudaError_t cudaFuncSetAttribute(const void*, int, int bytes) { return bytes > kSharedBytes; }

template <class Kernel, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, Kernel kernel, Arguments... arguments) {
  gridDim = config->gridDim;
  for (unsigned block = 0; block < gridDim.x; ++block) {
    for (float& value : shared) value = __builtin_nanf("");  // as undefined as real shared memory
    host_barrier = std::make_unique<std::barrier<>>(kHostThreads);
    std::vector<std::thread> threads;
    for (unsigned t = 0; t < kHostThreads; ++t)
      threads.emplace_back([=] {
        threadIdx = dim3(t), blockIdx = dim3(block);
        kernel(arguments...);
        host_barrier->arrive_and_drop();
      });
    for (auto& thread : threads) thread.join();
  }
  return 0;
}
