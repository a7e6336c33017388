#include "cpu/frame.h"

namespace foam {

void sort_by_key(std::vector<uint32_t> &keys, std::vector<int32_t> &values) {
  constexpr int kBits = 11, kBins = 1 << kBits;
  const size_t count = keys.size();
  std::vector<uint32_t> other_keys(count);
  std::vector<int32_t> other_values(count);
  for (int pass = 0; pass < 3; ++pass) {
    const int shift = pass * kBits;
    size_t starts[kBins + 1] = {};
    for (size_t i = 0; i < count; ++i) ++starts[((keys[i] >> shift) & (kBins - 1)) + 1];
    for (int bin = 0; bin < kBins; ++bin) starts[bin + 1] += starts[bin];
    for (size_t i = 0; i < count; ++i) {
      const size_t to = starts[(keys[i] >> shift) & (kBins - 1)]++;
      other_keys[to] = keys[i];
      other_values[to] = values[i];
    }
    keys.swap(other_keys);
    values.swap(other_values);
  }
}

namespace {

// Cells that the camera may see, sorted.
void order_cells(const SceneArgs &scene, const Constants &constants, int threads, Frame &frame) {
  std::vector<uint8_t> keep(scene.cells);
  std::vector<uint32_t> all_keys(scene.cells);
  const Pose &pose = frame.pose;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t cell = 0; cell < scene.cells; ++cell) {
    const float radius = scene.radii[cell];
    const Vec<float> world = load(scene.centers + 3 * cell) - pose.eye;
    const Vec<float> local = to_camera(pose, world);
    const float reach = ball_reach(local, radius);
    const Cone root = load_cone(frame.cones + 5 * frame.levels[frame.level_count - 1].start);
    keep[cell] = scene.density[cell] > 0.0f && radius > 0.0f && local.z >= constants.near_plane &&
                 dot(world, world) >= constants.near_radii * constants.near_radii * radius * radius &&
                 cone_meets_ball(root.axis, root.cosine, root.sine, local, radius, reach);
    all_keys[cell] = sortable(origin_power(world, radius));
  }
  std::vector<uint32_t> keys;
  for (int64_t cell = 0; cell < scene.cells; ++cell) {
    if (!keep[cell]) continue;
    frame.cells.push_back(static_cast<int32_t>(cell));
    keys.push_back(all_keys[cell]);
  }
  sort_by_key(keys, frame.cells);
}

// Lists of the tiles: each thread visits a run of ranks, then every pair goes to its place, runs in order.
void fill_tiles(int threads, Frame &frame) {
  struct Pair {
    int32_t tile, rank;
  };
  const int64_t ranks = frame.ranks();
  const int runs = threads * 4, tiles = frame.tiles();
  std::vector<std::vector<Pair>> found(runs);
  std::vector<std::vector<int64_t>> counts(runs);
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
  for (int run = 0; run < runs; ++run) {
    counts[run].assign(tiles, 0);
    for (int64_t rank = ranks * run / runs; rank < ranks * (run + 1) / runs; ++rank) {
      const Vec<float> local = to_camera(frame.pose, frame.to_center[rank]);
      visit_tiles(frame.levels, frame.level_count, frame.cones, local, frame.prepared[rank].radius,
                  frame.reach[rank], [&](int tile) {
                    found[run].push_back({tile, static_cast<int32_t>(rank)});
                    ++counts[run][tile];
                  });
    }
  }
  frame.tile_start.assign(tiles + 1, 0);
  int64_t total = 0;
  for (int tile = 0; tile < tiles; ++tile) {
    frame.tile_start[tile] = total;
    for (int run = 0; run < runs; ++run) {
      const int64_t here = counts[run][tile];
      counts[run][tile] = total;
      total += here;
    }
  }
  frame.tile_start[tiles] = total;
  frame.tile_ranks.resize(total);
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
  for (int run = 0; run < runs; ++run) {
    for (const Pair &pair : found[run]) frame.tile_ranks[counts[run][pair.tile]++] = pair.rank;
  }
}

}  // namespace

void build_frame(const SceneArgs &scene, const CameraArgs &cameras, int64_t camera, const Constants &constants,
                 int threads, uint8_t *visible, Frame &frame) {
  const int64_t table = cameras.tables == 1 ? 0 : camera;
  frame.pose = load_pose(cameras.poses + 12 * camera);
  frame.width = static_cast<int>(cameras.width);
  frame.height = static_cast<int>(cameras.height);
  frame.tile_columns = (frame.width + kTile - 1) / kTile;
  frame.tile_rows = (frame.height + kTile - 1) / kTile;
  frame.intrinsics = cameras.intrinsics + 4 * camera;
  frame.directions =
      cameras.directions ? cameras.directions + 3 * table * cameras.width * cameras.height : nullptr;
  frame.level_count = cone_levels(frame.width, frame.height, frame.levels);
  frame.cones = cameras.cones + 5 * table * (frame.levels[frame.level_count - 1].start + 1);
  frame.cells.clear();
  order_cells(scene, constants, threads, frame);

  const int64_t ranks = frame.ranks();
  frame.prepared.resize(ranks);
  frame.to_center.resize(ranks);
  frame.reach.resize(ranks);
  frame.flat.resize(ranks);
  frame.edge_start.resize(ranks + 1);
  int64_t edges = 0;
  for (int64_t rank = 0; rank < ranks; ++rank) {
    const int32_t cell = frame.cells[rank];
    frame.edge_start[rank] = edges;
    edges += scene.offsets[cell + 1] - scene.offsets[cell];
  }
  frame.edge_start[ranks] = edges;
  frame.edges.reset(new Edge[edges]);
  frame.colors.reset(new float[ranks * scene.sites * 3]);
#pragma omp parallel num_threads(threads)
  {
#pragma omp for schedule(static)
    for (int64_t rank = 0; rank < ranks; ++rank) {
      const int32_t cell = frame.cells[rank];
      const Vec<float> center = load(scene.centers + 3 * cell);
      const float radius = scene.radii[cell];
      const Vec<float> to_center = center - frame.pose.eye;
      frame.prepared[rank] =
          prepare(scene.centers + 3 * cell, radius, scene.density[cell], scene.quaternions + 4 * cell);
      frame.to_center[rank] = to_center;
      frame.reach[rank] = ball_reach(to_center, radius);
      bool flat = true;
      for (int64_t k = 0; k < scene.sites; ++k) flat &= scene.heights[cell * scene.sites + k] == 0.0f;
      frame.flat[rank] = flat;
      Edge *edge = frame.edges.get() + frame.edge_start[rank];
      for (int32_t e = scene.offsets[cell]; e < scene.offsets[cell + 1]; ++e, ++edge) {
        const int32_t other = scene.neighbors[e];
        edge->toward = load(scene.centers + 3 * other) - center;
        edge->numerator = edge_numerator(edge->toward, radius, scene.radii[other], to_center, cell, other);
      }
    }
#pragma omp for schedule(static)
    for (int64_t first = 0; first < ranks * scene.sites; first += kLanes) {
      shade_sites(scene, frame.cells.data(), first, ranks * scene.sites, frame.pose.eye, frame.colors.get());
    }
  }
  fill_tiles(threads, frame);
  if (visible) {
    for (int32_t rank : frame.tile_ranks) visible[frame.cells[rank]] = 1;
  }
}

PacketInt block_directions(const Frame &frame, int column, int row, Vec<Packet> &directions) {
  Packet columns, rows;
  PacketInt inside;
  for (int lane = 0; lane < kLanes; ++lane) {
    const int x = column + lane_column(lane), y = row + lane_row(lane);
    inside[lane] = x < frame.width && y < frame.height ? -1 : 0;
    columns[lane] = static_cast<float>(x);
    rows[lane] = static_cast<float>(y);
  }
  if (!frame.directions) {
    directions = to_world(frame.pose, pinhole_direction(frame.intrinsics, columns, rows));
    return inside;
  }
  Vec<Packet> local{};
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!inside[lane]) continue;
    const float *at = frame.directions +
                      3 * (static_cast<int64_t>(row + lane_row(lane)) * frame.width + column + lane_column(lane));
    local.x[lane] = at[0];
    local.y[lane] = at[1];
    local.z[lane] = at[2];
  }
  directions = to_world(frame.pose, local);
  return inside & (dot(local, local) > 0.5f);
}

}  // namespace foam
