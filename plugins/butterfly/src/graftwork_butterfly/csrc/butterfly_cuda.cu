// Fused butterfly transform on CUDA: a block keeps a tile of pixels, all channels of it, in shared memory.
//
// Stages run in place: a butterfly reads its radix values before it writes them, and no other butterfly touches
// them. The backward pass computes the input of every stage again from the tile's input. Weight gradients are
// summed per block in global memory and added up by the caller, so results do not depend on timing.
#include <cuda_runtime.h>

#include "butterfly.h"

namespace {

using namespace bft;

constexpr int kThreads = 256;
constexpr int kMostPixels = 32;

// Where the values of a tile lie in a tensor.
struct Shape {
  int64_t images, pixels;  // channels-last tensors are one long image
  int layout;
};

struct Tile {
  int64_t image, begin;
  int count, width;  // valid pixels, and pixels in shared memory
};

__device__ Tile tile_at(const Shape& shape, int64_t index, int width) {
  const int64_t per_image = (shape.pixels + width - 1) / width;
  const int64_t begin = index % per_image * width;
  const int64_t left = shape.pixels - begin;
  return {index / per_image, begin, (int)(left < width ? left : width), width};
}

__device__ int64_t offset(const Shape& shape, const Tile& tile, int channels, int c, int p) {
  if (shape.layout == kChannelsLast) return (tile.begin + p) * channels + c;
  return (tile.image * channels + c) * shape.pixels + tile.begin + p;
}

// Calls f(channel, pixel) for a whole tile, neighbouring threads at neighbouring addresses of the tensor.
template <class F>
__device__ void for_tile(const Shape& shape, int channels, int width, F f) {
  for (int k = threadIdx.x; k < channels * width; k += blockDim.x) {
    if (shape.layout == kChannelsLast) f(k % channels, k / channels);
    else f(k / width, k % width);
  }
}

// Channels [begin, begin + count) into rows of shared memory, zeros below and beside them.
template <class T>
__device__ void load(const T* x, const Shape& shape, const Tile& tile, int channels, int begin, int count, int padded,
                     float* rows) {
  for_tile(shape, padded, tile.width, [&](int c, int p) {
    const bool valid = c < count && p < tile.count;
    rows[c * tile.width + p] = valid ? to_float(x[offset(shape, tile, channels, begin + c, p)]) : 0.f;
  });
  __syncthreads();
}

template <class T>
__device__ void store(T* y, const Shape& shape, const Tile& tile, int channels, int begin, int count,
                      const float* rows) {
  for_tile(shape, count, tile.width, [&](int c, int p) {
    if (p < tile.count) from_float(&y[offset(shape, tile, channels, begin + c, p)], rows[c * tile.width + p]);
  });
  __syncthreads();
}

// rows = T rows, or T transposed.
template <int R, bool kTransposed>
__device__ void mix(float* rows, const float* w, int groups, int stride, int width) {
  const int to_next = stride * R;
  for (int k = threadIdx.x; k < groups * stride * width; k += blockDim.x) {
    const int pixel = k % width, p = k / width % stride, g = k / width / stride;
    float* at = rows + (g * R * stride + p) * width + pixel;
    const float* wp = w + ((int64_t)g * R * stride + p) * R;
    float x[R];
    for (int i = 0; i < R; ++i) x[i] = at[i * stride * width];
    for (int o = 0; o < R; ++o) {
      float y = 0;
      for (int i = 0; i < R; ++i) y += (kTransposed ? wp[i * to_next + o] : wp[o * to_next + i]) * x[i];
      at[o * stride * width] = y;
    }
  }
  __syncthreads();
}

template <bool kTransposed>
__device__ void mix(int radix, float* rows, const float* w, int groups, int stride, int width) {
  switch (radix) {
    case 2: return mix<2, kTransposed>(rows, w, groups, stride, width);
    case 3: return mix<3, kTransposed>(rows, w, groups, stride, width);
    case 4: return mix<4, kTransposed>(rows, w, groups, stride, width);
    case 5: return mix<5, kTransposed>(rows, w, groups, stride, width);
    case 6: return mix<6, kTransposed>(rows, w, groups, stride, width);
    case 7: return mix<7, kTransposed>(rows, w, groups, stride, width);
    case 8: return mix<8, kTransposed>(rows, w, groups, stride, width);
  }
}

// gw[g, o, p, i] += sum over pixels of gy[o] * x[i]; every weight belongs to one thread of the block.
__device__ void weight_gradient(const float* x, const float* gy, float* gw, int radix, int groups, int stride,
                                int width) {
  const int weights = groups * radix * stride * radix;
  for (int k = threadIdx.x; k < weights; k += blockDim.x) {
    const int i = k % radix, p = k / radix % stride, o = k / radix / stride % radix, g = k / radix / stride / radix;
    const int base = g * radix * stride + p;
    const float* a = gy + (base + o * stride) * width;
    const float* b = x + (base + i * stride) * width;
    float sum = 0;
    for (int pixel = 0; pixel < width; ++pixel) sum += a[pixel] * b[pixel];
    gw[k] += sum;
  }
  __syncthreads();
}

// The first `stages` stages of a square, in place.
__device__ void run_stages(const Plan& plan, const float* w, float* rows, int stages, int width) {
  int groups = 1, stride = plan.padded;
  for (int t = 0; t < stages; ++t) {
    const int r = plan.radix[t];
    stride /= r;
    mix<false>(r, rows, w, groups, stride, width);
    w += (int64_t)r * plan.padded;
    groups *= r;
  }
}

// rows += channels of x.
template <class T>
__device__ void add(const T* x, const Shape& shape, const Tile& tile, int channels, int begin, int count, float* rows) {
  for_tile(shape, count, tile.width, [&](int c, int p) {
    if (p < tile.count) rows[c * tile.width + p] += to_float(x[offset(shape, tile, channels, begin + c, p)]);
  });
  __syncthreads();
}

// sum = rows, or sum += rows.
__device__ void collect(float* sum, const float* rows, int size, bool first) {
  for (int k = threadIdx.x; k < size; k += blockDim.x) sum[k] = first ? rows[k] : sum[k] + rows[k];
  __syncthreads();
}

template <class T>
__global__ void forward_kernel(Plan plan, const T* x, const float* w, T* y, Shape shape, int width, int64_t tiles) {
  extern __shared__ float shared[];
  const int size = plan.padded * width;
  float *rows = shared, *sum = shared + size;
  const bool sums = sums_copies(plan);
  for (int64_t index = blockIdx.x; index < tiles; index += gridDim.x) {
    const Tile tile = tile_at(shape, index, width);
    for (int c = 0; c < plan.copies; ++c) {
      const Piece part = piece(plan, c);
      load(x, shape, tile, plan.in_channels, part.in_begin, part.in_count, plan.padded, rows);
      run_stages(plan, w + c * weights_per_copy(plan), rows, plan.stages, width);
      if (plan.residual) {
        // rows that are written and have an input of their own
        const int count = min_int(part.in_count, part.out_count);
        add(x, shape, tile, plan.in_channels, part.in_begin, count, rows);
      }
      if (sums) collect(sum, rows, size, c == 0);
      else store(y, shape, tile, plan.out_channels, part.out_begin, part.out_count, rows);
    }
    if (sums) store(y, shape, tile, plan.out_channels, 0, plan.order, sum);
  }
}

template <class T>
__global__ void backward_kernel(Plan plan, const T* x, const float* w, const T* gy, T* gx, float* gw, Shape shape,
                                int width, int64_t tiles) {
  extern __shared__ float shared[];
  const int size = plan.padded * width;
  float *rows = shared, *grad = shared + size, *sum = shared + 2 * size;
  const bool sums = sums_copies(plan);
  const int64_t per_copy = weights_per_copy(plan);
  if (gw) gw += blockIdx.x * per_copy * plan.copies;
  for (int64_t index = blockIdx.x; index < tiles; index += gridDim.x) {
    const Tile tile = tile_at(shape, index, width);
    for (int c = 0; c < plan.copies; ++c) {
      const Piece part = piece(plan, c);
      const float* wc = w + c * per_copy;
      load(gy, shape, tile, plan.out_channels, part.out_begin, part.out_count, plan.padded, grad);
      int64_t at = per_copy;
      int groups = plan.padded, stride = 1;
      for (int t = plan.stages - 1; t >= 0; --t) {
        const int r = plan.radix[t];
        at -= (int64_t)r * plan.padded;
        groups /= r;
        if (gw) {
          load(x, shape, tile, plan.in_channels, part.in_begin, part.in_count, plan.padded, rows);
          run_stages(plan, wc, rows, t, width);
          weight_gradient(rows, grad, gw + c * per_copy + at, r, groups, stride, width);
        }
        mix<true>(r, grad, wc + at, groups, stride, width);
        stride *= r;
      }
      if (plan.residual) {
        const int count = min_int(part.in_count, part.out_count);
        add(gy, shape, tile, plan.out_channels, part.out_begin, count, grad);
      }
      if (sums) store(gx, shape, tile, plan.in_channels, part.in_begin, part.in_count, grad);
      else collect(sum, grad, size, c == 0);
    }
    if (!sums) store(gx, shape, tile, plan.in_channels, 0, plan.order, sum);
  }
}

struct Launch {
  int width;  // pixels per tile; 0 if not even one fits
  int64_t tiles;
  size_t bytes;
};

// The widest tile that leaves room for two blocks on a multiprocessor, else for one.
int plan_launch(const Plan& plan, const Shape& shape, int buffers, Launch* launch) {
  int device = 0, most = 0;
  GRAFTWORK_CUDA(cudaGetDevice(&device));
  GRAFTWORK_CUDA(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  const size_t column = sizeof(float) * plan.padded * buffers;
  int width = kMostPixels;
  while (width > 1 && (column * width > (size_t)most / 2 || width / 2 >= shape.pixels)) width /= 2;
  if (column * width > (size_t)most)
    return graftwork_fail("%d channels do not fit into the %d bytes of shared memory of this device", plan.padded, most);
  *launch = {width, shape.images * ((shape.pixels + width - 1) / width), column * width};
  return 0;
}

template <class Kernel, class... Arguments>
int run(Kernel kernel, const Launch& launch, int64_t blocks, void* stream, Arguments... arguments) {
  GRAFTWORK_CUDA(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                      cudaFuncAttributeMaxDynamicSharedMemorySize, (int)launch.bytes));
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3((unsigned)blocks);
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = launch.bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  GRAFTWORK_CUDA(cudaLaunchKernelEx(&config, kernel, arguments...));
  return 0;
}

template <class T>
int forward(const Plan& plan, const void* x, const float* w, void* y, const Shape& shape, void* stream) {
  Launch launch;
  if (int failed = plan_launch(plan, shape, sums_copies(plan) ? 2 : 1, &launch)) return failed;
  const int64_t blocks = launch.tiles < (1 << 20) ? launch.tiles : (1 << 20);
  return run(forward_kernel<T>, launch, blocks, stream, plan, static_cast<const T*>(x), w, static_cast<T*>(y), shape,
             launch.width, launch.tiles);
}

template <class T>
int backward(const Plan& plan, const void* x, const float* w, const void* gy, void* gx, float* gw, int blocks,
             const Shape& shape, void* stream) {
  Launch launch;
  if (int failed = plan_launch(plan, shape, sums_copies(plan) ? 2 : 3, &launch)) return failed;
  return run(backward_kernel<T>, launch, blocks, stream, plan, static_cast<const T*>(x), w, static_cast<const T*>(gy),
             static_cast<T*>(gx), gw, shape, launch.width, launch.tiles);
}

Shape shape_of(int64_t images, int64_t pixels, int layout) {
  if (layout == kChannelsLast) return {1, images * pixels, layout};
  return {images, pixels, layout};
}

}  // namespace

// As bft_forward_cpu, with a CUDA stream in place of the thread count; all pointers are to device memory but `plan`.
GRAFTWORK_API int bft_forward_cuda(const void* x, const float* w, void* y, int64_t images, int64_t pixels,
                                   const int32_t* plan_values, int dtype, int layout, void* stream) {
  Plan plan;
  if (!read_plan(plan_values, &plan)) return graftwork_fail("the plan's numbers contradict each other");
  const auto run = dtype == kBFloat16 ? forward<uint16_t> : forward<float>;
  return run(plan, x, w, y, shape_of(images, pixels, layout), stream);
}

// `gw` holds one set of weight gradients for each of `blocks` blocks, zero at first, to be summed by the caller;
// null leaves the weights' gradient out.
GRAFTWORK_API int bft_backward_cuda(const void* x, const float* w, const void* gy, void* gx, float* gw, int blocks,
                                    int64_t images, int64_t pixels, const int32_t* plan_values, int dtype, int layout,
                                    void* stream) {
  Plan plan;
  if (!read_plan(plan_values, &plan)) return graftwork_fail("the plan's numbers contradict each other");
  const auto run = dtype == kBFloat16 ? backward<uint16_t> : backward<float>;
  return run(plan, x, w, gy, gx, gw, blocks, shape_of(images, pixels, layout), stream);
}
