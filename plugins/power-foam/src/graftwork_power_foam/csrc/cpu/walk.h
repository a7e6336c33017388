// Walking rays from cell to cell through the power diagram, sixteen at a time.
#pragma once

#include <memory>
#include <vector>

#include "abi.h"
#include "cpu/rows.h"
#include "cpu/shade.h"
#include "math/surface.h"

namespace foam {

constexpr int32_t kNowhere = -2;  // the ray leaves the diagram

// A wall towards a neighbour, for any origin: toward.(x - center) = offset.
struct Wall {
  Vec<float> toward;
  float offset;
};

// What the rays of one group walk through.
struct Diagram {
  const SceneArgs *scene;
  std::vector<Cell> cells;
  std::vector<uint8_t> flat;
  std::unique_ptr<Wall[]> walls;
  std::unique_ptr<float[]> colors;  // (N, K, 3) as seen from the shared eye, if there is one
  Vec<float> eye;
  int32_t entry;  // some cell of the diagram, from which every other can be reached
};

void build_diagram(const SceneArgs &scene, int threads, Diagram &diagram);
void shade_diagram(int threads, const Vec<float> &eye, Diagram &diagram);

// The cell that holds a point: steps to the neighbour of least power until there is none.
int32_t locate(const Diagram &diagram, const Vec<float> &point, int32_t from);

constexpr int kRaysAtOnce = 64;  // share their rows of sums

// The rays of one packet: which ones, whence and whither.
struct RayBlock {
  int64_t ray[kLanes];  // number within the group, -1 where there is none
  Vec<Packet> origin, direction;
  Packet far;
  PacketInt inside;
};

inline int64_t ray_bundles(const RayArgs &rays) {
  if (rays.width == 0) return (rays.count + kRaysAtOnce - 1) / kRaysAtOnce;
  return ((rays.width + 7) / 8) * ((rays.count / rays.width + 7) / 8);
}

// Block 0..3 of a bundle: 4 x 4 pixels of 8 x 8 where the rays form an image.
inline void load_block(const RayArgs &rays, int64_t group, int64_t bundle, int block, RayBlock &to) {
  to.origin = to.direction = Vec<Packet>{};
  to.far = splat(INFINITY);
  to.inside = PacketInt{};
  for (int lane = 0; lane < kLanes; ++lane) {
    int64_t ray;
    if (rays.width == 0) {
      ray = bundle * kRaysAtOnce + block * kLanes + lane;
      if (ray >= rays.count) ray = -1;
    } else {
      const int64_t columns = (rays.width + 7) / 8;
      const int64_t column = bundle % columns * 8 + (block & 1) * 4 + (lane & 3);
      const int64_t row = bundle / columns * 8 + (block >> 1) * 4 + (lane >> 2);
      ray = column < rays.width && row * rays.width < rays.count ? row * rays.width + column : -1;
    }
    to.ray[lane] = ray;
    if (ray < 0) continue;
    const int64_t at = group * rays.count + ray;
    const Vec<float> direction = load(rays.directions + 3 * at);
    const Vec<float> origin = load(rays.eyes ? rays.eyes + 3 * group : rays.origins + 3 * at);
    to.direction.x[lane] = direction.x;
    to.direction.y[lane] = direction.y;
    to.direction.z[lane] = direction.z;
    to.origin.x[lane] = origin.x;
    to.origin.y[lane] = origin.y;
    to.origin.z[lane] = origin.z;
    if (rays.far) to.far[lane] = rays.far[at];
    to.inside[lane] = dot(direction, direction) > 0.5f ? -1 : 0;
  }
}

// Directions from each lane's origin to a site: exact for rays with their own origins.
inline Vec<Packet> toward_site(const SceneArgs &scene, const Cell &cell, int32_t id, int64_t k,
                               const Vec<Packet> &origin) {
  const float *position = scene.site_positions + 2 * (id * scene.sites + k);
  const float square = cell.radius * cell.radius;
  Vec<float> site = cell.center;
  add(site, scale(square * position[0], cell.across));
  add(site, scale(square * position[1], cell.down));
  const Vec<Packet> gap = site - origin;
  return scale(reciprocal(maximum(square_root(dot(gap, gap)), 1e-12f)), gap);
}

// Reads the (L, 3) values of one site, the same for all lanes.
struct SiteValues {
  const float *at;
  Vec<float> operator()(int l) const { return load(at + 3 * l); }
};

// The cell's centre minus the origins of the rays.
inline Vec<float> relative_center(const Vec<float> &center, const Diagram &diagram, const RayBlock &, float) {
  return center - diagram.eye;
}
inline Vec<Packet> relative_center(const Vec<float> &center, const Diagram &, const RayBlock &rays, Packet) {
  return center - rays.origin;
}

// Calls visit(cell, to_center, local ray, crossing, span, mask) for every cell that the block shades; for each
// ray front to back. It returns the transmittance behind the cell. O is float if all rays share the eye.
template <int K, class O, class Visit>
inline void walk_block(const Diagram &diagram, const Constants &constants, const RayBlock &rays, PacketInt start,
                       uint8_t *visible, Visit visit) {
  const SceneArgs &scene = *diagram.scene;
  const int count = static_cast<int>(scene.sites);
  const Vec<Packet> &direction = rays.direction;
  PacketInt alive = rays.inside, current = start;
  Packet progress = splat(-INFINITY);
  // along a ray d.c grows from cell to cell, so only rounding could make a walk longer than this
  for (int64_t steps = kLanes * (scene.cells + 1); steps > 0; --steps) {
    // the rays that are behind go on, together with those in the same cell
    int first = -1;
    for (uint32_t bits = bits_of(alive); bits; bits &= bits - 1) {
      const int lane = __builtin_ctz(bits);
      if (first < 0 || progress[lane] < progress[first]) first = lane;
    }
    if (first < 0) return;
    const int32_t id = current[first];
    PacketInt here = alive & (current == id);
    const Cell &cell = diagram.cells[id];
    const Vec<O> to_center = relative_center(cell.center, diagram, rays, O{});
    Crossing<Packet> crossing;
    Span<Packet> &walls = crossing.walls;
    walls = {splat(-INFINITY), splat(INFINITY)};
    crossing.enter_by = crossing.leave_by = splat(kNowhere);
    for (int32_t e = scene.offsets[id]; e < scene.offsets[id + 1]; ++e) {
      const Wall &wall = diagram.walls[e];
      const O numerator = wall.offset + dot(wall.toward, to_center);
      clip_wall(wall.toward, numerator, direction, walls, scene.neighbors[e], crossing.enter_by,
                crossing.leave_by);
    }
    const PacketInt next = crossing.leave_by;
    const Packet exit = walls.leave;
    Span<Packet> ball;
    PacketInt mask = here & meet_ball(to_center, cell.radius, direction, constants.near, ball);
    if (any(mask)) {
      if (visible) __atomic_store_n(visible + id, 1, __ATOMIC_RELAXED);
      crossing.enter_by = select(ball.enter >= walls.enter, splat(kBall), crossing.enter_by);
      crossing.leave_by = select(ball.leave <= walls.leave, splat(kBall), crossing.leave_by);
      walls.enter = maximum(walls.enter, ball.enter);
      walls.leave = minimum(walls.leave, ball.leave);
      const float reach = constants.near_radii * cell.radius;
      mask &= (walls.leave > walls.enter) & (dot(to_center, to_center) + Packet{} >= reach * reach);
    }
    if (cell.density > 0.0f && any(mask)) {
      const LocalRay<Packet, O> ray = local_ray(cell, to_center, direction);
      Span<Packet> span;
      if (diagram.flat[id]) {
        meet_plane(ray, walls, constants.near, rays.far, span);
      } else {
        Surface<Packet, K> surface;
        meet_surface<K>(ray, cell.radius, scene.site_positions + 2 * scene.sites * id,
                        scene.heights + scene.sites * id, count, walls, constants.near, rays.far, surface);
        span = surface.span;
      }
      mask &= span.leave > span.enter;
      if (any(mask)) alive &= visit(id, to_center, ray, crossing, span, mask) >= constants.stop;
    }
    current = select(here, next, current);
    progress = select(here, exit, progress);
    alive &= negate(here & ((next == kNowhere) | (exit >= rays.far)));
  }
}

// Cells in which the rays of a block begin; `hint` is where the search starts and ends.
inline PacketInt start_cells(const Diagram &diagram, const RayBlock &rays, bool shared, int32_t &hint) {
  PacketInt start = splat(hint);
  if (shared) return start;
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!rays.inside[lane]) continue;
    hint = locate(diagram, {rays.origin.x[lane], rays.origin.y[lane], rays.origin.z[lane]}, hint);
    start[lane] = hint;
  }
  return start;
}

// Colours of a cell's sites for each lane, by the spherical Voronoi diagram of each site.
template <int K>
inline void lane_colors(const SceneArgs &scene, const Cell &cell, int32_t id, const Vec<Packet> &origin,
                        Vec<Packet> *colors) {
  const int axes = static_cast<int>(scene.axes);
  for (int k = 0; k < SiteCount<K>::of(static_cast<int>(scene.sites)); ++k) {
    const int64_t at = 3 * scene.axes * (id * scene.sites + k);
    colors[k] = spherical_color<Packet>(axes, toward_site(scene, cell, id, k, origin),
                                        SiteValues{scene.site_axes + at}, SiteValues{scene.site_colors + at});
  }
}

}  // namespace foam
