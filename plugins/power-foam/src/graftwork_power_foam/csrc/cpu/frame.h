// What one camera sees: visible cells in the order of their power at the eye, and the list of every tile.
#pragma once

#include <memory>
#include <vector>

#include "abi.h"
#include "cpu/shade.h"
#include "math/camera.h"

namespace foam {

// A wall of a cell, seen from the eye: toward.(x - eye) = numerator.
struct Edge {
  Vec<float> toward;
  float numerator;
};

struct Frame {
  Pose pose;
  int width, height, tile_columns, tile_rows;
  const float *intrinsics, *directions, *cones;
  ConeLevel levels[kMaxLevels];
  int level_count;

  // by rank, the place in the order
  std::vector<int32_t> cells;
  std::vector<Cell> prepared;
  std::vector<Vec<float>> to_center;
  std::vector<float> reach;
  std::vector<uint8_t> flat;
  std::vector<int64_t> edge_start;
  std::unique_ptr<Edge[]> edges;
  std::unique_ptr<float[]> colors;  // (ranks, K, 3)

  // ranks of each tile, ascending
  std::vector<int64_t> tile_start;
  std::vector<int32_t> tile_ranks;

  int tiles() const { return tile_columns * tile_rows; }
  int64_t ranks() const { return static_cast<int64_t>(cells.size()); }
};

// Sort keys ascending, stable, carrying values: three passes of eleven bits.
void sort_by_key(std::vector<uint32_t> &keys, std::vector<int32_t> &values);

// Bits of a float that sort as unsigned integers.
inline uint32_t sortable(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

void build_frame(const SceneArgs &scene, const CameraArgs &cameras, int64_t camera, const Constants &constants,
                 int threads, uint8_t *visible, Frame &frame);

// Directions of a 4 x 4 block of pixels, world; returns the lanes that have a ray.
PacketInt block_directions(const Frame &frame, int column, int row, Vec<Packet> &directions);

constexpr int kBlock = 4;

inline int lane_column(int lane) { return lane & 3; }
inline int lane_row(int lane) { return lane >> 2; }

}  // namespace foam
