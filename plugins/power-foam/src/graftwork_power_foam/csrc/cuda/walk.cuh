// Walking rays from cell to cell through the power diagram, one thread each, a warp in step.
#pragma once

#include "abi.h"
#include "cuda/device.cuh"
#include "cuda/gradient.cuh"
#include "math/surface.h"

namespace foam {

constexpr int32_t kNowhere = -2;  // the ray leaves the diagram

// A wall towards a neighbour, for any origin: toward.(x - center) = offset.
struct Wall {
  Vec<float> toward;
  float offset;
};

struct Diagram {
  Cell *cells;
  uint8_t *flat;
  Wall *walls;
  float *colors;    // (N, K, 3) as seen from the shared eye; null for rays with their own origins
  int32_t *starts;  // (1) cell of the shared eye, or the cell where every search begins
};

static __global__ void prepare_diagram(SceneArgs scene, Diagram diagram) {
  const int64_t id = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (id >= scene.cells) return;
  const float radius = scene.radii[id];
  const Cell cell = prepare(scene.centers + 3 * id, radius, scene.density[id], scene.quaternions + 4 * id);
  diagram.cells[id] = cell;
  bool flat = true;
  for (int64_t k = 0; k < scene.sites; ++k) flat = flat && scene.heights[id * scene.sites + k] == 0.0f;
  diagram.flat[id] = flat;
  for (int32_t e = scene.offsets[id]; e < scene.offsets[id + 1]; ++e) {
    const int64_t other = scene.neighbors[e];
    const Vec<float> toward = load(scene.centers + 3 * other) - cell.center;
    diagram.walls[e] = {toward, wall_numerator(toward, radius, scene.radii[other], Vec<float>{0, 0, 0})};
  }
}

static __global__ void shade_diagram(SceneArgs scene, Diagram diagram, const float *eye) {
  const int64_t number = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t id = number / scene.sites, k = number % scene.sites;
  if (id >= scene.cells) return;
  const Vec<float> color = site_color(scene, diagram.cells[id], id, k, load(eye));
  float *to = diagram.colors + 3 * number;
  to[0] = color.x;
  to[1] = color.y;
  to[2] = color.z;
}

// The cell of least power at a point, by steps to the best neighbour.
__device__ inline int32_t locate(const SceneArgs &scene, const Diagram &diagram, const Vec<float> &point,
                                 int32_t from) {
  float best = origin_power(diagram.cells[from].center - point, diagram.cells[from].radius);
  for (;;) {
    int32_t next = from;
    for (int32_t e = scene.offsets[from]; e < scene.offsets[from + 1]; ++e) {
      const int32_t other = scene.neighbors[e];
      const float power = origin_power(diagram.cells[other].center - point, diagram.cells[other].radius);
      if (power < best) {
        best = power;
        next = other;
      }
    }
    if (next == from) return from;
    from = next;
  }
}

// Finds some cell of the diagram, then that of the shared eye. One warp.
static __global__ void find_start(SceneArgs scene, Diagram diagram, const float *eye) {
  int64_t entry = -1;
  float largest = -1.0f;
  int64_t alone = 0;
  for (int64_t first = 0; first < scene.cells && entry < 0; first += kWarp) {
    const int64_t id = first + threadIdx.x;
    const bool linked = id < scene.cells && scene.offsets[id + 1] > scene.offsets[id];
    const unsigned bits = __ballot_sync(kWholeWarp, linked);
    if (bits != 0) entry = first + __ffs(bits) - 1;
  }
  if (threadIdx.x != 0) return;
  if (entry < 0) {
    // no walls at all: one cell owns everything, and hides the others if there are any
    for (int64_t id = 0; id < scene.cells; ++id) {
      if (scene.radii[id] > largest) {
        largest = scene.radii[id];
        alone = id;
      }
    }
    entry = alone;
  }
  const int32_t from = static_cast<int32_t>(entry);
  *diagram.starts = eye ? locate(scene, diagram, load(eye), from) : from;
}

// A thread's ray. Rays of an image are dealt out in tiles of 8 x 4 pixels per warp.
struct Ray {
  int64_t number;  // within the group, -1 if there is none
  Vec<float> origin, direction;
  float far;
  bool inside;
};

__host__ __device__ inline int64_t ray_warps(const RayArgs &rays) {
  if (rays.width == 0) return (rays.count + kWarp - 1) / kWarp;
  return ((rays.width + 7) / 8) * ((rays.count / rays.width + 3) / 4);
}

__device__ inline Ray load_ray(const RayArgs &rays, int64_t group, int64_t warp, int lane) {
  Ray ray{-1, {0, 0, 0}, {0, 0, 0}, INFINITY, false};
  if (warp >= ray_warps(rays)) return ray;
  if (rays.width == 0) {
    ray.number = warp * kWarp + lane;
  } else {
    const int64_t columns = (rays.width + 7) / 8;
    const int64_t column = warp % columns * 8 + (lane & 7), row = warp / columns * 4 + (lane >> 3);
    ray.number = column < rays.width ? row * rays.width + column : rays.count;
  }
  if (ray.number >= rays.count) {
    ray.number = -1;
    return ray;
  }
  const int64_t at = group * rays.count + ray.number;
  ray.direction = load(rays.directions + 3 * at);
  ray.origin = load(rays.eyes ? rays.eyes + 3 * group : rays.origins + 3 * at);
  if (rays.far) ray.far = rays.far[at];
  ray.inside = dot(ray.direction, ray.direction) > 0.5f;
  return ray;
}

// Calls visit(cell, to_center, local ray, crossing, span, mask) in all lanes of a warp whenever one of them shades
// a cell, each lane its own. It returns the transmittance behind the cell.
template <int K, class Visit>
__device__ inline void walk_warp(const SceneArgs &scene, const Constants &constants, const Diagram &diagram,
                                 const Ray &ray, uint8_t *visible, Visit visit) {
  const int count = static_cast<int>(scene.sites);
  const Vec<float> &direction = ray.direction;
  int32_t id = *diagram.starts;
  bool alive = ray.inside;
  if (alive && !diagram.colors) id = locate(scene, diagram, ray.origin, id);
  for (int64_t step = 0; warp_any(alive) && step <= scene.cells; ++step) {
    const Cell cell = diagram.cells[id];
    const Vec<float> to_center = cell.center - ray.origin;
    Crossing<float> crossing;
    Span<float> &walls = crossing.walls;
    walls = {-INFINITY, INFINITY};
    crossing.enter_by = crossing.leave_by = kNowhere;
    if (alive) {
      for (int32_t e = scene.offsets[id]; e < scene.offsets[id + 1]; ++e) {
        const Wall wall = diagram.walls[e];
        clip_wall(wall.toward, wall.offset + dot(wall.toward, to_center), direction, walls,
                  scene.neighbors[e], crossing.enter_by, crossing.leave_by);
      }
    }
    const int32_t next = crossing.leave_by;
    const float exit = walls.leave;
    Span<float> ball;
    bool mask = alive && meet_ball(to_center, cell.radius, direction, constants.near, ball);
    if (mask && visible) visible[id] = 1;
    if (mask) {
      if (ball.enter >= walls.enter) crossing.enter_by = kBall;
      if (ball.leave <= walls.leave) crossing.leave_by = kBall;
      walls = {maximum(walls.enter, ball.enter), minimum(walls.leave, ball.leave)};
      const float reach = constants.near_radii * cell.radius;
      mask = walls.leave > walls.enter && dot(to_center, to_center) >= reach * reach && cell.density > 0.0f;
    }
    LocalRay<float, float> local{};
    Span<float> span{};
    if (mask) {
      local = local_ray(cell, to_center, direction);
      Surface<float, K> surface;
      if (diagram.flat[id]) {
        meet_plane(local, walls, constants.near, ray.far, span);
      } else {
        meet_surface<K>(local, cell.radius, scene.site_positions + 2 * scene.sites * id,
                        scene.heights + scene.sites * id, count, walls, constants.near, ray.far, surface);
        span = surface.span;
      }
      mask = span.leave > span.enter;
    }
    if (warp_any(mask)) alive = visit(id, to_center, local, crossing, span, mask) >= constants.stop && alive;
    alive = alive && next != kNowhere && exit < ray.far;
    if (alive) id = next;
  }
}

}  // namespace foam
