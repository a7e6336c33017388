// Weighted K-Medoids on Gram matrices, one image per thread. The matrix of one image (196 x 196 floats, 150 KB)
// stays in the second-level cache over all iterations; the passes over it vectorise.
#include <cstdint>
#include <limits>
#include <vector>

#include "graftwork.h"

namespace {

struct Scratch {
  explicit Scratch(int64_t tokens, int64_t clusters)
      : norm(tokens), best(tokens), owner(tokens), start(clusters + 1), members(tokens) {}
  // keeps the diagonal beside the matrix: it is read in every pass
  void read_norms(const float *gram) {
    const int64_t tokens = static_cast<int64_t>(norm.size());
    for (int64_t i = 0; i < tokens; ++i) norm[i] = gram[i * tokens + i];
  }
  std::vector<float> norm, best;
  std::vector<int32_t> owner;
  std::vector<int64_t> start, members;
};

// owner[i] = argmin_j |x_i - x_medoid(j)|^2, the lowest j among equals.
void assign(const float *gram, const int64_t *medoids, int64_t tokens, int64_t clusters, Scratch &s) {
  float *best = s.best.data();
  int32_t *owner = s.owner.data();
  const float *norm = s.norm.data();
  for (int64_t i = 0; i < tokens; ++i) best[i] = std::numeric_limits<float>::infinity(), owner[i] = 0;
  for (int64_t j = 0; j < clusters; ++j) {
    const int64_t medoid = medoids[j];
    const float *row = gram + medoid * tokens;
    const float own = norm[medoid];
    const int32_t label = static_cast<int32_t>(j);
    for (int64_t i = 0; i < tokens; ++i) {
      // rounds like the reference, so that both decide near ties alike
      const float distance = (norm[i] + own) - 2.0f * row[i];
      const float positive = distance > 0.0f ? distance : 0.0f;
      const bool closer = positive < best[i];
      best[i] = closer ? positive : best[i];
      owner[i] = closer ? label : owner[i];
    }
  }
}

// medoid(j) = argmin_{i in C_j} sum_{l in C_j} w_l |x_i - x_l|^2, the lowest i among equals; kept if C_j is empty.
void update(const float *gram, const float *weights, int64_t *medoids, int64_t tokens, int64_t clusters,
            Scratch &s) {
  for (int64_t j = 0; j <= clusters; ++j) s.start[j] = 0;
  for (int64_t i = 0; i < tokens; ++i) ++s.start[s.owner[i] + 1];
  for (int64_t j = 0; j < clusters; ++j) s.start[j + 1] += s.start[j];
  std::vector<int64_t> next(s.start.begin(), s.start.end() - 1);
  for (int64_t i = 0; i < tokens; ++i) s.members[next[s.owner[i]]++] = i;
  for (int64_t j = 0; j < clusters; ++j) {
    float lowest = std::numeric_limits<float>::infinity();
    for (int64_t a = s.start[j]; a < s.start[j + 1]; ++a) {
      const int64_t i = s.members[a];
      const float *row = gram + i * tokens;
      float cost = 0.0f;
      for (int64_t b = s.start[j]; b < s.start[j + 1]; ++b) {
        const int64_t l = s.members[b];
        const float distance = (s.norm[i] + s.norm[l]) - 2.0f * row[l];
        cost += weights[l] * (distance > 0.0f ? distance : 0.0f);
      }
      if (cost < lowest) lowest = cost, medoids[j] = i;
    }
  }
}

}  // namespace

// gram (B, N, N) and weights (B, N) in; seeds (B, K) out: the heaviest token, then each next one where weight times
// squared distance to the nearest seed is largest, the lowest index among equals.
GRAFTWORK_API int farthest_seeds(const float *gram, const float *weights, int64_t *seeds, int64_t batch,
                                 int64_t tokens, int64_t clusters, int threads) {
  if (clusters < 1 || clusters > tokens)
    return graftwork_fail("clusters must be in 1..%lld, got %lld", (long long)tokens, (long long)clusters);
#pragma omp parallel for num_threads(threads) schedule(static) if (batch > 1 && threads > 1)
  for (int64_t b = 0; b < batch; ++b) {
    Scratch scratch(tokens, clusters);
    const float *matrix = gram + b * tokens * tokens;
    const float *weight = weights + b * tokens;
    float *gap = scratch.best.data();
    scratch.read_norms(matrix);
    for (int64_t i = 0; i < tokens; ++i) gap[i] = std::numeric_limits<float>::infinity();
    int64_t next = 0;
    for (int64_t i = 1; i < tokens; ++i)
      if (weight[i] > weight[next]) next = i;
    for (int64_t j = 0; j < clusters; ++j) {
      seeds[b * clusters + j] = next;
      const float *row = matrix + next * tokens;
      const float own = scratch.norm[next];
      for (int64_t i = 0; i < tokens; ++i) {
        const float distance = (scratch.norm[i] + own) - 2.0f * row[i];
        const float positive = distance > 0.0f ? distance : 0.0f;
        gap[i] = positive < gap[i] ? positive : gap[i];
      }
      float largest = -1.0f;
      for (int64_t i = 0; i < tokens; ++i)
        if (gap[i] * weight[i] > largest) largest = gap[i] * weight[i], next = i;
    }
  }
  return 0;
}

// gram (B, N, N) and weights (B, N) in; medoids (B, K) holds the seeds and receives the result; assignment (B, N) out.
GRAFTWORK_API int k_medoids(const float *gram, const float *weights, int64_t *medoids, int64_t *assignment,
                            int64_t batch, int64_t tokens, int64_t clusters, int64_t iterations, int threads) {
  if (clusters < 1 || clusters > tokens)
    return graftwork_fail("clusters must be in 1..%lld, got %lld", (long long)tokens, (long long)clusters);
#pragma omp parallel for num_threads(threads) schedule(static) if (batch > 1 && threads > 1)
  for (int64_t b = 0; b < batch; ++b) {
    Scratch scratch(tokens, clusters);
    const float *matrix = gram + b * tokens * tokens;
    int64_t *chosen = medoids + b * clusters;
    scratch.read_norms(matrix);
    for (int64_t t = 0; t < iterations; ++t) {
      assign(matrix, chosen, tokens, clusters, scratch);
      update(matrix, weights + b * tokens, chosen, tokens, clusters, scratch);
    }
    assign(matrix, chosen, tokens, clusters, scratch);
    for (int64_t i = 0; i < tokens; ++i) assignment[b * tokens + i] = scratch.owner[i];
  }
  return 0;
}
