// Elementary functions on one ray (float) or on a packet of rays (packet.h), under the same names.
//
// The mathematics of the method is written once against these names: `F` is float or Packet, `Mask<F>` the
// result of a comparison, `Index<F>` an integer per ray.
#pragma once

#include <cmath>
#include <cstdint>

#include "graftwork.h"

#define FOAM_FN GRAFTWORK_HOST_DEVICE

namespace foam {

constexpr int kMaxSites = 32;
constexpr int kMaxAxes = 32;
constexpr int kMaxQuantiles = 8;
constexpr float kTiny = 1e-20f;

template <class F> struct LaneTypes;
template <> struct LaneTypes<float> {
  using Mask = bool;
  using Index = int32_t;
};
template <class F> using Mask = typename LaneTypes<F>::Mask;
template <class F> using Index = typename LaneTypes<F>::Index;

FOAM_FN float select(bool mask, float yes, float no) { return mask ? yes : no; }
FOAM_FN int32_t select(bool mask, int32_t yes, int32_t no) { return mask ? yes : no; }
FOAM_FN float minimum(float a, float b) { return a < b ? a : b; }
FOAM_FN float maximum(float a, float b) { return a > b ? a : b; }
FOAM_FN float magnitude(float a) { return fabsf(a); }
FOAM_FN float square_root(float a) { return sqrtf(a); }
FOAM_FN float reciprocal(float a) { return 1.0f / a; }
FOAM_FN float exponential(float a) { return expf(a); }
FOAM_FN bool any(bool mask) { return mask; }
FOAM_FN bool negate(bool mask) { return !mask; }

}  // namespace foam

// Packets come before the templates that use them: these types are found by name only where they are declared.
#if !defined(__CUDACC__)
#include "math/packet.h"
#endif

namespace foam {

// A cosine moved away from zero, keeping its sign: what gradients divide by.
template <class F> FOAM_FN F clamp_away(F cosine, F bound) {
  const F far = maximum(magnitude(cosine), bound);
  return select(cosine < F{}, -far, far);
}

template <class F> struct Vec {
  F x, y, z;
};

template <class A, class B> FOAM_FN auto dot(const Vec<A> &a, const Vec<B> &b) {
  return a.x * b.x + a.y * b.y + a.z * b.z;
}
template <class A, class B> FOAM_FN auto operator+(const Vec<A> &a, const Vec<B> &b) {
  return Vec<decltype(a.x + b.x)>{a.x + b.x, a.y + b.y, a.z + b.z};
}
template <class A, class B> FOAM_FN auto operator-(const Vec<A> &a, const Vec<B> &b) {
  return Vec<decltype(a.x - b.x)>{a.x - b.x, a.y - b.y, a.z - b.z};
}
template <class S, class A> FOAM_FN auto scale(const S &s, const Vec<A> &a) {
  return Vec<decltype(s * a.x)>{s * a.x, s * a.y, s * a.z};
}
template <class A, class B> FOAM_FN void add(Vec<A> &sum, const Vec<B> &term) {
  sum.x += term.x;
  sum.y += term.y;
  sum.z += term.z;
}

FOAM_FN Vec<float> load(const float *at) { return {at[0], at[1], at[2]}; }

}  // namespace foam
