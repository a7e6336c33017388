// Overlapping balls of every ball, on the device.
#include "cuda/device.cuh"
#include "math/bvh.h"

namespace foam {
namespace {

constexpr int kBoundsThreads = 1024;

// Box of all centres. One block: the first pass of a build that is rare.
__global__ void bound_centers(const float *centers, int64_t count, Box *boxes) {
  Box box = empty_box();
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    box = join(box, ball_box(load(centers + 3 * i), 0.0f));
  }
  boxes[static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x] = box;
}

__global__ void join_boxes(Box *boxes, int64_t half) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < half) boxes[i] = join(boxes[i], boxes[i + half]);
}

__global__ void morton_keys(const float *centers, int64_t count, const Box *box, uint32_t *keys, int32_t *order) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= count) return;
  keys[i] = morton(load(centers + 3 * i), *box);
  order[i] = static_cast<int32_t>(i);
}

__global__ void fill_leaves(const float *centers, const float *radii, const int32_t *order, int64_t count,
                            int64_t leaves, Box *nodes) {
  const int64_t leaf = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (leaf >= leaves) return;
  Box box = empty_box();
  for (int64_t i = leaf * kLeaf; i < (leaf + 1) * kLeaf && i < count; ++i) {
    box = join(box, ball_box(load(centers + 3 * static_cast<int64_t>(order[i])), radii[order[i]]));
  }
  nodes[leaves + leaf] = box;
}

__global__ void join_level(Box *nodes, int64_t first) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < first) nodes[first + i] = join(nodes[2 * (first + i)], nodes[2 * (first + i) + 1]);
}

__global__ void count_overlaps(BallTree tree, float margin, int32_t *degrees) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i > tree.count) return;
  if (i == tree.count) {
    degrees[i] = 0;
    return;
  }
  int32_t degree = 0;
  visit_overlaps(tree, tree.order[i], margin, [&](int32_t) { ++degree; });
  degrees[tree.order[i]] = degree;
}

// Writes each row sorted by the usefulness of its walls; rows beyond the capacity are left out.
__global__ void write_overlaps(BallTree tree, float margin, const int32_t *offsets, int64_t capacity,
                               int32_t *neighbors, float *distances) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= tree.count) return;
  const int32_t cell = tree.order[i];
  if (offsets[cell + 1] > capacity) return;
  const Vec<float> center = load(tree.centers + 3 * static_cast<int64_t>(cell));
  const int32_t first = offsets[cell];
  int32_t end = first;
  visit_overlaps(tree, cell, margin, [&](int32_t other) {
    const Vec<float> toward = load(tree.centers + 3 * static_cast<int64_t>(other)) - center;
    const float distance = wall_distance(toward, tree.radii[cell], tree.radii[other]);
    int32_t at = end++;
    for (; at > first && distances[at - 1] > distance; --at) {
      distances[at] = distances[at - 1];
      neighbors[at] = neighbors[at - 1];
    }
    distances[at] = distance;
    neighbors[at] = other;
  });
}

int build_tree(const float *centers, const float *radii, int64_t count, Scratch &scratch, BallTree &tree) {
  const cudaStream_t stream = scratch.stream();
  constexpr int64_t kBoxes = 8 * kBoundsThreads;
  Box *boxes, *nodes;
  uint32_t *keys;
  int32_t *order;
  FOAM_TRY(scratch.take(boxes, kBoxes));
  FOAM_TRY(scratch.take(keys, count));
  FOAM_TRY(scratch.take(order, count));
  int64_t leaves = 1;
  while (leaves * kLeaf < count) leaves *= 2;
  FOAM_TRY(scratch.take(nodes, 2 * leaves));
  FOAM_LAUNCH(bound_centers, kBoxes / kBlockThreads, kBlockThreads, stream, centers, count, boxes);
  for (int64_t half = kBoxes / 2; half >= 1; half /= 2) {
    FOAM_LAUNCH(join_boxes, blocks_for(half), kBlockThreads, stream, boxes, half);
  }
  FOAM_LAUNCH(morton_keys, blocks_for(count), kBlockThreads, stream, centers, count, boxes, keys, order);
  FOAM_TRY(sort_pairs(scratch, keys, order, count, 30));
  FOAM_LAUNCH(fill_leaves, blocks_for(leaves), kBlockThreads, stream, centers, radii, order, count, leaves, nodes);
  for (int64_t first = leaves / 2; first >= 1; first /= 2) {
    FOAM_LAUNCH(join_level, blocks_for(first), kBlockThreads, stream, nodes, first);
  }
  tree = {centers, radii, order, nodes, count, leaves};
  return 0;
}

}  // namespace
}  // namespace foam

// Offsets (N + 1) of the neighbours of all balls, and those neighbours as far as the capacity goes: with a list
// that is too short the caller sees it from the last offset and calls again.
GRAFTWORK_API int foam_cuda_overlaps(const float *centers, const float *radii, int64_t count, double margin,
                                     int32_t *offsets, int32_t *neighbors, int64_t capacity, void *stream) {
  using namespace foam;
  const auto on = static_cast<cudaStream_t>(stream);
  FOAM_TRY(keep_pool());
  Scratch scratch(on);
  BallTree tree;
  int32_t *degrees;
  float *distances;
  const float gap = static_cast<float>(margin);
  FOAM_TRY(build_tree(centers, radii, count, scratch, tree));
  FOAM_TRY(scratch.take(degrees, count + 1));
  FOAM_TRY(scratch.take(distances, capacity));
  FOAM_LAUNCH(count_overlaps, blocks_for(count + 1), kBlockThreads, on, tree, gap, degrees);
  FOAM_TRY(exclusive_sum(scratch, degrees, offsets, count + 1));
  FOAM_LAUNCH(write_overlaps, blocks_for(count), kBlockThreads, on, tree, gap, offsets, capacity, neighbors,
              distances);
  GRAFTWORK_CUDA(cudaGetLastError());
  return 0;
}
