// A cell on a ray: its ball, the walls that clip it, and the displaced plane that halves it.
#pragma once

#include "math/lanes.h"

namespace foam {

// Constants of a rendering; the fields of Settings in rendering.py, and the levels of the quantiles.
struct Constants {
  float stop, near, near_radii, near_plane, grazing;
  int32_t quantiles;
  float level[kMaxQuantiles];  // optical depth at which each quantile is reached, -ln(q)
};

// What a ray meets of a cell. Names of ends: which surface gave each of them.
template <class F> struct Span {
  F enter, leave;
};

constexpr int32_t kBall = -1;  // otherwise the index of the neighbour behind the wall

// The dipole frame of a cell and what it is rendered with; made once per frame by prepare().
struct Cell {
  Vec<float> center;
  float radius, density;
  Vec<float> normal;
  Vec<float> across, down;  // in-plane directions divided by the radius
};

FOAM_FN void quaternion_frame(const float *wxyz, Vec<float> &n, Vec<float> &t, Vec<float> &b) {
  const float length =
      sqrtf(wxyz[0] * wxyz[0] + wxyz[1] * wxyz[1] + wxyz[2] * wxyz[2] + wxyz[3] * wxyz[3]);
  const float inverse = 1.0f / (length > 1e-12f ? length : 1e-12f);
  const float w = wxyz[0] * inverse, x = wxyz[1] * inverse, y = wxyz[2] * inverse, z = wxyz[3] * inverse;
  n = {1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)};
  t = {2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)};
  b = {2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)};
}

// Gradient of the raw quaternion from those of the three unit vectors.
FOAM_FN void quaternion_backward(const float *wxyz, const Vec<float> &gn, const Vec<float> &gt,
                                 const Vec<float> &gb, float *gradient) {
  const float length =
      sqrtf(wxyz[0] * wxyz[0] + wxyz[1] * wxyz[1] + wxyz[2] * wxyz[2] + wxyz[3] * wxyz[3]);
  const float inverse = 1.0f / (length > 1e-12f ? length : 1e-12f);
  const float w = wxyz[0] * inverse, x = wxyz[1] * inverse, y = wxyz[2] * inverse, z = wxyz[3] * inverse;
  const float gw = 2 * (-z * gn.y + y * gn.z + z * gt.x - x * gt.z - y * gb.x + x * gb.y);
  const float gx = 2 * (y * gn.y + z * gn.z + y * gt.x - 2 * x * gt.y - w * gt.z + z * gb.x + w * gb.y -
                        2 * x * gb.z);
  const float gy = 2 * (-2 * y * gn.x + x * gn.y + w * gn.z + x * gt.x + z * gt.z - w * gb.x + z * gb.y -
                        2 * y * gb.z);
  const float gz = 2 * (-2 * z * gn.x - w * gn.y + x * gn.z + w * gt.x - 2 * z * gt.y + y * gt.z +
                        x * gb.x + y * gb.y);
  const float along = gw * w + gx * x + gy * y + gz * z;
  gradient[0] = (gw - along * w) * inverse;
  gradient[1] = (gx - along * x) * inverse;
  gradient[2] = (gy - along * y) * inverse;
  gradient[3] = (gz - along * z) * inverse;
}

FOAM_FN Cell prepare(const float *center, float radius, float density, const float *wxyz) {
  Cell cell;
  Vec<float> t, b;
  quaternion_frame(wxyz, cell.normal, t, b);
  const float inverse = 1.0f / (radius > kTiny ? radius : kTiny);
  cell.center = load(center);
  cell.radius = radius;
  cell.density = density;
  cell.across = scale(inverse, t);
  cell.down = scale(inverse, b);
  return cell;
}

// Power of the ray's origin: the key of the exact order along every ray from there.
FOAM_FN float origin_power(const Vec<float> &to_center, float radius) {
  const float distance = sqrtf(dot(to_center, to_center));
  return (distance - radius) * (distance + radius);
}

// Interval of a ray in a ball, from the ball's closest point to avoid cancellation; false if it misses.
// `to_center` is the centre minus the ray's origin: O is float where all rays of a packet share it.
template <class F, class O>
FOAM_FN Mask<F> meet_ball(const Vec<O> &to_center, float radius, const Vec<F> &direction, float near,
                          Span<F> &span) {
  const F along = dot(to_center, direction);
  const Vec<F> aside = to_center - scale(along, direction);
  const F half = radius * radius - dot(aside, aside);
  const F root = square_root(maximum(half, F{}));
  span.enter = along - root;
  span.leave = along + root;
  return (half > 0.0f) & (span.leave > near);
}

// The wall towards a neighbour: {x : toward.(x - origin) = numerator}, kept is the smaller side.
template <class F, class N>
FOAM_FN void clip_wall(const Vec<float> &toward, const N &numerator, const Vec<F> &direction, Span<F> &span) {
  const F cosine = dot(toward, direction) + kTiny;  // exactly parallel rays lie on one side or the other
  const F distance = numerator * reciprocal(cosine);
  const Mask<F> entering = cosine < 0.0f;
  span.enter = select(entering & (distance > span.enter), distance, span.enter);
  span.leave = select((cosine >= 0.0f) & (distance < span.leave), distance, span.leave);
}

// The same, remembering which wall made each end.
template <class F, class N>
FOAM_FN void clip_wall(const Vec<float> &toward, const N &numerator, const Vec<F> &direction, Span<F> &span,
                       int32_t neighbor, Index<F> &enter_by, Index<F> &leave_by) {
  const F cosine = dot(toward, direction) + kTiny;
  const F distance = numerator * reciprocal(cosine);
  const Mask<F> later = (cosine < 0.0f) & (distance > span.enter);
  const Mask<F> sooner = (cosine >= 0.0f) & (distance < span.leave);
  span.enter = select(later, distance, span.enter);
  span.leave = select(sooner, distance, span.leave);
  const Index<F> by = neighbor - Index<F>{};
  enter_by = select(later, by, enter_by);
  leave_by = select(sooner, by, leave_by);
}

// Where the wall lies: numerator of clip_wall() in the cell-relative form, which does not cancel.
template <class O>
FOAM_FN O wall_numerator(const Vec<float> &toward, float radius, float other_radius, const Vec<O> &to_center) {
  const float offset = 0.5f * (dot(toward, toward) + (radius - other_radius) * (radius + other_radius));
  return offset + dot(toward, to_center);
}

// The same for balls whose neighbours were found by overlap: of two identical balls the first owns the cell.
FOAM_FN float edge_numerator(const Vec<float> &toward, float radius, float other_radius,
                             const Vec<float> &to_center, int64_t cell, int64_t other) {
  const bool same = toward.x == 0.0f && toward.y == 0.0f && toward.z == 0.0f && radius == other_radius;
  if (same) return cell < other ? 1.0f : -1.0f;
  return wall_numerator(toward, radius, other_radius, to_center);
}

}  // namespace foam
