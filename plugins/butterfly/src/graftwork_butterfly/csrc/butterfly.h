// Butterfly transform: what the CPU and the CUDA kernels share. Plain C ABI, no torch headers.
//
// A layer is a number of independent square butterflies ("copies") of one order. Stage t of a square views the
// (padded) channel axis as (group, radix, stride) and mixes the radix axis:
//     z'[g, o, p] = sum_i T[g, o, p, i] z[g, i, p],     T of shape (groups, radix, stride, radix).
// Weights lie as one flat float array: copy by copy, stage by stage, T row-major.
// Activations lie as (batch, channels, pixels) or, channels-last, as (batch * pixels, channels).
#pragma once
#include <cstdint>
#include <cstring>

#include "graftwork.h"

namespace bft {

constexpr int kMaxStages = 24;
constexpr int kMaxRadix = 8;

enum Dtype : int { kFloat32 = 0, kBFloat16 = 1 };
enum Layout : int { kChannelsFirst = 0, kChannelsLast = 1 };

struct Plan {
  int order;     // channels of one square
  int padded;    // product of the radices, >= order; rows from order on are zero
  int copies;    // number of squares
  int in_channels;
  int out_channels;
  int residual;  // 1: every square adds its own input to its output
  int stages;
  int radix[kMaxStages];
};

// Channels that square `c` reads and writes.
struct Piece {
  int in_begin, in_count, out_begin, out_count;
};

// One activation as float32 and back; bfloat16, the upper half of a float32, travels as its 16 bits.
GRAFTWORK_HOST_DEVICE float to_float(float x) { return x; }
GRAFTWORK_HOST_DEVICE float to_float(uint16_t x) {
  const uint32_t word = (uint32_t)x << 16;
  float value;
  memcpy(&value, &word, 4);
  return value;
}
GRAFTWORK_HOST_DEVICE void from_float(float* p, float x) { *p = x; }
GRAFTWORK_HOST_DEVICE void from_float(uint16_t* p, float x) {  // to nearest even; NaN stays NaN
  uint32_t word;
  memcpy(&word, &x, 4);
  *p = x != x ? 0x7fc0 : (uint16_t)((word + 0x7fff + ((word >> 16) & 1)) >> 16);
}

GRAFTWORK_HOST_DEVICE int min_int(int a, int b) { return a < b ? a : b; }

// Wide layers (in > out) cut the input into slices and sum the squares; the others concatenate them.
GRAFTWORK_HOST_DEVICE bool sums_copies(const Plan& plan) { return plan.in_channels > plan.out_channels; }

GRAFTWORK_HOST_DEVICE Piece piece(const Plan& plan, int c) {
  const int n = plan.order;
  if (sums_copies(plan)) return {c * n, min_int(n, plan.in_channels - c * n), 0, n};
  return {0, n, c * n, min_int(n, plan.out_channels - c * n)};
}

GRAFTWORK_HOST_DEVICE int64_t weights_per_copy(const Plan& plan) {
  int64_t sum = 0;
  for (int t = 0; t < plan.stages; ++t) sum += plan.radix[t];
  return sum * plan.padded;
}

// Reads {order, padded, copies, in, out, residual, stages, radix...}; false if the numbers contradict each other.
inline bool read_plan(const int32_t* v, Plan* plan) {
  *plan = {v[0], v[1], v[2], v[3], v[4], v[5], v[6], {}};
  if (plan->stages < 1 || plan->stages > kMaxStages) return false;
  int64_t product = 1;
  for (int t = 0; t < plan->stages; ++t) {
    plan->radix[t] = v[7 + t];
    if (v[7 + t] < 2 || v[7 + t] > kMaxRadix) return false;
    product *= v[7 + t];
  }
  const int small = min_int(plan->in_channels, plan->out_channels);
  const int64_t large = (int64_t)plan->in_channels + plan->out_channels - small;
  return plan->order >= 2 && plan->order == small && product == plan->padded && plan->padded >= plan->order &&
         plan->copies == (large + small - 1) / small;
}

}  // namespace bft
