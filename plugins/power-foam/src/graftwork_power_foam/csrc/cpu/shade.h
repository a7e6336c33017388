// Colours of all detail sites of a list of cells as seen from one eye, and their gradients.
#pragma once

#include "abi.h"
#include "math/sites.h"

namespace foam {

// Sixteen sites (cell, k) at once, numbered along a list of cells.
struct SitePacket {
  int64_t site[kLanes];  // cell * K + k
  Vec<Packet> toward;
  int filled;
};

inline SitePacket sites_toward(const SceneArgs &scene, const int32_t *cells, int64_t first, int64_t total,
                               const Vec<float> &eye) {
  SitePacket packet;
  const int64_t sites = scene.sites;
  packet.filled = static_cast<int>(total - first < kLanes ? total - first : kLanes);
  for (int lane = 0; lane < kLanes; ++lane) {
    const int64_t number = first + (lane < packet.filled ? lane : 0);
    const int64_t cell = cells[number / sites], k = number % sites;
    const float *position = scene.site_positions + 2 * (cell * sites + k);
    Vec<float> n, t, b;
    quaternion_frame(scene.quaternions + 4 * cell, n, t, b);
    const float radius = scene.radii[cell];
    Vec<float> point = load(scene.centers + 3 * cell) - eye;
    add(point, scale(radius * position[0], t));
    add(point, scale(radius * position[1], b));
    const float length = sqrtf(dot(point, point));
    point = scale(1.0f / (length > 1e-12f ? length : 1e-12f), point);
    packet.site[lane] = cell * sites + k;
    packet.toward.x[lane] = point.x;
    packet.toward.y[lane] = point.y;
    packet.toward.z[lane] = point.z;
  }
  return packet;
}

// Reads (.., L, 3) values of sixteen sites.
struct SiteGather {
  const float *base;
  const int64_t *site;
  int64_t axes;
  Vec<Packet> operator()(int l) const {
    Vec<Packet> result;
    for (int lane = 0; lane < kLanes; ++lane) {
      const float *from = base + 3 * (site[lane] * axes + l);
      result.x[lane] = from[0];
      result.y[lane] = from[1];
      result.z[lane] = from[2];
    }
    return result;
  }
};

// colors[i * K + k] for the i-th cell of the list; sites first..first + 15.
inline void shade_sites(const SceneArgs &scene, const int32_t *cells, int64_t first, int64_t total,
                        const Vec<float> &eye, float *colors) {
  const SitePacket packet = sites_toward(scene, cells, first, total, eye);
  const Vec<Packet> color =
      spherical_color<Packet>(static_cast<int>(scene.axes), packet.toward,
                              SiteGather{scene.site_axes, packet.site, scene.axes},
                              SiteGather{scene.site_colors, packet.site, scene.axes});
  for (int lane = 0; lane < packet.filled; ++lane) {
    float *to = colors + 3 * (first + lane);
    to[0] = color.x[lane];
    to[1] = color.y[lane];
    to[2] = color.z[lane];
  }
}

// Adds the gradients of sites first..first + 15 to those of their axes and colours.
inline void shade_sites_backward(const SceneArgs &scene, const int32_t *cells, int64_t first, int64_t total,
                                 const Vec<float> &eye, const float *color_gradient,
                                 const SceneGradients &gradients) {
  const SitePacket packet = sites_toward(scene, cells, first, total, eye);
  Vec<Packet> gradient{};
  for (int lane = 0; lane < packet.filled; ++lane) {
    gradient.x[lane] = color_gradient[3 * (first + lane)];
    gradient.y[lane] = color_gradient[3 * (first + lane) + 1];
    gradient.z[lane] = color_gradient[3 * (first + lane) + 2];
  }
  spherical_backward<Packet>(
      static_cast<int>(scene.axes), packet.toward, gradient,
      SiteGather{scene.site_axes, packet.site, scene.axes},
      SiteGather{scene.site_colors, packet.site, scene.axes},
      [&](int l, const Vec<Packet> &to_axis, const Vec<Packet> &to_color) {
        for (int lane = 0; lane < packet.filled; ++lane) {
          const int64_t at = 3 * (packet.site[lane] * scene.axes + l);
          gradients.site_axes[at] += to_axis.x[lane];
          gradients.site_axes[at + 1] += to_axis.y[lane];
          gradients.site_axes[at + 2] += to_axis.z[lane];
          gradients.site_colors[at] += to_color.x[lane];
          gradients.site_colors[at + 1] += to_color.y[lane];
          gradients.site_colors[at + 2] += to_color.z[lane];
        }
      });
}

}  // namespace foam
