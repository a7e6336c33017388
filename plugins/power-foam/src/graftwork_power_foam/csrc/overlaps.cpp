// Overlapping balls of every ball.
#include <algorithm>
#include <memory>
#include <vector>

#include "cpu/frame.h"
#include "math/bvh.h"

namespace foam {
namespace {

Box box_of_centers(const float *centers, int64_t count) {
  Box box = empty_box();
  for (int64_t i = 0; i < count; ++i) box = join(box, ball_box(load(centers + 3 * i), 0.0f));
  return box;
}

struct Tree {
  std::vector<int32_t> order;
  std::vector<Box> nodes;
  BallTree view;
};

void build_tree(const float *centers, const float *radii, int64_t count, int threads, Tree &tree) {
  const Box box = box_of_centers(centers, count);
  std::vector<uint32_t> keys(count);
  tree.order.resize(count);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t i = 0; i < count; ++i) {
    keys[i] = morton(load(centers + 3 * i), box);
    tree.order[i] = static_cast<int32_t>(i);
  }
  sort_by_key(keys, tree.order);
  int64_t leaves = 1;
  while (leaves * kLeaf < count) leaves *= 2;
  tree.nodes.assign(2 * leaves, empty_box());
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t leaf = 0; leaf < (count + kLeaf - 1) / kLeaf; ++leaf) {
    Box bounds = empty_box();
    for (int64_t i = leaf * kLeaf; i < (leaf + 1) * kLeaf && i < count; ++i) {
      const int64_t ball = tree.order[i];
      bounds = join(bounds, ball_box(load(centers + 3 * ball), radii[ball]));
    }
    tree.nodes[leaves + leaf] = bounds;
  }
  for (int64_t node = leaves - 1; node >= 1; --node) {
    tree.nodes[node] = join(tree.nodes[2 * node], tree.nodes[2 * node + 1]);
  }
  tree.view = {centers, radii, tree.order.data(), tree.nodes.data(), count, leaves};
}

// The result of the last call on this thread, until it is taken.
thread_local std::vector<int32_t> found;

}  // namespace
}  // namespace foam

// Finds the neighbours of all balls and writes their offsets (N + 1); foam_take_overlaps() gives the neighbours.
GRAFTWORK_API int foam_find_overlaps(const float *centers, const float *radii, int64_t count, double margin,
                                     int32_t *offsets, int64_t threads) {
  using namespace foam;
  if (threads < 1) return graftwork_fail("threads must be positive, got %lld", static_cast<long long>(threads));
  constexpr int64_t kRun = 256;  // balls of the order that one task looks after
  const int64_t runs = (count + kRun - 1) / kRun;
  const float gap = static_cast<float>(margin);
  const int workers = static_cast<int>(threads);
  Tree tree;
  build_tree(centers, radii, count, workers, tree);
  std::vector<std::vector<int32_t>> rows(runs);
  std::vector<int32_t> degrees(count);
#pragma omp parallel num_threads(workers)
  {
    std::vector<std::pair<float, int32_t>> row;
#pragma omp for schedule(dynamic, 1)
    for (int64_t run = 0; run < runs; ++run) {
      for (int64_t i = run * kRun; i < (run + 1) * kRun && i < count; ++i) {
        const int32_t cell = tree.order[i];
        const Vec<float> center = load(centers + 3 * static_cast<int64_t>(cell));
        row.clear();
        visit_overlaps(tree.view, cell, gap, [&](int32_t other) {
          const Vec<float> toward = load(centers + 3 * static_cast<int64_t>(other)) - center;
          row.emplace_back(wall_distance(toward, radii[cell], radii[other]), other);
        });
        std::sort(row.begin(), row.end());
        degrees[cell] = static_cast<int32_t>(row.size());
        for (const auto &entry : row) rows[run].push_back(entry.second);
      }
    }
  }
  int64_t total = 0;
  for (int64_t cell = 0; cell < count; ++cell) {
    offsets[cell] = static_cast<int32_t>(total);
    total += degrees[cell];
    if (total > INT32_MAX) {
      return graftwork_fail("more than 2^31 overlapping pairs among %lld balls: their radii are far too large",
                            static_cast<long long>(count));
    }
  }
  offsets[count] = static_cast<int32_t>(total);
  found.resize(total);
#pragma omp parallel for num_threads(workers) schedule(dynamic, 1)
  for (int64_t run = 0; run < runs; ++run) {
    const int32_t *from = rows[run].data();
    for (int64_t i = run * kRun; i < (run + 1) * kRun && i < count; ++i) {
      const int32_t cell = tree.order[i];
      std::copy(from, from + degrees[cell], found.data() + offsets[cell]);
      from += degrees[cell];
    }
  }
  return 0;
}

// Hands out the neighbours that foam_find_overlaps() found on this thread.
GRAFTWORK_API int foam_take_overlaps(int32_t *neighbors, int64_t count) {
  if (count != static_cast<int64_t>(foam::found.size())) {
    return graftwork_fail("%lld neighbours asked for, %lld found", static_cast<long long>(count),
                          static_cast<long long>(foam::found.size()));
  }
  std::copy(foam::found.begin(), foam::found.end(), neighbors);
  std::vector<int32_t>().swap(foam::found);
  return 0;
}
