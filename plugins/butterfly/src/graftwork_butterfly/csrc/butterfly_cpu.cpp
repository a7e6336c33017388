// Fused butterfly transform on the CPU: a tile of pixels stays in cache through all stages.
//
// SIMD lanes run over pixels, so a weight is one broadcast and no stage needs a shuffle. bfloat16 and channels-last
// tiles are converted on the way in and out; all arithmetic is float32. Threads share the tiles statically, so
// results do not depend on timing (weight gradients depend on the number of threads by rounding).
#if defined(_OPENMP)
#include <omp.h>
#endif

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "graftwork.h"
#include "stages.h"

namespace {

using namespace bft;

constexpr int64_t kTileBytes = 256 << 10;  // of one tile; a smaller one fetches the weights too often
constexpr int64_t kGrain = 100'000;        // multiplications worth a thread, forward

int thread_index() {
#if defined(_OPENMP)
  return omp_get_thread_num();
#else
  return 0;
#endif
}

// Memory of one thread, kept from call to call: a fresh allocation of this size would be page-faulted each time.
struct Arena {
  float* data = nullptr;
  int64_t size = 0;

  ~Arena() { std::free(data); }
  float* get(int64_t floats) {
    if (size < floats) {
      std::free(data);
      data = static_cast<float*>(std::aligned_alloc(64, ((size_t)floats * 4 + 63) / 64 * 64));
      size = data ? floats : 0;
    }
    return data;
  }
};
thread_local Arena tiles_arena, sums_arena;

// y (+)= B x (+ x) for one square.
template <int NV>
void square(const Plan& plan, const float* w, In x, Out y, bool add, float* work) {
  In src = x;
  int groups = 1, stride = plan.padded;
  for (int t = 0; t < plan.stages; ++t) {
    const int r = plan.radix[t];
    stride /= r;
    if (t + 1 == plan.stages) {
      mix<NV, false, true>(r, src, y, w, groups, stride, {plan.residual ? x : In{}, add});
    } else {
      mix<NV, false, false>(r, src, {work, NV * kLanes}, w, groups, stride);
      src = {work, NV * kLanes};
    }
    w += (int64_t)r * plan.padded;
    groups *= r;
  }
}

// gx (+)= B^T gy (+ gy) and, if gw is given, gw += the weights' gradient, for one square. `work` holds one tile
// for the running gradient and one for the input of every stage but the first; these are computed again.
template <int NV>
void square_backward(const Plan& plan, const float* w, In x, In gy, Out gx, bool add, float* gw, float* work) {
  const int width = NV * kLanes;
  const int64_t tile = (int64_t)plan.padded * width;
  int groups = 1, stride = plan.padded;
  In input[kMaxStages];
  input[0] = x;
  for (int t = 0; t < plan.stages; ++t) {
    const int r = plan.radix[t];
    stride /= r;
    if (t + 1 == plan.stages) break;
    if (gw) {
      float* next = work + (t + 1) * tile;
      mix<NV, false, false>(r, input[t], {next, width}, w, groups, stride);
      input[t + 1] = {next, width};
    }
    w += (int64_t)r * plan.padded;
    if (gw) gw += (int64_t)r * plan.padded;
    groups *= r;
  }
  In grad = gy;
  for (int t = plan.stages - 1;; --t) {
    const int r = plan.radix[t];
    if (gw) weight_gradient<NV>(r, input[t], grad, gw, groups, stride);
    if (t == 0) {
      mix<NV, true, true>(r, grad, gx, w, groups, stride, {plan.residual ? gy : In{}, add});
      return;
    }
    mix<NV, true, false>(r, grad, {work, width}, w, groups, stride);
    grad = {work, width};
    stride *= r;
    groups /= plan.radix[t - 1];
    w -= (int64_t)plan.radix[t - 1] * plan.padded;
    if (gw) gw -= (int64_t)plan.radix[t - 1] * plan.padded;
  }
}

template <class T>
struct Forward {
  const Plan& plan;
  const float* w;
  Tensor<const T> x;
  Tensor<T> y;

  int64_t scratch_tiles() const { return 3; }

  template <int NV>
  void run(Span s, float* work) const {
    const int width = NV * kLanes;
    const int64_t tile = (int64_t)plan.padded * width;
    float* in_tile = work + tile;
    float* out_tile = work + 2 * tile;
    const bool sums = sums_copies(plan);
    In rows{};
    for (int c = 0; c < plan.copies; ++c) {
      const Piece part = piece(plan, c);
      if (c == 0 || sums) rows = fetch(x, s, part.in_begin, part.in_count, plan.padded, width, in_tile);
      const Out out = target(y, s, part.out_begin, part.out_count, plan.padded, width, out_tile);
      square<NV>(plan, w + c * weights_per_copy(plan), rows, out, sums && c > 0, work);
      if (!sums || c + 1 == plan.copies) put(y, s, part.out_begin, part.out_count, width, out, out_tile);
    }
  }
};

template <class T>
struct Backward {
  const Plan& plan;
  const float* w;
  Tensor<const T> x, gy;
  Tensor<T> gx;
  float* gw;  // per thread (threads, weights), or null

  int64_t scratch_tiles() const { return plan.stages + 3; }

  template <int NV>
  void run(Span s, float* work) const {
    const int width = NV * kLanes;
    const int64_t tile = (int64_t)plan.padded * width;
    float* in_tile = work + plan.stages * tile;
    float* grad_tile = in_tile + tile;
    float* out_tile = grad_tile + tile;
    const int64_t size = weights_per_copy(plan);
    float* sums_to = gw ? gw + thread_index() * size * plan.copies : nullptr;
    const bool sums = sums_copies(plan);
    In rows{}, grad{};
    for (int c = 0; c < plan.copies; ++c) {
      const Piece part = piece(plan, c);
      if (c == 0 || sums) rows = fetch(x, s, part.in_begin, part.in_count, plan.padded, width, in_tile);
      if (c == 0 || !sums) grad = fetch(gy, s, part.out_begin, part.out_count, plan.padded, width, grad_tile);
      const Out out = target(gx, s, part.in_begin, part.in_count, plan.padded, width, out_tile);
      square_backward<NV>(plan, w + c * size, rows, grad, out, !sums && c > 0, gw ? sums_to + c * size : nullptr,
                          work);
      if (sums || c + 1 == plan.copies) put(gx, s, part.in_begin, part.in_count, width, out, out_tile);
    }
  }
};

// Pixels per tile, in vectors: as many as keep a tile of all channels in the first or second level of cache, but
// several tiles for each thread.
int vectors_per_tile(const Plan& plan, int64_t images, int64_t pixels, int threads) {
  int vectors = 4;
  while (vectors > 1 && (int64_t)plan.padded * vectors * kLanes * 4 > kTileBytes) vectors /= 2;
  while (vectors > 1 && threads > 1 && images * (pixels / (vectors * kLanes)) < 8 * threads) vectors /= 2;
  return vectors;
}

// Runs `job` over all tiles. False if a thread got no memory.
template <class Job>
bool for_tiles(const Job& job, const Plan& plan, int64_t images, int64_t pixels, int threads) {
  const int vectors = vectors_per_tile(plan, images, pixels, threads);
  const int width = vectors * kLanes;
  const int64_t per_image = (pixels + width - 1) / width, total = images * per_image;
  const int64_t floats = job.scratch_tiles() * plan.padded * width;
  bool served = true;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    float* work = tiles_arena.get(floats);
    if (!work) {
#pragma omp atomic write
      served = false;
    } else {
#pragma omp for schedule(static)
      for (int64_t i = 0; i < total; ++i) {
        const int64_t begin = i % per_image * width;
        const Span s{i / per_image, begin, (int)std::min<int64_t>(width, pixels - begin)};
        if (s.count <= kLanes) job.template run<1>(s, work);
        else if (s.count <= 2 * kLanes) job.template run<2>(s, work);
        else job.template run<4>(s, work);
      }
    }
  }
  return served;
}

// Threads worth waking for this much work.
int useful_threads(const Plan& plan, int64_t pixels, int threads, int64_t grain) {
  const int64_t work = weights_per_copy(plan) * plan.copies * pixels;
  return (int)std::max<int64_t>(1, std::min<int64_t>(threads, work / grain));
}

// Adds the threads' sums and brings them from (g, p, o, i) into the weights' order (g, o, p, i).
void gather_weight_gradient(const Plan& plan, const float* sums, int threads, float* gw) {
  const int64_t total = weights_per_copy(plan) * plan.copies;
  const float* from = sums;
  for (int c = 0; c < plan.copies; ++c) {
    int groups = 1, stride = plan.padded;
    for (int t = 0; t < plan.stages; ++t) {
      const int r = plan.radix[t];
      stride /= r;
      for (int g = 0; g < groups; ++g)
        for (int p = 0; p < stride; ++p)
          for (int o = 0; o < r; ++o)
            for (int i = 0; i < r; ++i, ++from) {
              float sum = 0;
              for (int k = 0; k < threads; ++k) sum += from[k * total];
              gw[(((int64_t)g * r + o) * stride + p) * r + i] = sum;
            }
      gw += (int64_t)r * plan.padded;
      groups *= r;
    }
  }
}

template <class T>
bool forward(const Plan& plan, const void* x, const float* w, void* y, int64_t images, int64_t pixels, Layout layout,
             int threads) {
  const Forward<T> job{plan,
                       w,
                       {static_cast<const T*>(x), plan.in_channels, pixels, layout},
                       {static_cast<T*>(y), plan.out_channels, pixels, layout}};
  return for_tiles(job, plan, images, pixels, useful_threads(plan, images * pixels, threads, kGrain));
}

template <class T>
bool backward(const Plan& plan, const void* x, const float* w, const void* gy, void* gx, float* gw, int64_t images,
              int64_t pixels, Layout layout, int threads) {
  threads = useful_threads(plan, images * pixels, threads, kGrain / 4);
  const int64_t total = weights_per_copy(plan) * plan.copies;
  float* sums = nullptr;
  if (gw) {
    sums = sums_arena.get(threads * total);
    if (!sums) return false;
    std::memset(sums, 0, sizeof(float) * threads * total);
  }
  const Backward<T> job{plan,
                        w,
                        {static_cast<const T*>(x), plan.in_channels, pixels, layout},
                        {static_cast<const T*>(gy), plan.out_channels, pixels, layout},
                        {static_cast<T*>(gx), plan.in_channels, pixels, layout},
                        sums};
  if (!for_tiles(job, plan, images, pixels, threads)) return false;
  if (gw) gather_weight_gradient(plan, sums, threads, gw);
  return true;
}

}  // namespace

// `plan` is what bft::read_plan reads, `dtype` a bft::Dtype, `layout` a bft::Layout; tensors are dense.
GRAFTWORK_API int bft_forward_cpu(const void* x, const float* w, void* y, int64_t images, int64_t pixels,
                                  const int32_t* plan_values, int dtype, int layout, int threads) {
  Plan plan;
  if (!read_plan(plan_values, &plan)) return graftwork_fail("the plan's numbers contradict each other");
  if (layout == kChannelsLast) pixels *= images, images = 1;
  const auto run = dtype == kBFloat16 ? forward<uint16_t> : forward<float>;
  if (!run(plan, x, w, y, images, pixels, static_cast<Layout>(layout), threads))
    return graftwork_fail("no memory for a tile of %d channels", plan.padded);
  return 0;
}

// `gw` (float32, like the weights) is overwritten; null leaves the weights' gradient out.
GRAFTWORK_API int bft_backward_cpu(const void* x, const float* w, const void* gy, void* gx, float* gw, int64_t images,
                                   int64_t pixels, const int32_t* plan_values, int dtype, int layout, int threads) {
  Plan plan;
  if (!read_plan(plan_values, &plan)) return graftwork_fail("the plan's numbers contradict each other");
  if (layout == kChannelsLast) pixels *= images, images = 1;
  const auto run = dtype == kBFloat16 ? backward<uint16_t> : backward<float>;
  if (!run(plan, x, w, gy, gx, gw, images, pixels, static_cast<Layout>(layout), threads))
    return graftwork_fail("no memory for a tile of %d channels", plan.padded);
  return 0;
}
