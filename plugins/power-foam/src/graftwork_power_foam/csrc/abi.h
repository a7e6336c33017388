// Arguments of the exported functions. native.py declares the same structures with ctypes; every integer has
// 64 bits and every pointer may be null where a comment says so.
#pragma once

#include <cstdint>

#include "math/cell.h"

namespace foam {

struct SceneArgs {
  int64_t cells, sites, axes;
  const float *centers, *radii, *density, *quaternions, *site_positions, *heights, *site_axes, *site_colors;
  const int32_t *offsets, *neighbors;  // null for the functions that need no adjacency
};

struct SceneGradients {
  float *centers, *radii, *density, *quaternions, *site_positions, *heights, *site_axes, *site_colors;
};

struct SettingsArgs {
  double stop, near, near_radii, near_plane, grazing;
  int64_t quantiles;
  double level[kMaxQuantiles];
};

// C cameras with images of one size.
struct CameraArgs {
  int64_t count, width, height;
  const float *poses;       // (C, 3, 4), camera to world
  const float *intrinsics;  // (C, 4): fx, fy, cx, cy
  const float *directions;  // (T, H, W, 3), camera coordinates; null for pinholes
  const float *cones;       // (T, levels together, 5): axis, cosine and sine of the half angle
  int64_t tables;           // T, 1 or C
};

// G groups of P rays each.
struct RayArgs {
  int64_t groups, count, width;  // rays of a group form rows of `width`; 0 if they form no image
  const float *eyes;             // (G, 3) if the rays of a group share their origin, else null
  const float *origins;          // (G, P, 3), null if eyes are given
  const float *directions;       // (G, P, 3)
  const float *far;              // (G, P) or null
};

struct ImageArgs {
  float *rgb, *alpha, *depth, *normal, *facing;
  int32_t *intersections;
  float *contribution, *error;
  uint8_t *visible;
  const float *target;  // null if there is none
};

// Each may be null.
struct ImageGradients {
  const float *rgb, *alpha, *depth, *normal, *facing, *contribution;
};

inline Constants constants_of(const SettingsArgs &settings) {
  Constants constants{};
  constants.stop = static_cast<float>(settings.stop);
  constants.near = static_cast<float>(settings.near);
  constants.near_radii = static_cast<float>(settings.near_radii);
  constants.near_plane = static_cast<float>(settings.near_plane);
  constants.grazing = static_cast<float>(settings.grazing);
  constants.quantiles = static_cast<int32_t>(settings.quantiles);
  for (int q = 0; q < constants.quantiles; ++q) constants.level[q] = static_cast<float>(settings.level[q]);
  return constants;
}

}  // namespace foam
