// Images on the device: storing a pixel, loading its gradients, and the worth of all that a ray meets.
#pragma once

#include "abi.h"
#include "cuda/device.cuh"
#include "math/surface.h"

namespace foam {

__device__ inline void store_pixel(const ImageArgs &to, int64_t at, int quantiles, const Pixel<float> &pixel,
                                   int count) {
  to.rgb[3 * at] = pixel.color.x;
  to.rgb[3 * at + 1] = pixel.color.y;
  to.rgb[3 * at + 2] = pixel.color.z;
  to.normal[3 * at] = pixel.normal.x;
  to.normal[3 * at + 1] = pixel.normal.y;
  to.normal[3 * at + 2] = pixel.normal.z;
  to.alpha[at] = pixel.alpha;
  to.facing[at] = pixel.facing;
  to.intersections[at] = count;
  for (int q = 0; q < quantiles; ++q) to.depth[quantiles * at + q] = pixel.depth[q];
}

__device__ inline PixelGradient<float> load_gradient(const ImageGradients &images, int64_t at, int quantiles) {
  PixelGradient<float> gradient{};
  if (images.rgb) gradient.color = load(images.rgb + 3 * at);
  if (images.normal) gradient.normal = load(images.normal + 3 * at);
  if (images.alpha) gradient.alpha = images.alpha[at];
  if (images.facing) gradient.facing = images.facing[at];
  for (int q = 0; q < quantiles; ++q) gradient.depth[q] = images.depth ? images.depth[quantiles * at + q] : 0.0f;
  return gradient;
}

// What a cell adds to the worth of a ray: cell_backward() takes the same away again.
__device__ inline float worth_of(const Constants &constants, const Cell &cell, const Vec<float> &color,
                                 float facing, const Span<float> &span, bool mask, float contribution,
                                 const PixelGradient<float> &gradient, float &transmittance, float &optical) {
  const float here = mask ? cell.density * (span.leave - span.enter) : 0.0f;
  const float passed = exponential(-here), weight = mask ? transmittance * (1.0f - passed) : 0.0f;
  const float positive = maximum(facing, 0.0f), after = optical + here;
  float worth = weight * (dot(color, gradient.color) + dot(cell.normal, gradient.normal) +
                          gradient.facing * (positive * positive) + gradient.alpha + contribution);
  for (int q = 0; q < constants.quantiles; ++q) {
    const float level = constants.level[q];
    if (mask && optical <= level && after > level) worth += gradient.depth[q] / cell.density;
  }
  transmittance *= mask ? passed : 1.0f;
  optical = after;
  return worth;
}

}  // namespace foam
