// SIMD vectors of float32 through the compiler's vector extensions: loads, bfloat16, transposes, reductions.
#pragma once
#include <cstdint>

#include "butterfly.h"

namespace bft {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Vec __attribute__((vector_size(kLanes * 4)));
typedef float VecLoose __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));
typedef int32_t Lanes __attribute__((vector_size(kLanes * 4)));
typedef uint32_t Word __attribute__((vector_size(kLanes * 4)));
typedef uint16_t Half __attribute__((vector_size(kLanes * 2)));
typedef uint16_t HalfLoose __attribute__((vector_size(kLanes * 2), aligned(2), may_alias));

inline Vec load(const float* p) { return *reinterpret_cast<const VecLoose*>(p); }
inline void store(float* p, Vec v) { *reinterpret_cast<VecLoose*>(p) = v; }

// bfloat16 is the upper half of a float32; stores round to nearest even and keep NaN a NaN.
inline Vec load(const uint16_t* p) {
  const Half half = *reinterpret_cast<const HalfLoose*>(p);
  return (Vec)(__builtin_convertvector(half, Word) << 16);
}
inline void store(uint16_t* p, Vec v) {
  const Word word = (Word)v;
  const Word rounded = (word + 0x7fff + ((word >> 16) & 1)) >> 16;
  const Word nan = (Word)(v != v);
  *reinterpret_cast<HalfLoose*>(p) = __builtin_convertvector((nan & 0x7fc0) | (~nan & rounded), Half);
}

// Lane index with bit `step` cleared or flipped, built at compile time for the shuffles below.
template <int kStep>
struct Pairs {
  static Lanes own() {  // a where the lane's bit is 0, b where it is 1
    Lanes m{};
    for (int l = 0; l < kLanes; ++l) m[l] = (l & kStep) ? kLanes + l : l;
    return m;
  }
  static Lanes other() {  // the same from the partner lane
    Lanes m{};
    for (int l = 0; l < kLanes; ++l) m[l] = (l & kStep) ? kLanes + (l ^ kStep) : (l ^ kStep);
    return m;
  }
  static Lanes swap_low() {  // a[l] where the bit is 0, b[l ^ step] where it is 1
    Lanes m{};
    for (int l = 0; l < kLanes; ++l) m[l] = (l & kStep) ? kLanes + (l ^ kStep) : l;
    return m;
  }
  static Lanes swap_high() {  // a[l ^ step] where the bit is 0, b[l] where it is 1
    Lanes m{};
    for (int l = 0; l < kLanes; ++l) m[l] = (l & kStep) ? kLanes + l : (l ^ kStep);
    return m;
  }
};

inline Vec shuffle(Vec a, Vec b, Lanes mask) {
#if defined(__clang__)
  Vec out;
  for (int l = 0; l < kLanes; ++l) out[l] = mask[l] < kLanes ? a[mask[l]] : b[mask[l] - kLanes];
  return out;
#else
  return __builtin_shuffle(a, b, mask);
#endif
}

// Transposes a kLanes x kLanes block held in registers.
template <int kStep = 1>
inline void transpose(Vec* v) {
  if constexpr (kStep < kLanes) {
    for (int i = 0; i < kLanes; ++i) {
      if (i & kStep) continue;
      const Vec a = v[i], b = v[i | kStep];
      v[i] = shuffle(a, b, Pairs<kStep>::swap_low());
      v[i | kStep] = shuffle(a, b, Pairs<kStep>::swap_high());
    }
    transpose<kStep * 2>(v);
  }
}

// Sums over the lanes of `kCount` vectors at once: lane l of the result holds the sum of v[l % kCount].
template <int kCount, int kStep = 1>
inline Vec sum_lanes(Vec* v) {
  if constexpr (kCount > 1) {
    for (int i = 0; i < kCount / 2; ++i) {
      const Vec a = v[2 * i], b = v[2 * i + 1];
      v[i] = shuffle(a, b, Pairs<kStep>::own()) + shuffle(a, b, Pairs<kStep>::other());
    }
    return sum_lanes<kCount / 2, kStep * 2>(v);
  } else if constexpr (kStep < kLanes) {
    v[0] += shuffle(v[0], v[0], Pairs<kStep>::other());
    return sum_lanes<1, kStep * 2>(v);
  } else {
    return v[0];
  }
}

}  // namespace bft
