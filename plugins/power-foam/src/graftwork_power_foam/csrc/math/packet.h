// Sixteen rays at once, in the compiler's vector extension: one AVX-512 register, two of AVX2, four of NEON.
#pragma once

#include <cstring>

#if defined(__AVX512F__) && defined(__AVX512DQ__)
#include <immintrin.h>
#define FOAM_AVX512 1
#elif defined(__AVX__)
#include <immintrin.h>
#endif

// Included by lanes.h, never alone.
namespace foam {

constexpr int kLanes = 16;

typedef float Packet __attribute__((vector_size(4 * kLanes)));
typedef int32_t PacketInt __attribute__((vector_size(4 * kLanes)));

template <> struct LaneTypes<Packet> {
  using Mask = PacketInt;
  using Index = PacketInt;
};

inline Packet splat(float value) { return value - Packet{}; }
inline PacketInt splat(int32_t value) { return value - PacketInt{}; }
inline Packet as_float(PacketInt bits) {
  Packet result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}

inline Packet select(PacketInt mask, Packet yes, Packet no) { return mask ? yes : no; }
inline PacketInt select(PacketInt mask, PacketInt yes, PacketInt no) { return mask ? yes : no; }
inline Packet minimum(Packet a, Packet b) { return a < b ? a : b; }
inline Packet maximum(Packet a, Packet b) { return a > b ? a : b; }
inline Packet minimum(Packet a, float b) { return minimum(a, splat(b)); }
inline Packet maximum(Packet a, float b) { return maximum(a, splat(b)); }
inline Packet magnitude(Packet a) {
  PacketInt bits;
  std::memcpy(&bits, &a, sizeof bits);
  return as_float(bits & 0x7fffffff);
}

inline PacketInt negate(PacketInt mask) { return ~mask; }

// One bit per lane, the lowest for lane 0.
inline uint32_t bits_of(PacketInt mask) {
#if defined(FOAM_AVX512)
  return _mm512_movepi32_mask(reinterpret_cast<__m512i>(mask));
#else
  uint32_t bits = 0;
  for (int lane = 0; lane < kLanes; ++lane) bits |= static_cast<uint32_t>(mask[lane] & 1) << lane;
  return bits;
#endif
}
inline bool any(PacketInt mask) {
#if defined(FOAM_AVX512)
  return bits_of(mask) != 0;
#else
  int64_t words[kLanes / 2], all = 0;
  std::memcpy(words, &mask, sizeof words);
  for (int64_t word : words) all |= word;
  return all != 0;
#endif
}

inline Packet square_root(Packet a) {
#if defined(FOAM_AVX512)
  return reinterpret_cast<Packet>(_mm512_sqrt_ps(reinterpret_cast<__m512>(a)));
#elif defined(__AVX__)
  __m256 halves[2];
  std::memcpy(halves, &a, sizeof halves);
  halves[0] = _mm256_sqrt_ps(halves[0]);
  halves[1] = _mm256_sqrt_ps(halves[1]);
  std::memcpy(&a, halves, sizeof halves);
  return a;
#else
  for (int lane = 0; lane < kLanes; ++lane) a[lane] = __builtin_sqrtf(a[lane]);
  return a;
#endif
}

// 1 / a to the last bit or two; `a` must be neither zero nor infinite.
inline Packet reciprocal(Packet a) {
#if defined(FOAM_AVX512)
  const Packet guess = reinterpret_cast<Packet>(_mm512_rcp14_ps(reinterpret_cast<__m512>(a)));
  return guess + guess * (1.0f - a * guess);
#else
  return 1.0f / a;
#endif
}

// exp to 2e-7 relative; below -87 the result is about 1e-38 instead of smaller.
inline Packet exponential(Packet a) {
  a = maximum(minimum(a, 88.0f), -87.0f);
  const float shift = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const Packet shifted = a * 1.44269504f + shift;
  const Packet whole = shifted - shift;
  const Packet rest = (a - whole * 0.693359375f) + whole * 2.12194440e-4f;
  Packet sum = rest * (1.0f / 720.0f) + (1.0f / 120.0f);
  sum = sum * rest + (1.0f / 24.0f);
  sum = sum * rest + (1.0f / 6.0f);
  sum = sum * rest + 0.5f;
  sum = sum * rest + 1.0f;
  sum = sum * rest + 1.0f;
  const PacketInt exponent = __builtin_convertvector(whole, PacketInt);
  return sum * as_float((exponent + 127) << 23);
}

inline float sum_lanes(Packet a) {
  typedef float Half __attribute__((vector_size(2 * kLanes)));
  Half halves[2];
  std::memcpy(halves, &a, sizeof halves);
  const Half folded = halves[0] + halves[1];
  float sum = 0;
  for (int lane = 0; lane < kLanes / 2; ++lane) sum += folded[lane];
  return sum;
}

// Sums of sixteen packets: lane i of the result is the sum over the lanes of packets[i].
inline Packet sum_each(const Packet *packets) {
  Packet level[kLanes];
  std::memcpy(level, packets, sizeof level);
  // each round folds pairs of packets: lanes whose index has the round's bit hold the second one's sums
#define FOAM_FOLD(count, low, high)                                                      \
  for (int i = 0; i < count; ++i) {                                                      \
    const Packet a = level[i], b = level[i + count];                                     \
    level[i] = __builtin_shuffle(a, b, low) + __builtin_shuffle(a, b, high);             \
  }
  FOAM_FOLD(8, (PacketInt{0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23}),
            (PacketInt{8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31}))
  FOAM_FOLD(4, (PacketInt{0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27}),
            (PacketInt{4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31}))
  FOAM_FOLD(2, (PacketInt{0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29}),
            (PacketInt{2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31}))
  FOAM_FOLD(1, (PacketInt{0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30}),
            (PacketInt{1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31}))
#undef FOAM_FOLD
  return level[0];
}

}  // namespace foam
