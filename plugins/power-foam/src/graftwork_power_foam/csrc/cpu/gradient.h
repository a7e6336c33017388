// Rows of gradients: what is summed per cell, and how it becomes gradients of the parameters.
#pragma once

#include "abi.h"
#include "cpu/rows.h"
#include "math/surface.h"

namespace foam {

// A row of shape: centre and radius. A row of look: density, normal, across, down, heights, sites, colours.
constexpr int kShapeStride = 4;
inline int look_stride(int64_t sites) { return static_cast<int>(10 + 6 * sites); }

template <int K> inline void clear(CellGradient<Packet, K> &gradient, int count) {
  const Packet zero{};
  const Vec<Packet> zeros{zero, zero, zero};
  gradient.center = gradient.normal = gradient.across = gradient.down = zeros;
  gradient.radius = gradient.density = zero;
  for (int k = 0; k < SiteCount<K>::of(count); ++k) {
    gradient.heights[k] = gradient.sites[2 * k] = gradient.sites[2 * k + 1] = zero;
    gradient.colors[k] = zeros;
  }
}

// Adds the sums over the lanes to the rows.
template <int K>
inline void add_sums(const CellGradient<Packet, K> &gradient, int count, float *shape, float *look) {
  constexpr int kMost = 14 + 6 * SiteCount<K>::kBound;
  Packet values[(kMost + kLanes - 1) / kLanes * kLanes];
  const int sites = SiteCount<K>::of(count);
  int n = 0;
  const auto put = [&](const Vec<Packet> &v) {
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
  for (int k = 0; k < sites; ++k) values[n++] = gradient.heights[k];
  for (int k = 0; k < 2 * sites; ++k) values[n++] = gradient.sites[k];
  for (int k = 0; k < sites; ++k) put(gradient.colors[k]);
  for (int i = n; i % kLanes != 0; ++i) values[i] = Packet{};
  for (int first = 0; first < n; first += kLanes) {
    const Packet sums = sum_each(values + first);
    const int last = n - first < kLanes ? n - first : kLanes;
    for (int i = 0; i < last; ++i) {
      const int at = first + i;
      if (at < kShapeStride) shape[at] += sums[i];
      else look[at - kShapeStride] += sums[i];
    }
  }
}

// Gradients of one end of the spans of a cell: to the ball, and to each wall's neighbour in turn.
template <int K, class O>
inline void end_backward(const SceneArgs &scene, const Constants &constants, const Cell &cell,
                         const Vec<O> &to_center, const Vec<Packet> &direction,
                         const EndGradient<Packet> &end, PacketInt by, CellGradient<Packet, K> &gradient,
                         RowTable &shapes, SlotMap &slots) {
  PacketInt left = end.pull != 0.0f;
  const PacketInt on_ball = left & (by == kBall);
  if (any(on_ball)) ball_backward(constants, cell, to_center, direction, end, on_ball, gradient);
  left &= by != kBall;
  for (uint32_t bits = bits_of(left); bits; bits = bits_of(left)) {
    const int32_t other = by[__builtin_ctz(bits)];
    const PacketInt here = left & (by == other);
    left &= ~here;
    const Vec<float> toward = load(scene.centers + 3 * other) - cell.center;
    Packet pull;
    Vec<Packet> pulled;
    wall_backward(constants, cell, toward, to_center, direction, end, here, gradient, pull, pulled);
    const float sum = sum_lanes(pull);
    float *shape = shapes.row(other, slots);
    shape[0] += toward.x * sum - sum_lanes(pulled.x);
    shape[1] += toward.y * sum - sum_lanes(pulled.y);
    shape[2] += toward.z * sum - sum_lanes(pulled.z);
    shape[3] -= scene.radii[other] * sum;
  }
}

// Adds a cell's summed look to the gradients of its parameters; `shape` gains nothing, it was summed apart.
inline void finish_cell(const SceneArgs &scene, int64_t cell, const float *look,
                        const SceneGradients &gradients) {
  const int64_t sites = scene.sites;
  const float inverse = 1.0f / (scene.radii[cell] > kTiny ? scene.radii[cell] : kTiny);
  gradients.density[cell] += look[0];
  float quaternion[4];
  quaternion_backward(scene.quaternions + 4 * cell, load(look + 1), scale(inverse, load(look + 4)),
                      scale(inverse, load(look + 7)), quaternion);
  for (int i = 0; i < 4; ++i) gradients.quaternions[4 * cell + i] += quaternion[i];
  for (int64_t k = 0; k < sites; ++k) gradients.heights[cell * sites + k] += look[10 + k];
  for (int64_t k = 0; k < 2 * sites; ++k) {
    gradients.site_positions[2 * cell * sites + k] += look[10 + sites + k];
  }
}

}  // namespace foam
