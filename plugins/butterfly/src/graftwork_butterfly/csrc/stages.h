// One stage of a butterfly on a tile, forward, transposed and for its weight gradient.
//
// NV is the number of vectors of pixels in a row. A stage may write where it reads: every butterfly loads all of
// its rows before it stores any.
#pragma once
#include <cstdint>

#include "simd.h"
#include "tile.h"

namespace bft {

// Vectors of a row kept in registers at a time, so that a weight is fetched once for several of them.
template <int R, int NV>
constexpr int block_of() {
  constexpr int registers = kLanes == 16 ? 32 : 16;
  int block = NV < 4 ? NV : 4;
  while (block > 1 && (R + 1) * block >= registers) block /= 2;
  return block;
}

// What the outer stage of a square does besides writing.
struct Finish {
  In residual{};     // added if given
  bool add = false;  // add to what is there
};

// dst = T src, or T transposed; kLast stages also finish.
template <int R, int NV, bool kTransposed, bool kLast>
void mix(In src, Out dst, const float* w, int groups, int stride, Finish finish) {
  constexpr int B = block_of<R, NV>();
  const int64_t to_next = (int64_t)stride * R;  // weights of one output digit to those of the next
  for (int g = 0; g < groups; ++g) {
    for (int p = 0; p < stride; ++p) {
      const int64_t base = (int64_t)g * R * stride + p;
      const float* wp = w + ((int64_t)g * R * stride + p) * R;
      for (int v0 = 0; v0 < NV * kLanes; v0 += B * kLanes) {
        Vec x[R][B];
        for (int i = 0; i < R; ++i)
          for (int v = 0; v < B; ++v) x[i][v] = load(src[base + (int64_t)i * stride] + v0 + v * kLanes);
        for (int o = 0; o < R; ++o) {
          const int64_t row = base + (int64_t)o * stride;
          Vec y[B];
          for (int v = 0; v < B; ++v) y[v] = x[0][v] * (kTransposed ? wp[o] : wp[o * to_next]);
          for (int i = 1; i < R; ++i) {
            const float weight = kTransposed ? wp[i * to_next + o] : wp[o * to_next + i];
            for (int v = 0; v < B; ++v) y[v] += x[i][v] * weight;
          }
          float* to = dst[row] + v0;
          if (kLast && finish.residual.at)
            for (int v = 0; v < B; ++v) y[v] += load(finish.residual[row] + v0 + v * kLanes);
          if (kLast && finish.add)
            for (int v = 0; v < B; ++v) y[v] += load(to + v * kLanes);
          for (int v = 0; v < B; ++v) store(to + v * kLanes, y[v]);
        }
      }
    }
  }
}

// gw[g, p, o, i] += sum over pixels of gy[o] * x[i]; the order differs from T's so that one butterfly's sums are
// contiguous.
template <int R, int NV>
void weight_gradient(In x, In gy, float* gw, int groups, int stride) {
  constexpr int kBlock = R <= 4 ? R : (R == 5 ? 3 : 2);  // output digits per pass: at most 16 running sums
  for (int g = 0; g < groups; ++g) {
    for (int p = 0; p < stride; ++p, gw += R * R) {
      const int64_t base = (int64_t)g * R * stride + p;
      for (int o0 = 0; o0 < R; o0 += kBlock) {
        Vec sum[16] = {};
        for (int v = 0; v < NV * kLanes; v += kLanes) {
          Vec z[R];
          for (int i = 0; i < R; ++i) z[i] = load(x[base + (int64_t)i * stride] + v);
          for (int o = 0; o < kBlock; ++o) {
            if (R % kBlock && o0 + o >= R) break;
            const Vec d = load(gy[base + (int64_t)(o0 + o) * stride] + v);
            for (int i = 0; i < R; ++i) sum[o * R + i] += d * z[i];
          }
        }
        const int count = (R - o0 < kBlock ? R - o0 : kBlock) * R;
        float* to = gw + o0 * R;
        if constexpr (kBlock * R == 16 && kLanes == 16) {
          store(to, load(to) + sum_lanes<16>(sum));
        } else if constexpr (kBlock * R == 4) {
          const Vec total = sum_lanes<4>(sum);
          for (int k = 0; k < 4; ++k) to[k] += total[k];
        } else {
          constexpr int kChunk = kLanes < 16 ? kLanes : 16;
          for (int k0 = 0; k0 < count; k0 += kChunk) {
            const Vec total = sum_lanes<kChunk>(sum + k0);
            for (int k = 0; k < kChunk && k0 + k < count; ++k) to[k0 + k] += total[k];
          }
        }
      }
    }
  }
}

template <int NV, bool kTransposed, bool kLast>
void mix(int radix, In src, Out dst, const float* w, int groups, int stride, Finish finish = {}) {
  switch (radix) {
    case 2: return mix<2, NV, kTransposed, kLast>(src, dst, w, groups, stride, finish);
    case 3: return mix<3, NV, kTransposed, kLast>(src, dst, w, groups, stride, finish);
    case 4: return mix<4, NV, kTransposed, kLast>(src, dst, w, groups, stride, finish);
    case 5: return mix<5, NV, kTransposed, kLast>(src, dst, w, groups, stride, finish);
    case 6: return mix<6, NV, kTransposed, kLast>(src, dst, w, groups, stride, finish);
    case 7: return mix<7, NV, kTransposed, kLast>(src, dst, w, groups, stride, finish);
    case 8: return mix<8, NV, kTransposed, kLast>(src, dst, w, groups, stride, finish);
  }
}

template <int NV>
void weight_gradient(int radix, In x, In gy, float* gw, int groups, int stride) {
  switch (radix) {
    case 2: return weight_gradient<2, NV>(x, gy, gw, groups, stride);
    case 3: return weight_gradient<3, NV>(x, gy, gw, groups, stride);
    case 4: return weight_gradient<4, NV>(x, gy, gw, groups, stride);
    case 5: return weight_gradient<5, NV>(x, gy, gw, groups, stride);
    case 6: return weight_gradient<6, NV>(x, gy, gw, groups, stride);
    case 7: return weight_gradient<7, NV>(x, gy, gw, groups, stride);
    case 8: return weight_gradient<8, NV>(x, gy, gw, groups, stride);
  }
}

}  // namespace bft
