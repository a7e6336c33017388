// Directions of pixels, and the cones of tiles that decide which balls a tile may see.
#pragma once

#include "math/lanes.h"

namespace foam {

constexpr int kTile = 8;  // pixels

// Camera to world.
struct Pose {
  Vec<float> x, y, z, eye;  // columns of the rotation, position
};

FOAM_FN Pose load_pose(const float *rows) {
  return {{rows[0], rows[4], rows[8]},
          {rows[1], rows[5], rows[9]},
          {rows[2], rows[6], rows[10]},
          {rows[3], rows[7], rows[11]}};
}

template <class F> FOAM_FN Vec<F> to_world(const Pose &pose, const Vec<F> &local) {
  return {local.x * pose.x.x + local.y * pose.y.x + local.z * pose.z.x,
          local.x * pose.x.y + local.y * pose.y.y + local.z * pose.z.y,
          local.x * pose.x.z + local.y * pose.y.z + local.z * pose.z.z};
}

FOAM_FN Vec<float> to_camera(const Pose &pose, const Vec<float> &world) {
  return {dot(pose.x, world), dot(pose.y, world), dot(pose.z, world)};
}

// Unit direction of a pixel of a pinhole camera, camera coordinates; column and row count from 0.
template <class F>
FOAM_FN Vec<F> pinhole_direction(const float *intrinsics, const F &column, const F &row) {
  const F x = (column + (0.5f - intrinsics[2])) * (1.0f / intrinsics[0]);
  const F y = (row + (0.5f - intrinsics[3])) * (1.0f / intrinsics[1]);
  const F inverse = reciprocal(square_root(x * x + y * y + 1.0f));
  return {x * inverse, y * inverse, inverse};
}

// All directions that make at most some angle with an axis.
struct Cone {
  Vec<float> axis;
  float cosine, sine;
};

FOAM_FN Cone load_cone(const float *at) { return {{at[0], at[1], at[2]}, at[3], at[4]}; }

// Whether a ball may meet a cone from the origin. `reach` is sqrt(|c|^2 - r^2), negative if the origin is inside.
template <class A, class F>
FOAM_FN Mask<F> cone_meets_ball(const Vec<A> &axis, float cosine, float sine, const Vec<F> &center,
                                const F &radius, const F &reach) {
  // axis.c >= |c| cos(cone + ball), where sin(ball) = r / |c|; beyond half a turn everything is met
  const F bound = cosine * reach - sine * radius;
  const F slack = 1e-5f * (reach + radius);
  return (dot(axis, center) >= bound - slack) | (sine * reach + cosine * radius <= 0.0f) | (reach < 0.0f);
}

// Levels of the hierarchy of cones: tiles, then squares of 2 x 2, up to one.
struct ConeLevel {
  int columns, rows;
  int64_t start;  // number of the first cone
};

FOAM_FN int cone_levels(int width, int height, ConeLevel *levels) {
  ConeLevel level{(width + kTile - 1) / kTile, (height + kTile - 1) / kTile, 0};
  int count = 0;
  levels[count++] = level;
  while (level.columns > 1 || level.rows > 1) {
    level.start += static_cast<int64_t>(level.columns) * level.rows;
    level.columns = (level.columns + 1) / 2;
    level.rows = (level.rows + 1) / 2;
    levels[count++] = level;
  }
  return count;
}

constexpr int kMaxLevels = 32;

// Calls emit(tile) for every tile whose cone the ball may meet, in a fixed order.
template <class Emit>
FOAM_FN void visit_tiles(const ConeLevel *levels, int count, const float *cones, const Vec<float> &center,
                         float radius, float reach, Emit emit) {
  // nodes still to visit: level, row, column; a node leaves at most three siblings behind per level
  struct Node {
    int16_t level, row, column;
  } stack[3 * kMaxLevels + 1];
  int depth = 0;
  stack[depth++] = {static_cast<int16_t>(count - 1), 0, 0};
  while (depth > 0) {
    const Node node = stack[--depth];
    const ConeLevel level = levels[node.level];
    const int64_t number = level.start + static_cast<int64_t>(node.row) * level.columns + node.column;
    const Cone cone = load_cone(cones + 5 * number);
    if (!cone_meets_ball(cone.axis, cone.cosine, cone.sine, center, radius, reach)) continue;
    if (node.level == 0) {
      emit(node.row * level.columns + node.column);
      continue;
    }
    const ConeLevel below = levels[node.level - 1];
    for (int child = 3; child >= 0; --child) {
      const int row = 2 * node.row + (child >> 1), column = 2 * node.column + (child & 1);
      if (row >= below.rows || column >= below.columns) continue;
      stack[depth++] = {static_cast<int16_t>(node.level - 1), static_cast<int16_t>(row),
                        static_cast<int16_t>(column)};
    }
  }
}

FOAM_FN float ball_reach(const Vec<float> &center, float radius) {
  const float square = dot(center, center) - radius * radius;
  return square > 0.0f ? sqrtf(square) : -1.0f;
}

}  // namespace foam
