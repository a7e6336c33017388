// Images: storing packets of pixels, loading their gradients.
#pragma once

#include "abi.h"
#include "math/surface.h"

namespace foam {

inline void store_pixel(const ImageArgs &to, int64_t pixel, int quantiles, int lane, const Pixel<Packet> &packet,
                        int count) {
  to.rgb[3 * pixel] = packet.color.x[lane];
  to.rgb[3 * pixel + 1] = packet.color.y[lane];
  to.rgb[3 * pixel + 2] = packet.color.z[lane];
  to.normal[3 * pixel] = packet.normal.x[lane];
  to.normal[3 * pixel + 1] = packet.normal.y[lane];
  to.normal[3 * pixel + 2] = packet.normal.z[lane];
  to.alpha[pixel] = packet.alpha[lane];
  to.facing[pixel] = packet.facing[lane];
  to.intersections[pixel] = count;
  for (int q = 0; q < quantiles; ++q) to.depth[quantiles * pixel + q] = packet.depth[q][lane];
}

inline void load_gradient(const ImageGradients &images, int64_t pixel, int quantiles, int lane,
                          PixelGradient<Packet> &to) {
  if (images.rgb) {
    to.color.x[lane] = images.rgb[3 * pixel];
    to.color.y[lane] = images.rgb[3 * pixel + 1];
    to.color.z[lane] = images.rgb[3 * pixel + 2];
  }
  if (images.normal) {
    to.normal.x[lane] = images.normal[3 * pixel];
    to.normal.y[lane] = images.normal[3 * pixel + 1];
    to.normal.z[lane] = images.normal[3 * pixel + 2];
  }
  if (images.alpha) to.alpha[lane] = images.alpha[pixel];
  if (images.facing) to.facing[lane] = images.facing[pixel];
  if (images.depth) {
    for (int q = 0; q < quantiles; ++q) to.depth[q][lane] = images.depth[quantiles * pixel + q];
  }
}

}  // namespace foam
