// The displaced plane of a cell and the compositing of cells along a ray, forward and backward.
#pragma once

#include "math/cell.h"
#include "math/sites.h"

namespace foam {

// A ray in a cell's own coordinates: position in the plane is (u, v) = distance * slope - offset, in radii.
template <class F, class O> struct LocalRay {
  F facing, slope_u, slope_v;
  O plane, offset_u, offset_v;
};

template <class F, class O>
FOAM_FN LocalRay<F, O> local_ray(const Cell &cell, const Vec<O> &to_center, const Vec<F> &direction) {
  return {dot(cell.normal, direction),   dot(cell.across, direction),  dot(cell.down, direction),
          dot(cell.normal, to_center), dot(cell.across, to_center), dot(cell.down, to_center)};
}

// What is left of a span on the filled side of the surface n.(x - c) = height, found by one fixed-point step:
// the height is taken where the ray meets the undisplaced plane, within the cell.
template <class F, int K> struct Surface {
  F plane, query, distance, height;  // undisplaced plane, where the height is read, surface, height in radii
  F weights[SiteCount<K>::kBound];   // of the sites at the query
  Span<F> span;
};

template <int K, class F, class O>
FOAM_FN void meet_surface(const LocalRay<F, O> &ray, float radius, const float *sites, const float *heights,
                          int count, const Span<F> &walls, float near, const F &far, Surface<F, K> &s) {
  const int n = SiteCount<K>::of(count);
  const F inverse = reciprocal(ray.facing + kTiny);
  const Mask<F> leaving = ray.facing >= 0.0f;
  s.plane = ray.plane * inverse;
  s.query = select(leaving, walls.enter, minimum(maximum(walls.enter, s.plane), walls.leave));
  site_weights<K>(sites, count, F(s.query * ray.slope_u - ray.offset_u),
                  F(s.query * ray.slope_v - ray.offset_v), s.weights);
  s.height = s.weights[0] * heights[0];
  for (int k = 1; k < n; ++k) s.height += s.weights[k] * heights[k];
  s.distance = (ray.plane + radius * s.height) * inverse;
  const F enter = select(leaving, walls.enter, maximum(walls.enter, s.distance));
  const F leave = select(leaving, minimum(walls.leave, s.distance), walls.leave);
  s.span.enter = maximum(enter, F{} + near);
  s.span.leave = minimum(leave, far);
}

// A surface without heights needs no look-up.
template <class F, class O>
FOAM_FN void meet_plane(const LocalRay<F, O> &ray, const Span<F> &walls, float near, const F &far,
                        Span<F> &span) {
  const F distance = ray.plane * reciprocal(ray.facing + kTiny);
  const Mask<F> leaving = ray.facing >= 0.0f;
  const F enter = select(leaving, walls.enter, maximum(walls.enter, distance));
  const F leave = select(leaving, minimum(walls.leave, distance), walls.leave);
  span.enter = maximum(enter, F{} + near);
  span.leave = minimum(leave, far);
}

// Blend of the sites' colours where the ray enters; `color(k)` gives one of them.
template <int K, class F, class O, class Color>
FOAM_FN Vec<F> blend_colors(const LocalRay<F, O> &ray, const float *sites, int count, const F &enter,
                            Color color) {
  F weights[SiteCount<K>::kBound];
  site_weights<K>(sites, count, F(enter * ray.slope_u - ray.offset_u), F(enter * ray.slope_v - ray.offset_v),
                  weights);
  Vec<F> blend{};
  for (int k = 0; k < SiteCount<K>::of(count); ++k) add(blend, scale(weights[k], color(k)));
  return blend;
}

// Reads consecutive colours that are the same for all rays.
struct ColorTable {
  const float *at;
  FOAM_FN Vec<float> operator()(int k) const { return load(at + 3 * k); }
};

// What has been composited of a ray so far.
template <class F> struct Pixel {
  F transmittance, optical;
  Vec<F> color, normal;
  F alpha, facing;
  F depth[kMaxQuantiles];
};

template <class F> FOAM_FN void start_pixel(const Constants &constants, Pixel<F> &pixel) {
  pixel.transmittance = F{} + 1.0f;
  pixel.optical = F{};
  pixel.color = {F{}, F{}, F{}};
  pixel.normal = {F{}, F{}, F{}};
  pixel.alpha = F{};
  pixel.facing = F{};
  for (int q = 0; q < constants.quantiles; ++q) pixel.depth[q] = F{} - 1.0f;
}

// Composite a cell over the span where `mask` holds; returns its weight.
template <class F>
FOAM_FN F composite(const Constants &constants, const Cell &cell, const Vec<F> &color, const F &facing,
                    const Span<F> &span, Mask<F> mask, Pixel<F> &pixel) {
  const F optical = select(mask, cell.density * (span.leave - span.enter), F{});
  const F passed = exponential(-optical);
  const F weight = select(mask, pixel.transmittance * (1.0f - passed), F{});
  const F after = pixel.optical + optical;
  for (int q = 0; q < constants.quantiles; ++q) {
    const float level = constants.level[q];
    const Mask<F> reached = (pixel.optical <= level) & (after > level);
    if (any(reached)) {
      const F length = span.enter + (level - pixel.optical) / cell.density;
      pixel.depth[q] = select(reached, length, pixel.depth[q]);
    }
  }
  const F positive = maximum(facing, F{});
  add(pixel.color, scale(weight, color));
  add(pixel.normal, scale(weight, cell.normal));
  pixel.facing += weight * (positive * positive);
  pixel.alpha += weight;
  pixel.optical = after;
  pixel.transmittance *= select(mask, passed, F{} + 1.0f);
  return weight;
}

// Gradients of the images at a ray.
template <class F> struct PixelGradient {
  Vec<F> color, normal;
  F alpha, facing;
  F depth[kMaxQuantiles];
};

// Gradients of one cell, summed over whatever shares an instance.
template <class F, int K> struct CellGradient {
  Vec<F> center;
  F radius, density;
  Vec<F> normal, across, down;  // across, down: of the unit directions times the radius
  F heights[SiteCount<K>::kBound];
  F sites[2 * SiteCount<K>::kBound];
  Vec<F> colors[SiteCount<K>::kBound];
};

// A ray in a cell, as the backward pass needs it: the ends before the surface, what made them, and what was
// composited before.
template <class F> struct Crossing {
  Span<F> walls;
  Index<F> enter_by, leave_by;
  F transmittance, optical;
};

// Gradient dL/dt of one end of the span, at `distance` along the ray.
template <class F> struct EndGradient {
  F pull, distance;
};

// Gradients of one cell on a packet of rays. `suffix` is the worth of what lies behind: what more optical depth in
// this cell would take away. From back to front (kReverse) it starts at zero and gains this cell's worth; from
// front to back it starts at the worth of everything and loses it. The gradients of the two ends before the
// surface are returned in `at_enter` and `at_leave`, to be passed to ball_backward() or wall_backward().
// Where `mask` does not hold the crossing must be finite.
template <int K, bool kReverse, class F, class O, class Color>
FOAM_FN void cell_backward(const Constants &constants, const Cell &cell, const float *sites,
                           const float *heights, Color color, int count, bool flat, const Vec<O> &to_center, const Vec<F> &direction, const Crossing<F> &crossing,
                           const F &far, Mask<F> mask, const PixelGradient<F> &pixel, float contribution,
                           F &suffix, CellGradient<F, K> &gradient, EndGradient<F> &at_enter,
                           EndGradient<F> &at_leave) {
  const int n = SiteCount<K>::of(count);
  const F zero{};
  const LocalRay<F, O> ray = local_ray(cell, to_center, direction);
  Surface<F, K> s;
  meet_surface<K>(ray, cell.radius, sites, heights, count, crossing.walls, constants.near, far, s);
  const Mask<F> leaving = ray.facing >= 0.0f;
  const F walls_enter = crossing.walls.enter, walls_leave = crossing.walls.leave;

  // forward again: colour at the point of entry
  const F u = s.span.enter * ray.slope_u - ray.offset_u, v = s.span.enter * ray.slope_v - ray.offset_v;
  F weights[SiteCount<K>::kBound];
  if (flat) {
    for (int k = 0; k < n; ++k) weights[k] = s.weights[k];
  }
  if (!flat || any(mask & (s.span.enter != s.query))) site_weights<K>(sites, count, u, v, weights);
  F blend[SiteCount<K>::kBound];  // gradient of each site's weight: its colour along the pixel's gradient
  F brightness = zero;
  for (int k = 0; k < n; ++k) {
    blend[k] = dot(color(k), pixel.color);
    brightness += weights[k] * blend[k];
  }
  const F length = s.span.leave - s.span.enter;
  const F optical = select(mask, cell.density * length, zero);
  const F passed = exponential(-optical);
  const F weight = select(mask, crossing.transmittance * (1.0f - passed), zero);
  const F positive = maximum(ray.facing, zero);

  // compositing: value is what a unit of weight is worth, suffix what lies behind
  const F value = brightness + dot(cell.normal, pixel.normal) + pixel.facing * (positive * positive) +
                  pixel.alpha + contribution;
  const F after = crossing.optical + optical;
  F worth = weight * value, to_enter = zero, to_density = zero;
  for (int q = 0; q < constants.quantiles; ++q) {
    const float level = constants.level[q];
    const Mask<F> reached = mask & (crossing.optical <= level) & (after > level);
    if (any(reached)) {
      const F pull = select(reached, pixel.depth[q], zero);
      to_enter += pull;
      to_density -= pull * ((level - crossing.optical) / (cell.density * cell.density));
      worth += pull / cell.density;  // depth falls as the optical depth in front grows
    }
  }
  if (!kReverse) suffix -= worth;
  const F to_optical = select(mask, crossing.transmittance * passed * value - suffix, zero);
  if (kReverse) suffix += worth;
  to_density += length * to_optical;
  F to_leave = cell.density * to_optical;
  to_enter -= to_leave;
  gradient.density += select(mask, to_density, zero);
  for (int k = 0; k < n; ++k) add(gradient.colors[k], scale(weight * weights[k], pixel.color));
  add(gradient.normal, scale(weight, pixel.normal));
  add(gradient.normal, scale(2.0f * (weight * pixel.facing * positive), direction));

  // the point where the colour is read slides with the entry
  F gradient_u, gradient_v;
  F upstream[SiteCount<K>::kBound];
  for (int k = 0; k < n; ++k) upstream[k] = weight * blend[k];
  site_weights_backward<K>(sites, count, u, v, weights, upstream, gradient_u, gradient_v, gradient.sites);
  Vec<F> to_across = scale(gradient_u, scale(s.span.enter, direction) - to_center);
  Vec<F> to_down = scale(gradient_v, scale(s.span.enter, direction) - to_center);
  F scaling = u * gradient_u + v * gradient_v;  // of the radius, times minus the radius
  F sum_u = gradient_u, sum_v = gradient_v;
  to_enter += gradient_u * ray.slope_u + gradient_v * ray.slope_v;

  // each end goes to the surface, to the wall or ball, or, clamped at the ray's own ends, to nothing
  const Mask<F> on_surface =
      mask & negate(leaving) & (s.distance > walls_enter) & (s.distance > constants.near);
  const Mask<F> under_surface = mask & leaving & (s.distance < walls_leave) & (s.distance < far);
  const Mask<F> entered = mask & negate(on_surface) & (walls_enter > constants.near);
  const Mask<F> left = mask & negate(under_surface) & (walls_leave < far);
  F to_walls_enter = select(entered, to_enter, zero);
  F to_walls_leave = select(left, to_leave, zero);
  const F to_surface = select(on_surface, to_enter, select(under_surface, to_leave, zero));
  const F inverse = reciprocal(clamp_away(ray.facing + kTiny, F{} + constants.grazing + kTiny));
  const F pull = to_surface * inverse;
  Vec<F> to_normal = scale(pull, to_center - scale(s.distance, direction));
  F along_normal = pull;

  // the height, and the point where it is read
  const F to_height = pull * cell.radius;
  for (int k = 0; k < n; ++k) {
    gradient.heights[k] += to_height * s.weights[k];
    upstream[k] = to_height * heights[k];
  }
  gradient.radius += pull * s.height;
  if (!flat) {
    const F query_u = s.query * ray.slope_u - ray.offset_u, query_v = s.query * ray.slope_v - ray.offset_v;
    site_weights_backward<K>(sites, count, query_u, query_v, s.weights, upstream, gradient_u, gradient_v,
                             gradient.sites);
    add(to_across, scale(gradient_u, scale(s.query, direction) - to_center));
    add(to_down, scale(gradient_v, scale(s.query, direction) - to_center));
    scaling += query_u * gradient_u + query_v * gradient_v;
    sum_u += gradient_u;
    sum_v += gradient_v;
    const F to_query = gradient_u * ray.slope_u + gradient_v * ray.slope_v;
    const Mask<F> at_wall = leaving | (s.plane <= walls_enter);
    const Mask<F> beyond = negate(at_wall) & (s.plane >= walls_leave);
    to_walls_enter += select(mask & at_wall, to_query, zero);
    to_walls_leave += select(mask & beyond, to_query, zero);
    const F slide = select(mask & negate(at_wall | beyond), to_query, zero) * inverse;
    add(to_normal, scale(slide, to_center - scale(s.plane, direction)));
    along_normal += slide;
  }
  add(gradient.normal, to_normal);
  add(gradient.center, scale(along_normal, cell.normal));
  add(gradient.center, scale(-sum_u, cell.across));
  add(gradient.center, scale(-sum_v, cell.down));
  add(gradient.across, to_across);
  add(gradient.down, to_down);
  gradient.radius -= scaling * (1.0f / cell.radius);
  at_enter = {to_walls_enter, walls_enter};
  at_leave = {to_walls_leave, walls_leave};
}

// An end on the ball: |x - c| = r. Returns the pull on centre and radius.
template <class F, class O, int K>
FOAM_FN void ball_backward(const Constants &constants, const Cell &cell, const Vec<O> &to_center,
                           const Vec<F> &direction, const EndGradient<F> &end, Mask<F> mask,
                           CellGradient<F, K> &gradient) {
  const Vec<F> point = scale(end.distance, direction) - to_center;  // relative to the centre
  const F cosine = dot(point, direction);
  const F bound = F{} + (constants.grazing * cell.radius + kTiny);
  const F moved = select(mask, end.pull, F{});
  const F pull = moved * reciprocal(clamp_away(cosine, bound));
  // the part along the ray moves the end as it is, the part across it divided by the cosine
  add(gradient.center, scale(moved, direction));
  add(gradient.center, scale(pull, point - scale(cosine, direction)));
  gradient.radius += pull * cell.radius;
}

// An end on the wall towards a neighbour. The neighbour's gradients are
// center: toward * sum(pull) - sum(pull * point), radius: -other_radius * sum(pull).
template <class F, class O, int K>
FOAM_FN void wall_backward(const Constants &constants, const Cell &cell, const Vec<float> &toward,
                           const Vec<O> &to_center, const Vec<F> &direction, const EndGradient<F> &end,
                           Mask<F> mask, CellGradient<F, K> &gradient, F &pull, Vec<F> &pulled_point) {
  const Vec<F> point = scale(end.distance, direction) - to_center;
  const float length = sqrtf(dot(toward, toward));
  const F cosine = dot(toward, direction);
  const F bound = F{} + (constants.grazing * length + kTiny);
  pull = select(mask, end.pull * reciprocal(clamp_away(cosine, bound)), F{});
  pulled_point = scale(pull, point);
  add(gradient.center, pulled_point);
  gradient.radius += pull * cell.radius;
}

}  // namespace foam
