// CUDA on one CPU thread, enough to run the kernels of this plugin in tests: each warp is 32 fibres that meet at
// every warp-wide operation. Slow, and blind to races between warps; what it checks is the kernels' logic.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#define __global__
#define __device__
#define __host__
#define GRAFTWORK_CUDA(call)   \
  do {                         \
    if ((call) != 0) return 1; \
  } while (0)

typedef int cudaError_t;
typedef void *cudaStream_t;
typedef int cudaMemPool_t;
constexpr int cudaMemPoolAttrReleaseThreshold = 0;

inline int cudaGetLastError() { return 0; }
inline int cudaGetDevice(int *device) { return *device = 0; }
inline int cudaDeviceGetDefaultMemPool(int *pool, int) { return *pool = 0; }
inline int cudaMemPoolSetAttribute(int, int, void *) { return 0; }
inline int cudaMallocAsync(void **block, size_t size, cudaStream_t) {
  *block = std::malloc(size);
  std::memset(*block, 0xa5, size);  // nothing may rely on fresh memory
  return 0;
}
inline int cudaFreeAsync(void *block, cudaStream_t) {
  std::free(block);
  return 0;
}
inline int cudaMemsetAsync(void *block, int value, size_t size, cudaStream_t) {
  std::memset(block, value, size);
  return 0;
}

namespace cub {

template <class T> struct DoubleBuffer {
  DoubleBuffer(T *current, T *other) : current_(current), other_(other) {}
  T *Current() const { return current_; }
  T *current_, *other_;
};

struct DeviceRadixSort {
  static int SortPairs(void *temporary, size_t &size, DoubleBuffer<uint32_t> &keys,
                       DoubleBuffer<int32_t> &values, int64_t count, int begin, int end, cudaStream_t) {
    size = 1;
    if (!temporary) return 0;
    const uint64_t mask = (uint64_t{1} << end) - (uint64_t{1} << begin);
    std::vector<int64_t> order(count);
    for (int64_t i = 0; i < count; ++i) order[i] = i;
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
      return (keys.current_[a] & mask) < (keys.current_[b] & mask);
    });
    for (int64_t i = 0; i < count; ++i) {
      keys.other_[i] = keys.current_[order[i]];
      values.other_[i] = values.current_[order[i]];
    }
    std::swap(keys.current_, keys.other_);
    std::swap(values.current_, values.other_);
    return 0;
  }
};

struct DeviceScan {
  template <class From, class To>
  static int ExclusiveSum(void *temporary, size_t &size, const From *from, To *to, int64_t count,
                          cudaStream_t) {
    size = 1;
    if (!temporary) return 0;
    To sum = 0;
    for (int64_t i = 0; i < count; ++i) {
      const From value = from[i];
      to[i] = sum;
      sum += static_cast<To>(value);
    }
    return 0;
  }
};

}  // namespace cub

namespace emulated {

struct Index {
  unsigned x;
};
inline Index thread_index, block_index, block_size, grid_size;

// The fibres of one warp. Values of a warp-wide operation lie in one of two rows, so that a fast lane cannot
// overwrite what a slow one has still to read.
class Warp {
 public:
  static constexpr int kLanes = 32;
  static constexpr size_t kStack = 1 << 18;

  void run(unsigned first_thread, const std::function<void()> &body) {
    current = this;
    body_ = &body;
    for (int lane = 0; lane < kLanes; ++lane) {
      if (stacks_[lane].empty()) stacks_[lane].resize(kStack);
      getcontext(&fibres_[lane]);
      fibres_[lane].uc_stack.ss_sp = stacks_[lane].data();
      fibres_[lane].uc_stack.ss_size = kStack;
      fibres_[lane].uc_link = &scheduler_;
      makecontext(&fibres_[lane], reinterpret_cast<void (*)()>(&Warp::start), 0);
      done_[lane] = false;
    }
    round_ = 0;
    for (bool some = true; some;) {
      some = false;
      for (lane_ = 0; lane_ < kLanes; ++lane_) {
        if (done_[lane_]) continue;
        some = true;
        thread_index.x = first_thread + lane_;
        swapcontext(&scheduler_, &fibres_[lane_]);
      }
      ++round_;
    }
  }

  // Every lane leaves a value and goes on when all have.
  template <class T, class Read> auto exchange(T value, Read read) {
    static_assert(sizeof(T) <= 8, "values are words");
    const int row = round_ & 1, lane = lane_;
    std::memcpy(&slots_[row][lane], &value, sizeof value);
    present_[row][lane] = round_;
    const unsigned thread = thread_index.x;
    swapcontext(&fibres_[lane], &scheduler_);
    thread_index.x = thread;
    return read([&](int from) {
      T found{};
      if (done_before(row, from)) std::abort();  // a lane that has left cannot take part
      std::memcpy(&found, &slots_[row][from], sizeof found);
      return found;
    });
  }

  int lane() const { return lane_; }

  static inline Warp *current = nullptr;

 private:
  bool done_before(int row, int from) const { return present_[row][from] != round_ - 1; }
  static void start() {
    (*current->body_)();
    current->done_[current->lane_] = true;
  }

  const std::function<void()> *body_ = nullptr;
  ucontext_t scheduler_, fibres_[kLanes];
  std::vector<char> stacks_[kLanes];
  bool done_[kLanes];
  int64_t slots_[2][kLanes];
  int64_t present_[2][kLanes];
  int64_t round_ = 0;
  int lane_ = 0;
};

template <class Body> void launch(int64_t blocks, int threads, Body body) {
  static Warp warp;
  block_size.x = static_cast<unsigned>(threads);
  grid_size.x = static_cast<unsigned>(blocks);
  for (int64_t block = 0; block < blocks; ++block) {
    block_index.x = static_cast<unsigned>(block);
    for (int first = 0; first < threads; first += Warp::kLanes) warp.run(first, body);
  }
}

}  // namespace emulated

#define threadIdx emulated::thread_index
#define blockIdx emulated::block_index
#define blockDim emulated::block_size
#define gridDim emulated::grid_size
#define FOAM_LAUNCH(kernel, blocks, threads, stream, ...) \
  emulated::launch(blocks, threads, [=] { kernel(__VA_ARGS__); })

inline uint32_t __float_as_uint(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}
inline int __ffs(unsigned bits) { return __builtin_ffs(static_cast<int>(bits)); }
inline float atomicAdd(float *to, float value) {
  const float before = *to;
  *to += value;
  return before;
}
template <class T> inline T __shfl_sync(unsigned, T value, int from) {
  return emulated::Warp::current->exchange(value, [&](auto read) { return read(from); });
}
template <class T> inline T __shfl_xor_sync(unsigned, T value, int step) {
  auto *warp = emulated::Warp::current;
  const int lane = warp->lane();
  return warp->exchange(value, [&](auto read) { return read(lane ^ step); });
}
inline unsigned __ballot_sync(unsigned, bool value) {
  return emulated::Warp::current->exchange(value, [](auto read) {
    unsigned bits = 0;
    for (int lane = 0; lane < emulated::Warp::kLanes; ++lane) bits |= static_cast<unsigned>(read(lane)) << lane;
    return bits;
  });
}
inline int __any_sync(unsigned mask, bool value) { return __ballot_sync(mask, value) != 0; }
