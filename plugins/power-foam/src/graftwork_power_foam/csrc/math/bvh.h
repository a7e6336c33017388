// A hierarchy of boxes over balls in Morton order: which balls overlap a ball.
//
// The tree is implicit. Leaf i holds balls kLeaf * i ... of the order; nodes are numbered as in a heap, the root
// is 1, the children of n are 2 n and 2 n + 1, the leaves start at `leaves`, a power of two.
#pragma once

#include "math/lanes.h"

namespace foam {

constexpr int kLeaf = 4;
constexpr int kMaxDepth = 40;

struct Box {
  Vec<float> low, high;
};

FOAM_FN Box empty_box() {
  const float most = 3.4e38f;
  return {{most, most, most}, {-most, -most, -most}};
}
FOAM_FN Box join(const Box &a, const Box &b) {
  return {{minimum(a.low.x, b.low.x), minimum(a.low.y, b.low.y), minimum(a.low.z, b.low.z)},
          {maximum(a.high.x, b.high.x), maximum(a.high.y, b.high.y), maximum(a.high.z, b.high.z)}};
}
FOAM_FN Box ball_box(const Vec<float> &center, float radius) {
  return {{center.x - radius, center.y - radius, center.z - radius},
          {center.x + radius, center.y + radius, center.z + radius}};
}

// Whether a ball reaches into a box; never for an empty one.
FOAM_FN bool ball_meets_box(const Vec<float> &center, float radius, const Box &box) {
  const float x = maximum(maximum(box.low.x - center.x, center.x - box.high.x), 0.0f);
  const float y = maximum(maximum(box.low.y - center.y, center.y - box.high.y), 0.0f);
  const float z = maximum(maximum(box.low.z - center.z, center.z - box.high.z), 0.0f);
  return x * x + y * y + z * z <= radius * radius;
}

// Spreads the lower ten bits to every third bit.
FOAM_FN uint32_t spread_bits(uint32_t value) {
  value = (value | (value << 16)) & 0x030000ffu;
  value = (value | (value << 8)) & 0x0300f00fu;
  value = (value | (value << 4)) & 0x030c30c3u;
  return (value | (value << 2)) & 0x09249249u;
}

// Place on the Morton curve of a point in a box.
FOAM_FN uint32_t morton(const Vec<float> &point, const Box &box) {
  const float size = maximum(maximum(box.high.x - box.low.x, box.high.y - box.low.y),
                             maximum(box.high.z - box.low.z, 1e-30f));
  const float cells = 1023.0f / size;
  const uint32_t x = static_cast<uint32_t>((point.x - box.low.x) * cells);
  const uint32_t y = static_cast<uint32_t>((point.y - box.low.y) * cells);
  const uint32_t z = static_cast<uint32_t>((point.z - box.low.z) * cells);
  return spread_bits(x) | (spread_bits(y) << 1) | (spread_bits(z) << 2);
}

struct BallTree {
  const float *centers, *radii;
  const int32_t *order;  // Morton order of the balls
  const Box *nodes;
  int64_t count, leaves;
};

// Calls emit(other) for every ball whose gap to ball `cell` is below the margin.
template <class Emit> FOAM_FN void visit_overlaps(const BallTree &tree, int32_t cell, float margin, Emit emit) {
  const Vec<float> center = load(tree.centers + 3 * static_cast<int64_t>(cell));
  const float radius = tree.radii[cell], reach = radius + margin;
  int64_t stack[kMaxDepth];
  int depth = 0;
  stack[depth++] = 1;
  while (depth > 0) {
    const int64_t node = stack[--depth];
    if (!ball_meets_box(center, reach, tree.nodes[node])) continue;
    if (node < tree.leaves) {
      stack[depth++] = 2 * node + 1;
      stack[depth++] = 2 * node;
      continue;
    }
    const int64_t first = (node - tree.leaves) * kLeaf;
    for (int64_t i = first; i < first + kLeaf && i < tree.count; ++i) {
      const int32_t other = tree.order[i];
      if (other == cell) continue;
      const Vec<float> gap = load(tree.centers + 3 * static_cast<int64_t>(other)) - center;
      const float together = reach + tree.radii[other];
      if (dot(gap, gap) < together * together) emit(other);
    }
  }
}

// Signed distance of a wall from the cell's centre: the smaller, the more the wall cuts off.
FOAM_FN float wall_distance(const Vec<float> &toward, float radius, float other_radius) {
  const float square = dot(toward, toward);
  const float offset = 0.5f * (square + (radius - other_radius) * (radius + other_radius));
  return offset / sqrtf(maximum(square, 1e-30f));
}

}  // namespace foam
