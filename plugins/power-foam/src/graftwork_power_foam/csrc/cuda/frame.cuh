// What one camera sees, made on the device without a look from the host: cells in the order of their power at the
// eye, and the list of every tile.
#pragma once

#include "cuda/device.cuh"
#include "cuda/gradient.cuh"
#include "math/camera.h"

namespace foam {

// A wall of a cell, seen from the eye: toward.(x - eye) = numerator.
struct Edge {
  Vec<float> toward;
  float numerator;
};

// A camera's ball, as the culling reads it.
struct SeenBall {
  Vec<float> to_center;
  float radius;
};

struct Frame {
  int width, height, tile_columns, tile_rows, level_count;
  ConeLevel levels[kMaxLevels];
  const float *pose, *intrinsics, *directions, *cones;
  // by rank; the first *seen of them are candidates
  int32_t *cells;
  int32_t *seen;
  SeenBall *balls;
  Cell *prepared;
  uint8_t *flat;
  float *colors;  // (N, K, 3)
  Edge *edges;    // by the offsets of the adjacency
  // lists of the tiles
  int64_t *tile_start;  // (tiles + 1)
  int32_t *tile_ranks;

  __host__ __device__ int tiles() const { return tile_columns * tile_rows; }
};

// Bits of a float that sort as unsigned integers; the largest value is left for cells that are not seen.
__device__ inline uint32_t sortable(float value) {
  const uint32_t bits = __float_as_uint(value);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
constexpr uint32_t kUnseen = 0xffffffffu;

static __global__ void order_keys(SceneArgs scene, Constants constants, Frame frame, uint32_t *keys,
                                  int32_t *cells) {
  const int64_t cell = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (cell >= scene.cells) return;
  const Pose pose = load_pose(frame.pose);
  const float radius = scene.radii[cell];
  const Vec<float> world = load(scene.centers + 3 * cell) - pose.eye;
  const Vec<float> local = to_camera(pose, world);
  const Cone root = load_cone(frame.cones + 5 * frame.levels[frame.level_count - 1].start);
  const bool keep = scene.density[cell] > 0.0f && radius > 0.0f && local.z >= constants.near_plane &&
                    dot(world, world) >= constants.near_radii * constants.near_radii * radius * radius &&
                    cone_meets_ball(root.axis, root.cosine, root.sine, local, radius, ball_reach(local, radius));
  keys[cell] = keep ? sortable(origin_power(world, radius)) : kUnseen;
  cells[cell] = static_cast<int32_t>(cell);
}

// Cells, edges and numbers of tiles, by rank.
static __global__ void prepare_ranks(SceneArgs scene, Frame frame, const uint32_t *keys, int64_t *tile_counts) {
  const int64_t rank = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (rank >= scene.cells) return;
  tile_counts[rank] = 0;
  if (keys[rank] == kUnseen) return;
  if (rank + 1 == scene.cells || keys[rank + 1] == kUnseen) *frame.seen = static_cast<int32_t>(rank + 1);
  const Pose pose = load_pose(frame.pose);
  const int64_t cell = frame.cells[rank];
  const Vec<float> center = load(scene.centers + 3 * cell), to_center = center - pose.eye;
  const float radius = scene.radii[cell];
  frame.prepared[rank] =
      prepare(scene.centers + 3 * cell, radius, scene.density[cell], scene.quaternions + 4 * cell);
  frame.balls[rank] = {to_center, radius};
  bool flat = true;
  for (int64_t k = 0; k < scene.sites; ++k) flat = flat && scene.heights[cell * scene.sites + k] == 0.0f;
  frame.flat[rank] = flat;
  for (int32_t e = scene.offsets[cell]; e < scene.offsets[cell + 1]; ++e) {
    const int64_t other = scene.neighbors[e];
    const Vec<float> toward = load(scene.centers + 3 * other) - center;
    frame.edges[e] = {toward, edge_numerator(toward, radius, scene.radii[other], to_center, cell, other)};
  }
  int64_t count = 0;
  const Vec<float> local = to_camera(pose, to_center);
  visit_tiles(frame.levels, frame.level_count, frame.cones, local, radius, ball_reach(local, radius),
              [&](int) { ++count; });
  tile_counts[rank] = count;
}

static __global__ void shade_ranks(SceneArgs scene, Frame frame) {
  const int64_t number = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t rank = number / scene.sites, k = number % scene.sites;
  if (rank >= *frame.seen) return;
  const Vec<float> color =
      site_color(scene, frame.prepared[rank], frame.cells[rank], k, load_pose(frame.pose).eye);
  float *to = frame.colors + 3 * number;
  to[0] = color.x;
  to[1] = color.y;
  to[2] = color.z;
}

// (tile, rank) pairs in the order of the ranks. Pairs beyond the capacity are left out; *pairs counts them too.
static __global__ void emit_pairs(SceneArgs scene, Frame frame, const int64_t *starts, int64_t capacity,
                                  uint32_t *tiles, int32_t *ranks, int64_t *pairs, uint8_t *visible) {
  const int64_t rank = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (rank >= *frame.seen) return;
  const Pose pose = load_pose(frame.pose);
  const SeenBall ball = frame.balls[rank];
  const Vec<float> local = to_camera(pose, ball.to_center);
  int64_t at = starts[rank];
  const int64_t first = at;
  visit_tiles(frame.levels, frame.level_count, frame.cones, local, ball.radius, ball_reach(local, ball.radius),
              [&](int tile) {
                if (at < capacity) {
                  tiles[at] = static_cast<uint32_t>(tile);
                  ranks[at] = static_cast<int32_t>(rank);
                }
                ++at;
              });
  if (visible && at > first) visible[frame.cells[rank]] = 1;
  if (rank + 1 == *frame.seen) *pairs = at;
}

// Where each tile's run begins in the sorted pairs; unused places sort behind the last tile.
static __global__ void find_runs(const uint32_t *tiles, int64_t capacity, int count, int64_t *tile_start) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (at > capacity) return;
  const int64_t here = at < capacity ? static_cast<int64_t>(tiles[at]) : count;
  const int64_t before = at > 0 ? static_cast<int64_t>(tiles[at - 1]) : -1;
  for (int64_t tile = before + 1; tile <= here && tile <= count; ++tile) tile_start[tile] = at;
}

inline int build_frame(const SceneArgs &scene, const CameraArgs &cameras, int64_t camera,
                       const Constants &constants, int64_t edge_count, int64_t capacity, int64_t *pairs,
                       uint8_t *visible, Scratch &scratch, Frame &frame) {
  const int64_t n = scene.cells, table = cameras.tables == 1 ? 0 : camera;
  const cudaStream_t stream = scratch.stream();
  frame.width = static_cast<int>(cameras.width);
  frame.height = static_cast<int>(cameras.height);
  frame.tile_columns = (frame.width + kTile - 1) / kTile;
  frame.tile_rows = (frame.height + kTile - 1) / kTile;
  frame.level_count = cone_levels(frame.width, frame.height, frame.levels);
  frame.pose = cameras.poses + 12 * camera;
  frame.intrinsics = cameras.intrinsics + 4 * camera;
  frame.directions =
      cameras.directions ? cameras.directions + 3 * table * cameras.width * cameras.height : nullptr;
  frame.cones = cameras.cones + 5 * table * (frame.levels[frame.level_count - 1].start + 1);

  uint32_t *keys, *tiles;
  int64_t *counts, *starts;
  FOAM_TRY(scratch.take(keys, n));
  FOAM_TRY(scratch.take(frame.cells, n));
  FOAM_TRY(scratch.take_zero(frame.seen, 1));
  FOAM_TRY(scratch.take(frame.balls, n));
  FOAM_TRY(scratch.take(frame.prepared, n));
  FOAM_TRY(scratch.take(frame.flat, n));
  FOAM_TRY(scratch.take(frame.colors, n * scene.sites * 3));
  FOAM_TRY(scratch.take(frame.edges, edge_count));
  FOAM_TRY(scratch.take(counts, n));
  FOAM_TRY(scratch.take(starts, n));
  FOAM_TRY(scratch.take(tiles, capacity));
  FOAM_TRY(scratch.take(frame.tile_ranks, capacity));
  FOAM_TRY(scratch.take(frame.tile_start, frame.tiles() + 1));

  FOAM_LAUNCH(order_keys, blocks_for(n), kBlockThreads, stream, scene, constants, frame, keys, frame.cells);
  FOAM_TRY(sort_pairs(scratch, keys, frame.cells, n, 32));
  FOAM_LAUNCH(prepare_ranks, blocks_for(n), kBlockThreads, stream, scene, frame, keys, counts);
  FOAM_LAUNCH(shade_ranks, blocks_for(n * scene.sites), kBlockThreads, stream, scene, frame);
  FOAM_TRY(exclusive_sum(scratch, counts, starts, n));
  GRAFTWORK_CUDA(cudaMemsetAsync(tiles, 0xff, sizeof(uint32_t) * static_cast<size_t>(capacity), stream));
  FOAM_LAUNCH(emit_pairs, blocks_for(n), kBlockThreads, stream, scene, frame, starts, capacity, tiles,
              frame.tile_ranks, pairs, visible);
  int bits = 1;
  while ((1LL << bits) <= frame.tiles()) ++bits;  // one value more than there are tiles, for unused places
  FOAM_TRY(sort_pairs(scratch, tiles, frame.tile_ranks, capacity, bits));
  FOAM_LAUNCH(find_runs, blocks_for(capacity + 1), kBlockThreads, stream, tiles, capacity, frame.tiles(),
              frame.tile_start);
  GRAFTWORK_CUDA(cudaGetLastError());
  return 0;
}

// Direction of a thread's pixel, world; false where there is no ray.
__device__ inline bool pixel_direction(const Frame &frame, const Pose &pose, int column, int row,
                                       Vec<float> &direction) {
  direction = {0.0f, 0.0f, 0.0f};
  if (column >= frame.width || row >= frame.height) return false;
  if (!frame.directions) {
    direction = to_world(
        pose, pinhole_direction(frame.intrinsics, static_cast<float>(column), static_cast<float>(row)));
    return true;
  }
  const Vec<float> local = load(frame.directions + 3 * (static_cast<int64_t>(row) * frame.width + column));
  direction = to_world(pose, local);
  return dot(local, local) > 0.5f;
}

// Cone around the directions of a warp.
__device__ inline Cone warp_cone(const Vec<float> &direction, bool inside) {
  Vec<float> axis = {warp_sum(inside ? direction.x : 0.0f), warp_sum(inside ? direction.y : 0.0f),
                     warp_sum(inside ? direction.z : 0.0f)};
  const float length = sqrtf(dot(axis, axis));
  axis = scale(1.0f / maximum(length, kTiny), axis);
  const float least = warp_least(inside ? dot(axis, direction) : 1.0f);
  const float cosine = length > 1e-3f ? least : -1.0f;
  return {axis, cosine, sqrtf(maximum(1.0f - cosine * cosine, 0.0f))};
}

// Calls visit(rank, local ray, crossing, span, mask) in all lanes of a warp for every cell that one of them shades,
// front to back. It returns the transmittance behind the cell.
template <int K, bool kFollow, class Visit>
__device__ inline void visit_warp(const SceneArgs &scene, const Constants &constants, const Frame &frame,
                                  int tile, const Vec<float> &direction, bool alive, int lane, Visit visit) {
  const int count = static_cast<int>(scene.sites);
  const Cone cone = warp_cone(direction, alive);
  const int64_t end = frame.tile_start[tile + 1];
  for (int64_t first = frame.tile_start[tile]; first < end; first += kWarp) {
    // each lane tests one ball of the list against the whole warp
    int32_t candidate = 0;
    bool near = false;
    if (first + lane < end) {
      candidate = frame.tile_ranks[first + lane];
      const SeenBall ball = frame.balls[candidate];
      near = cone_meets_ball(cone.axis, cone.cosine, cone.sine, ball.to_center, ball.radius,
                             ball_reach(ball.to_center, ball.radius));
    }
    for (unsigned bits = __ballot_sync(kWholeWarp, near); bits != 0; bits &= bits - 1) {
      const int32_t rank = __shfl_sync(kWholeWarp, candidate, __ffs(bits) - 1);
      const int64_t id = frame.cells[rank];
      const Cell cell = frame.prepared[rank];
      const Vec<float> to_center = frame.balls[rank].to_center;
      Crossing<float> crossing;
      Span<float> &walls = crossing.walls;
      crossing.enter_by = crossing.leave_by = kBall;
      bool mask = alive && meet_ball(to_center, cell.radius, direction, constants.near, walls);
      if (!warp_any(mask)) continue;
      bool some = true;
      const int32_t last = scene.offsets[id + 1];
      for (int32_t e = scene.offsets[id]; some && e < last; ++e) {
        const Edge edge = frame.edges[e];
        if (kFollow) {
          clip_wall(edge.toward, edge.numerator, direction, walls, scene.neighbors[e], crossing.enter_by,
                    crossing.leave_by);
        } else {
          clip_wall(edge.toward, edge.numerator, direction, walls);
        }
        if ((e & 3) == 3) some = warp_any(mask && walls.leave > walls.enter);
      }
      mask = mask && walls.leave > walls.enter;
      if (!warp_any(mask)) continue;
      const LocalRay<float, float> ray = local_ray(cell, to_center, direction);
      Span<float> span;
      if (frame.flat[rank]) {
        meet_plane(ray, walls, constants.near, INFINITY, span);
      } else {
        Surface<float, K> surface;
        meet_surface<K>(ray, cell.radius, scene.site_positions + 2 * scene.sites * id,
                        scene.heights + scene.sites * id, count, walls, constants.near, INFINITY, surface);
        span = surface.span;
      }
      mask = mask && span.leave > span.enter;
      if (!warp_any(mask)) continue;
      alive = visit(rank, ray, crossing, span, mask) >= constants.stop && alive;
      if (!warp_any(alive)) return;
    }
  }
}

}  // namespace foam
