// Detail sites: the soft Voronoi diagram in a cell's plane, and the spherical one of each site's colour.
#pragma once

#include "math/lanes.h"

namespace foam {

constexpr float kSiteSharpness = 10.0f;

// K sites known to the compiler, or up to kMaxSites at run time (K = 0).
template <int K> struct SiteCount {
  static constexpr int kBound = K == 0 ? kMaxSites : K;
  FOAM_FN static constexpr int of(int sites) { return K == 0 ? sites : K; }
};

// Softmax of -10 |p - s_k|^2; the square of p is common to all and left out.
template <int K, class F>
FOAM_FN void site_weights(const float *sites, int count, const F &u, const F &v, F *weights) {
  const int n = SiteCount<K>::of(count);
  F largest;
  for (int k = 0; k < n; ++k) {
    const float x = sites[2 * k], y = sites[2 * k + 1];
    weights[k] = u * (2 * kSiteSharpness * x) + v * (2 * kSiteSharpness * y) -
                 kSiteSharpness * (x * x + y * y);
    largest = k == 0 ? weights[0] : maximum(largest, weights[k]);
  }
  F sum{};
  for (int k = 0; k < n; ++k) {
    weights[k] = exponential(weights[k] - largest);
    sum += weights[k];
  }
  const F inverse = reciprocal(sum);
  for (int k = 0; k < n; ++k) weights[k] *= inverse;
}

// From the gradient of each site's blended value: gradients of the point and, added, of the sites.
template <int K, class F>
FOAM_FN void site_weights_backward(const float *sites, int count, const F &u, const F &v, const F *weights,
                                   const F *gradient, F &gradient_u, F &gradient_v, F *site_gradient) {
  const int n = SiteCount<K>::of(count);
  F mean{};
  for (int k = 0; k < n; ++k) mean += weights[k] * gradient[k];
  gradient_u = F{};
  gradient_v = F{};
  for (int k = 0; k < n; ++k) {
    const float x = sites[2 * k], y = sites[2 * k + 1];
    const F logit = (2 * kSiteSharpness) * (weights[k] * (gradient[k] - mean));
    gradient_u += logit * x;
    gradient_v += logit * y;
    site_gradient[2 * k] += logit * (u - x);
    site_gradient[2 * k + 1] += logit * (v - y);
  }
}

// One site's colour as seen along `toward`. `axis(l)` and `color(l)` give Vec<A>: A is float if all lanes are
// of one site.
template <class F, class Axis, class Color>
FOAM_FN Vec<F> spherical_color(int axes, const Vec<F> &toward, Axis axis, Color color) {
  F logits[kMaxAxes];
  F largest{};
  for (int l = 0; l < axes; ++l) {
    const auto a = axis(l);
    const auto sharpness = square_root(dot(a, a));
    const auto inverse = reciprocal(maximum(sharpness, decltype(sharpness){} + 1e-12f));
    const auto gap = toward - scale(inverse, a);
    logits[l] = -sharpness * square_root(dot(gap, gap));
    largest = l == 0 ? logits[0] : maximum(largest, logits[l]);
  }
  F sum{};
  Vec<F> blend{};
  for (int l = 0; l < axes; ++l) {
    const F weight = exponential(logits[l] - largest);
    sum += weight;
    add(blend, scale(weight, color(l)));
  }
  const F inverse = reciprocal(sum);
  const F zero{};
  return {maximum(blend.x * inverse + 0.5f, zero), maximum(blend.y * inverse + 0.5f, zero),
          maximum(blend.z * inverse + 0.5f, zero)};
}

// Gradients of one site's axes and colours: `emit(l, axis gradient, color gradient)`.
template <class F, class Axis, class Color, class Emit>
FOAM_FN void spherical_backward(int axes, const Vec<F> &toward, Vec<F> gradient, Axis axis, Color color,
                                Emit emit) {
  F logits[kMaxAxes];
  F largest{};
  for (int l = 0; l < axes; ++l) {
    const auto a = axis(l);
    const auto sharpness = square_root(dot(a, a));
    const auto inverse = reciprocal(maximum(sharpness, decltype(sharpness){} + 1e-12f));
    const auto gap = toward - scale(inverse, a);
    logits[l] = -sharpness * square_root(dot(gap, gap));
    largest = l == 0 ? logits[0] : maximum(largest, logits[l]);
  }
  F sum{};
  Vec<F> blend{};
  for (int l = 0; l < axes; ++l) {
    logits[l] = exponential(logits[l] - largest);
    sum += logits[l];
    add(blend, scale(logits[l], color(l)));
  }
  const F inverse = reciprocal(sum);
  const F zero{};
  // the colour is clamped at zero
  gradient.x = select(blend.x * inverse + 0.5f > 0.0f, gradient.x, zero);
  gradient.y = select(blend.y * inverse + 0.5f > 0.0f, gradient.y, zero);
  gradient.z = select(blend.z * inverse + 0.5f > 0.0f, gradient.z, zero);
  const F mean = dot(gradient, blend) * inverse;
  for (int l = 0; l < axes; ++l) {
    const auto a = axis(l);
    const auto sharpness = square_root(dot(a, a));
    const auto scaled = reciprocal(maximum(sharpness, decltype(sharpness){} + 1e-12f));
    const auto unit = scale(scaled, a);
    const auto gap = toward - unit;
    const F distance = square_root(dot(gap, gap));
    const F weight = logits[l] * inverse;
    const F logit = weight * (dot(gradient, color(l)) - mean);
    // through the unit axis, of which only the part across the axis counts, and through its length
    const F pull = logit * sharpness * reciprocal(maximum(distance, F{} + 1e-12f));
    const Vec<F> direct = scale(pull, gap);
    const F along = dot(direct, unit);
    Vec<F> axis_gradient = scale(scaled, direct - scale(along, unit));
    add(axis_gradient, scale(-logit * distance, unit));
    emit(l, axis_gradient, scale(weight, gradient));
  }
}

}  // namespace foam
