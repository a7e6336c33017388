#include "cpu/pixels.h"
#include "cpu/walk.h"

namespace foam {
namespace {

template <int K, class O>
void trace_block(const Diagram &diagram, const Constants &constants, const RayBlock &rays, PacketInt start,
                 const ImageArgs &images, int64_t first_pixel, uint8_t *visible, RowTable &statistics,
                 SlotMap &slots) {
  const SceneArgs &scene = *diagram.scene;
  const int count = static_cast<int>(scene.sites);
  Vec<Packet> target{};
  if (images.target) {
    for (int lane = 0; lane < kLanes; ++lane) {
      if (rays.ray[lane] < 0) continue;
      const float *at = images.target + 3 * (first_pixel + rays.ray[lane]);
      target.x[lane] = at[0];
      target.y[lane] = at[1];
      target.z[lane] = at[2];
    }
  }
  Pixel<Packet> pixel;
  start_pixel(constants, pixel);
  PacketInt met{};
  walk_block<K, O>(
      diagram, constants, rays, start, visible,
      [&](int32_t id, const Vec<O> &, const LocalRay<Packet, O> &ray, const Crossing<Packet> &,
          const Span<Packet> &span, PacketInt mask) {
        const Cell &cell = diagram.cells[id];
        const float *sites = scene.site_positions + 2 * scene.sites * id;
        Vec<Packet> color;
        if (diagram.colors) {
          const ColorTable colors{diagram.colors.get() + 3 * scene.sites * id};
          color = blend_colors<K>(ray, sites, count, span.enter, colors);
        } else {
          Vec<Packet> colors[SiteCount<K>::kBound];
          lane_colors<K>(scene, cell, id, rays.origin, colors);
          color = blend_colors<K>(ray, sites, count, span.enter, [&](int k) { return colors[k]; });
        }
        const Packet weight = composite(constants, cell, color, ray.facing, span, mask, pixel);
        met -= mask;
        float *sums = statistics.row(id, slots);
        sums[0] += sum_lanes(weight);
        if (images.target) {
          const Vec<Packet> gap = color - target;
          const Packet difference = magnitude(gap.x) + magnitude(gap.y) + magnitude(gap.z);
          sums[1] += sum_lanes(select(mask, weight * difference, Packet{}));
        }
        return pixel.transmittance;
      });
  for (int lane = 0; lane < kLanes; ++lane) {
    if (rays.ray[lane] < 0) continue;
    store_pixel(images, first_pixel + rays.ray[lane], constants.quantiles, lane, pixel, met[lane]);
  }
}

template <int K, class O>
void trace_group(const Diagram &diagram, const Constants &constants, const RayArgs &rays, int64_t group,
                 const ImageArgs &images, int threads) {
  const int64_t cells = diagram.scene->cells, bundles = ray_bundles(rays);
  const int32_t entry = rays.eyes ? locate(diagram, diagram.eye, diagram.entry) : diagram.entry;
  std::vector<float> sums(2 * cells, 0.0f);
  constexpr int kAtOnce = 512;
  std::vector<RowTable> tables(kAtOnce);
#pragma omp parallel num_threads(threads)
  {
    SlotMap slots(cells);
    int32_t hint = entry;
    for (int64_t first = 0; first < bundles; first += kAtOnce) {
      const int64_t last = first + kAtOnce < bundles ? first + kAtOnce : bundles;
#pragma omp for schedule(dynamic, 1)
      for (int64_t bundle = first; bundle < last; ++bundle) {
        slots.next_tile();
        tables[bundle - first].reset(2);
        for (int b = 0; b < 4; ++b) {
          RayBlock block;
          load_block(rays, group, bundle, b, block);
          const PacketInt start = start_cells(diagram, block, rays.eyes != nullptr, hint);
          trace_block<K, O>(diagram, constants, block, start, images, group * rays.count,
                            images.visible + group * cells, tables[bundle - first], slots);
        }
      }
#pragma omp for schedule(static, 1)
      for (int part = 0; part < threads; ++part) {
        for (int64_t bundle = first; bundle < last; ++bundle) {
          tables[bundle - first].add_to(sums.data(), part, threads);
        }
      }
    }
  }
  const float per_ray = 1.0f / static_cast<float>(rays.count);
  for (int64_t id = 0; id < cells; ++id) {
    images.contribution[group * cells + id] = sums[2 * id] * per_ray;
    images.error[group * cells + id] = sums[2 * id + 1] * per_ray;
  }
}

}  // namespace
}  // namespace foam

// Images and statistics of rays, walking along the power diagram. `visible` (G, N) must be zero.
GRAFTWORK_API int foam_raytrace(const foam::SceneArgs *scene, const foam::RayArgs *rays,
                                const foam::SettingsArgs *settings, const foam::ImageArgs *images,
                                int64_t threads) {
  using foam::Packet;
  if (threads < 1) return graftwork_fail("threads must be positive, got %lld", static_cast<long long>(threads));
  if (scene->cells < 1 || rays->count < 1) return graftwork_fail("there must be a cell and a ray");
  const foam::Constants constants = foam::constants_of(*settings);
  const int workers = static_cast<int>(threads);
  foam::Diagram diagram;
  foam::build_diagram(*scene, workers, diagram);
  for (int64_t group = 0; group < rays->groups; ++group) {
    if (rays->eyes) foam::shade_diagram(workers, foam::load(rays->eyes + 3 * group), diagram);
    const bool eight = scene->sites == 8;
    if (eight && rays->eyes) {
      foam::trace_group<8, float>(diagram, constants, *rays, group, *images, workers);
    } else if (eight) {
      foam::trace_group<8, Packet>(diagram, constants, *rays, group, *images, workers);
    } else if (rays->eyes) {
      foam::trace_group<0, float>(diagram, constants, *rays, group, *images, workers);
    } else {
      foam::trace_group<0, Packet>(diagram, constants, *rays, group, *images, workers);
    }
  }
  return 0;
}
