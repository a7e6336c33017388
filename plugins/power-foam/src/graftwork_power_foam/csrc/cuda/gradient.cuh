// Gradients of a cell from the lanes of a warp: summed within the warp, then added once.
#pragma once

#include "abi.h"
#include "cuda/device.cuh"
#include "math/surface.h"

namespace foam {

// A row of a cell: centre and radius, then density, normal, across, down, heights, sites, colours; a multiple of
// 32 floats so that a warp adds it in whole lines.
__host__ __device__ inline int row_stride(int sites) { return (14 + 6 * sites + kWarp - 1) / kWarp * kWarp; }

template <int K> __device__ inline void clear(CellGradient<float, K> &gradient, int count) {
  gradient.center = gradient.normal = gradient.across = gradient.down = {0.0f, 0.0f, 0.0f};
  gradient.radius = gradient.density = 0.0f;
  for (int k = 0; k < SiteCount<K>::of(count); ++k) {
    gradient.heights[k] = gradient.sites[2 * k] = gradient.sites[2 * k + 1] = 0.0f;
    gradient.colors[k] = {0.0f, 0.0f, 0.0f};
  }
}

// Adds the sum over the lanes to the row of their common cell.
template <int K>
__device__ inline void add_sums(const CellGradient<float, K> &gradient, int count, float *row, int lane) {
  constexpr int kMost = (14 + 6 * SiteCount<K>::kBound + kWarp - 1) / kWarp * kWarp;
  float values[kMost];
  const int sites = SiteCount<K>::of(count);
  int n = 0;
  const auto put = [&](const Vec<float> &v) {
    values[n++] = v.x;
    values[n++] = v.y;
    values[n++] = v.z;
  };
  put(gradient.center);
  values[n++] = gradient.radius;
  values[n++] = gradient.density;
  put(gradient.normal);
  put(gradient.across);
  put(gradient.down);
#pragma unroll
  for (int k = 0; k < sites; ++k) values[n++] = gradient.heights[k];
#pragma unroll
  for (int k = 0; k < 2 * sites; ++k) values[n++] = gradient.sites[k];
#pragma unroll
  for (int k = 0; k < sites; ++k) put(gradient.colors[k]);
  for (; n % kWarp != 0; ++n) values[n] = 0.0f;
#pragma unroll
  for (int first = 0; first < (K == 0 ? n : kMost); first += kWarp) {
    const float sum = warp_sum_each(values + first, lane);
    if (sum != 0.0f) atomicAdd(row + first + lane, sum);
  }
}

// Gradients of one end of the spans of a cell. `here` marks the lanes that take part; all lanes must call.
template <int K>
__device__ inline void end_backward(const SceneArgs &scene, const Constants &constants, const Cell &cell,
                                    const Vec<float> &to_center, const Vec<float> &direction,
                                    const EndGradient<float> &end, int32_t by, bool here,
                                    CellGradient<float, K> &gradient, float *rows, int stride, int lane) {
  here = here && end.pull != 0.0f;
  if (here && by == kBall) ball_backward(constants, cell, to_center, direction, end, true, gradient);
  bool left = here && by >= 0;
  Vec<float> toward{};
  float pull = 0.0f;
  Vec<float> pulled{};
  if (left) {
    toward = load(scene.centers + 3 * static_cast<int64_t>(by)) - cell.center;
    wall_backward(constants, cell, toward, to_center, direction, end, true, gradient, pull, pulled);
    pulled = scale(pull, toward) - pulled;
  }
  // most lanes end on one of a few walls: one sum for each
  for (unsigned bits = __ballot_sync(kWholeWarp, left); bits != 0; bits = __ballot_sync(kWholeWarp, left)) {
    const int32_t other = __shfl_sync(kWholeWarp, by, __ffs(bits) - 1);
    const bool mine = left && by == other;
    const float x = warp_sum(mine ? pulled.x : 0.0f), y = warp_sum(mine ? pulled.y : 0.0f);
    const float z = warp_sum(mine ? pulled.z : 0.0f), sum = warp_sum(mine ? pull : 0.0f);
    if (lane < 4) {
      const float radius = -scene.radii[other] * sum;
      atomicAdd(rows + static_cast<int64_t>(other) * stride + lane,
                lane == 0 ? x : lane == 1 ? y : lane == 2 ? z : radius);
    }
    left = left && !mine;
  }
}

// Turns the summed row of every cell into gradients of its parameters, apart from axes and colours.
static __global__ void finish_cells(SceneArgs scene, const float *rows, int stride, SceneGradients gradients) {
  const int64_t cell = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (cell >= scene.cells) return;
  const float *row = rows + cell * stride;
  const int64_t sites = scene.sites;
  const float inverse = 1.0f / maximum(scene.radii[cell], kTiny);
  for (int i = 0; i < 3; ++i) gradients.centers[3 * cell + i] += row[i];
  gradients.radii[cell] += row[3];
  gradients.density[cell] += row[4];
  float quaternion[4];
  quaternion_backward(scene.quaternions + 4 * cell, load(row + 5), scale(inverse, load(row + 8)),
                      scale(inverse, load(row + 11)), quaternion);
  for (int i = 0; i < 4; ++i) gradients.quaternions[4 * cell + i] += quaternion[i];
  for (int64_t k = 0; k < sites; ++k) gradients.heights[cell * sites + k] += row[14 + k];
  for (int64_t k = 0; k < 2 * sites; ++k) gradients.site_positions[2 * cell * sites + k] += row[14 + sites + k];
}

// Reads the (L, 3) values of one site.
struct SiteValues {
  const float *at;
  __device__ Vec<float> operator()(int l) const { return load(at + 3 * l); }
};

__device__ inline Vec<float> toward_site(const SceneArgs &scene, const Cell &cell, int64_t id, int64_t k,
                                         const Vec<float> &origin) {
  const float *position = scene.site_positions + 2 * (id * scene.sites + k);
  const float square = cell.radius * cell.radius;
  Vec<float> gap = cell.center - origin;
  add(gap, scale(square * position[0], cell.across));
  add(gap, scale(square * position[1], cell.down));
  return scale(1.0f / maximum(sqrtf(dot(gap, gap)), 1e-12f), gap);
}

__device__ inline Vec<float> site_color(const SceneArgs &scene, const Cell &cell, int64_t id, int64_t k,
                                        const Vec<float> &origin) {
  const int64_t at = 3 * scene.axes * (id * scene.sites + k);
  return spherical_color<float>(static_cast<int>(scene.axes), toward_site(scene, cell, id, k, origin),
                                SiteValues{scene.site_axes + at}, SiteValues{scene.site_colors + at});
}

// Passes the gradient of one site's colour on to its axes and colours; several threads may share them (kAtomic).
template <bool kAtomic>
__device__ inline void site_color_backward(const SceneArgs &scene, const Cell &cell, int64_t id, int64_t k,
                                           const Vec<float> &origin, const Vec<float> &gradient,
                                           const SceneGradients &gradients) {
  const int64_t at = 3 * scene.axes * (id * scene.sites + k);
  const auto give = [](float *to, float value) {
    if (kAtomic) atomicAdd(to, value);
    else *to += value;
  };
  spherical_backward<float>(static_cast<int>(scene.axes), toward_site(scene, cell, id, k, origin), gradient,
                            SiteValues{scene.site_axes + at}, SiteValues{scene.site_colors + at},
                            [&](int l, const Vec<float> &to_axis, const Vec<float> &to_color) {
                              float *axis = gradients.site_axes + at + 3 * l;
                              float *color = gradients.site_colors + at + 3 * l;
                              give(axis, to_axis.x);
                              give(axis + 1, to_axis.y);
                              give(axis + 2, to_axis.z);
                              give(color, to_color.x);
                              give(color + 1, to_color.y);
                              give(color + 2, to_color.z);
                            });
}

}  // namespace foam
