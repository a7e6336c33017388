// What the forward and the backward rasterizer share: the cells of a tile and of a block of pixels.
#pragma once

#include "cpu/frame.h"
#include "cpu/rows.h"
#include "math/surface.h"

namespace foam {

// The balls of a tile side by side, so that sixteen at once can be tested against a block of pixels.
class TileBalls {
 public:
  void gather(const Frame &frame, int tile) {
    const int64_t start = frame.tile_start[tile];
    count_ = static_cast<int>(frame.tile_start[tile + 1] - start);
    ranks_ = frame.tile_ranks.data() + start;
    const size_t packets = (count_ + kLanes - 1) / kLanes;
    x_.resize(packets);
    y_.resize(packets);
    z_.resize(packets);
    radius_.resize(packets);
    reach_.resize(packets);
    for (int i = 0; i < count_; ++i) {
      const int32_t rank = ranks_[i];
      const Vec<float> &center = frame.to_center[rank];
      x_[i / kLanes][i % kLanes] = center.x;
      y_[i / kLanes][i % kLanes] = center.y;
      z_[i / kLanes][i % kLanes] = center.z;
      radius_[i / kLanes][i % kLanes] = frame.prepared[rank].radius;
      reach_[i / kLanes][i % kLanes] = frame.reach[rank];
    }
  }

  // Places in the list of the balls that may meet the rays of a block.
  void near_block(const Vec<Packet> &directions, PacketInt active, std::vector<int32_t> &places) const {
    Vec<float> axis = {sum_lanes(select(active, directions.x, Packet{})),
                       sum_lanes(select(active, directions.y, Packet{})),
                       sum_lanes(select(active, directions.z, Packet{}))};
    const float length = sqrtf(dot(axis, axis));
    places.clear();
    float cosine = -1.0f;
    if (length > 1e-3f) {
      axis = scale(1.0f / length, axis);
      const Packet cosines = select(active, dot(axis, directions), splat(1.0f));
      cosine = 1.0f;
      for (int lane = 0; lane < kLanes; ++lane) cosine = minimum(cosine, cosines[lane]);
    }
    const float sine = sqrtf(maximum(1.0f - cosine * cosine, 0.0f));
    for (int first = 0; first < count_; first += kLanes) {
      const int p = first / kLanes;
      uint32_t bits = bits_of(cone_meets_ball(axis, cosine, sine, Vec<Packet>{x_[p], y_[p], z_[p]},
                                              radius_[p], reach_[p]));
      if (count_ - first < kLanes) bits &= (1u << (count_ - first)) - 1;
      for (; bits; bits &= bits - 1) places.push_back(first + __builtin_ctz(bits));
    }
  }

  int count() const { return count_; }
  int32_t rank(int place) const { return ranks_[place]; }

 private:
  int count_ = 0;
  const int32_t *ranks_ = nullptr;
  std::vector<Packet> x_, y_, z_, radius_, reach_;
};

// Corner pixel of a block within a tile; false if the block lies outside the image.
inline bool block_corner(const Frame &frame, int tile, int block, int &column, int &row) {
  column = tile % frame.tile_columns * kTile + (block & 1) * kBlock;
  row = tile / frame.tile_columns * kTile + (block >> 1) * kBlock;
  return column < frame.width && row < frame.height;
}

// Scratch of one thread.
struct Workspace {
  explicit Workspace(int64_t ranks) : slots(ranks) {}
  SlotMap slots;
  TileBalls balls;
  std::vector<int32_t> places;
};

constexpr int kTilesAtOnce = 512;  // between two reductions

// Number of a lane's pixel in the image.
inline int64_t pixel_of(const Frame &frame, int column, int row, int lane) {
  return static_cast<int64_t>(row + lane_row(lane)) * frame.width + column + lane_column(lane);
}

// Calls visit(place, rank, local ray, crossing, span, mask) for every cell that the block shades, front to back.
// It returns the transmittance behind the cell. Only with kFollow the crossing knows what made its ends.
template <int K, bool kFollow, class Visit>
inline void visit_block(const SceneArgs &scene, const Constants &constants, const Frame &frame, Workspace &work,
                        const Vec<Packet> &direction, PacketInt alive, Visit visit) {
  const int count = static_cast<int>(scene.sites);
  const Packet far = splat(INFINITY);
  if (!any(alive)) return;
  work.balls.near_block(direction, alive, work.places);
  for (int32_t place : work.places) {
    const int32_t rank = work.balls.rank(place), id = frame.cells[rank];
    const Cell &cell = frame.prepared[rank];
    const Vec<float> &to_center = frame.to_center[rank];
    Crossing<Packet> crossing;
    Span<Packet> &walls = crossing.walls;
    PacketInt mask = alive & meet_ball(to_center, cell.radius, direction, constants.near, walls);
    if (!any(mask)) continue;
    if (kFollow) crossing.enter_by = crossing.leave_by = splat(kBall);
    const Edge *edge = frame.edges.get() + frame.edge_start[rank];
    const Edge *end = frame.edges.get() + frame.edge_start[rank + 1];
    const int32_t *neighbor = scene.neighbors + scene.offsets[id];
    bool some = true;
    for (; some && edge != end; ++edge, ++neighbor) {
      if (kFollow) {
        clip_wall(edge->toward, edge->numerator, direction, walls, *neighbor, crossing.enter_by,
                  crossing.leave_by);
      } else {
        clip_wall(edge->toward, edge->numerator, direction, walls);
      }
      some = any(mask & (walls.leave > walls.enter));
    }
    if (!some) continue;
    mask &= walls.leave > walls.enter;
    const LocalRay<Packet, float> ray = local_ray(cell, to_center, direction);
    Span<Packet> span;
    if (frame.flat[rank]) {
      meet_plane(ray, walls, constants.near, far, span);
    } else {
      Surface<Packet, K> surface;
      meet_surface<K>(ray, cell.radius, scene.site_positions + 2 * scene.sites * id,
                      scene.heights + scene.sites * id, count, walls, constants.near, far, surface);
      span = surface.span;
    }
    mask &= span.leave > span.enter;
    if (!any(mask)) continue;
    alive &= visit(place, rank, ray, crossing, span, mask) >= constants.stop;
    if (!any(alive)) return;
  }
}

}  // namespace foam
