// What the kernels need of CUDA: scratch memory in stream order, sorting, sums over a warp.
#pragma once

#include <cstdint>
#include <vector>

#if defined(FOAM_EMULATE_CUDA)
#include "emulated_cuda.h"
#else
#include <cuda_runtime.h>

#include <cub/device/device_radix_sort.cuh>
#include <cub/device/device_scan.cuh>
#define FOAM_LAUNCH(kernel, blocks, threads, stream, ...) \
  kernel<<<static_cast<unsigned>(blocks), threads, 0, stream>>>(__VA_ARGS__)
#endif

#include "math/lanes.h"

// Leaves the calling function, which returns int, with an error code and message.
#define FOAM_TRY(call)               \
  do {                               \
    if ((call) != 0) return 1;       \
  } while (0)

namespace foam {

constexpr unsigned kWholeWarp = 0xffffffffu;
constexpr int kWarp = 32;
constexpr int kBlockThreads = 128;

inline int64_t blocks_for(int64_t threads) { return (threads + kBlockThreads - 1) / kBlockThreads; }

// Memory that is given back, in the order of the stream, when the object goes.
class Scratch {
 public:
  explicit Scratch(cudaStream_t stream) : stream_(stream) {}
  ~Scratch() {
    for (void *block : blocks_) cudaFreeAsync(block, stream_);
  }
  Scratch(const Scratch &) = delete;
  Scratch &operator=(const Scratch &) = delete;

  template <class T> int take(T *&pointer, int64_t count) {
    void *block = nullptr;
    GRAFTWORK_CUDA(cudaMallocAsync(&block, sizeof(T) * static_cast<size_t>(count > 0 ? count : 1), stream_));
    blocks_.push_back(block);
    pointer = static_cast<T *>(block);
    return 0;
  }
  template <class T> int take_zero(T *&pointer, int64_t count) {
    FOAM_TRY(take(pointer, count));
    GRAFTWORK_CUDA(cudaMemsetAsync(pointer, 0, sizeof(T) * static_cast<size_t>(count), stream_));
    return 0;
  }
  cudaStream_t stream() const { return stream_; }

 private:
  cudaStream_t stream_;
  std::vector<void *> blocks_;
};

// Keeps freed scratch memory in the device's pool from one frame to the next.
inline int keep_pool() {
  int device = 0;
  cudaMemPool_t pool;
  uint64_t most = UINT64_MAX;
  GRAFTWORK_CUDA(cudaGetDevice(&device));
  GRAFTWORK_CUDA(cudaDeviceGetDefaultMemPool(&pool, device));
  GRAFTWORK_CUDA(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &most));
  return 0;
}

// Stable sort by the lowest `bits` bits; the results replace the pointers.
inline int sort_pairs(Scratch &scratch, uint32_t *&keys, int32_t *&values, int64_t count, int bits) {
  uint32_t *other_keys;
  int32_t *other_values;
  FOAM_TRY(scratch.take(other_keys, count));
  FOAM_TRY(scratch.take(other_values, count));
  cub::DoubleBuffer<uint32_t> key_buffer(keys, other_keys);
  cub::DoubleBuffer<int32_t> value_buffer(values, other_values);
  size_t size = 0;
  GRAFTWORK_CUDA(cub::DeviceRadixSort::SortPairs(nullptr, size, key_buffer, value_buffer, count, 0, bits,
                                                 scratch.stream()));
  uint8_t *temporary;
  FOAM_TRY(scratch.take(temporary, static_cast<int64_t>(size)));
  GRAFTWORK_CUDA(cub::DeviceRadixSort::SortPairs(temporary, size, key_buffer, value_buffer, count, 0, bits,
                                                 scratch.stream()));
  keys = key_buffer.Current();
  values = value_buffer.Current();
  return 0;
}

template <class From, class To>
inline int exclusive_sum(Scratch &scratch, const From *from, To *to, int64_t count) {
  size_t size = 0;
  GRAFTWORK_CUDA(cub::DeviceScan::ExclusiveSum(nullptr, size, from, to, count, scratch.stream()));
  uint8_t *temporary;
  FOAM_TRY(scratch.take(temporary, static_cast<int64_t>(size)));
  GRAFTWORK_CUDA(cub::DeviceScan::ExclusiveSum(temporary, size, from, to, count, scratch.stream()));
  return 0;
}

__device__ inline bool warp_any(bool value) { return __any_sync(kWholeWarp, value) != 0; }

__device__ inline float warp_sum(float value) {
  for (int step = kWarp / 2; step > 0; step /= 2) value += __shfl_xor_sync(kWholeWarp, value, step);
  return value;
}
__device__ inline float warp_least(float value) {
  for (int step = kWarp / 2; step > 0; step /= 2) {
    value = minimum(value, __shfl_xor_sync(kWholeWarp, value, step));
  }
  return value;
}

// Sums of 32 values over the warp: lane i returns that of values[i], after 31 exchanges instead of 160.
__device__ inline float warp_sum_each(float *values, int lane) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) {
    const bool upper = (lane & step) != 0;
#pragma unroll
    for (int i = 0; i < step; ++i) {
      const float keep = upper ? values[i + step] : values[i];
      const float give = upper ? values[i] : values[i + step];
      values[i] = keep + __shfl_xor_sync(kWholeWarp, give, step);
    }
  }
  return values[0];
}

}  // namespace foam
