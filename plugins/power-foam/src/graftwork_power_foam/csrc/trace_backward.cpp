#include <algorithm>

#include "cpu/gradient.h"
#include "cpu/pixels.h"
#include "cpu/walk.h"

namespace foam {
namespace {

template <class O> struct Step {
  int32_t id;
  PacketInt mask;
  Vec<O> to_center;
  Crossing<Packet> crossing;
};

// Rows of one bundle of rays, all by cell. Axes and colours only where rays have their own origins.
struct BundleRows {
  RowTable shapes, looks, axes, colors;
};

struct BundleSlots {
  explicit BundleSlots(int64_t cells) : shapes(cells), looks(cells), axes(cells), colors(cells) {}
  void next() {
    shapes.next_tile();
    looks.next_tile();
    axes.next_tile();
    colors.next_tile();
  }
  SlotMap shapes, looks, axes, colors;
};

// Where the rows of one group are summed.
struct Sums {
  float *shapes, *looks, *axes, *colors;
};

// Passes the gradients of the sites' colours, different on every ray, on to axes and colours.
template <int K>
void own_colors_backward(const SceneArgs &scene, const Cell &cell, int32_t id, const Vec<Packet> &origin,
                         const CellGradient<Packet, K> &gradient, BundleRows &rows, BundleSlots &slots) {
  float *to_axes = rows.axes.row(id, slots.axes), *to_colors = rows.colors.row(id, slots.colors);
  for (int k = 0; k < SiteCount<K>::of(static_cast<int>(scene.sites)); ++k) {
    const int64_t at = 3 * scene.axes * (id * scene.sites + k);
    float *axis_row = to_axes + 3 * scene.axes * k, *color_row = to_colors + 3 * scene.axes * k;
    spherical_backward<Packet>(static_cast<int>(scene.axes), toward_site(scene, cell, id, k, origin),
                               gradient.colors[k], SiteValues{scene.site_axes + at},
                               SiteValues{scene.site_colors + at},
                               [&](int l, const Vec<Packet> &to_axis, const Vec<Packet> &to_color) {
                                 axis_row[3 * l] += sum_lanes(to_axis.x);
                                 axis_row[3 * l + 1] += sum_lanes(to_axis.y);
                                 axis_row[3 * l + 2] += sum_lanes(to_axis.z);
                                 color_row[3 * l] += sum_lanes(to_color.x);
                                 color_row[3 * l + 1] += sum_lanes(to_color.y);
                                 color_row[3 * l + 2] += sum_lanes(to_color.z);
                               });
  }
}

template <int K, class O>
void trace_block_backward(const Diagram &diagram, const Constants &constants, const RayBlock &rays,
                          PacketInt start, const ImageGradients &images, int64_t first_pixel,
                          const float *contribution, float per_ray, std::vector<Step<O>> &steps,
                          BundleRows &rows, BundleSlots &slots) {
  const SceneArgs &scene = *diagram.scene;
  const int count = static_cast<int>(scene.sites);
  Packet transmittance = splat(1.0f), optical{};
  steps.clear();
  walk_block<K, O>(diagram, constants, rays, start, nullptr,
                   [&](int32_t id, const Vec<O> &to_center, const LocalRay<Packet, O> &,
                       Crossing<Packet> crossing, const Span<Packet> &span, PacketInt mask) {
                     crossing.transmittance = transmittance;
                     crossing.optical = optical;
                     crossing.walls.enter = select(mask, crossing.walls.enter, Packet{});
                     crossing.walls.leave = select(mask, crossing.walls.leave, Packet{});
                     steps.push_back({id, mask, to_center, crossing});
                     const float density = diagram.cells[id].density;
                     const Packet here = select(mask, density * (span.leave - span.enter), Packet{});
                     optical += here;
                     transmittance *= select(mask, exponential(-here), splat(1.0f));
                     return transmittance;
                   });
  PixelGradient<Packet> pixel{};
  for (int lane = 0; lane < kLanes; ++lane) {
    if (rays.inside[lane]) {
      load_gradient(images, first_pixel + rays.ray[lane], constants.quantiles, lane, pixel);
    }
  }
  Packet suffix{};
  CellGradient<Packet, K> gradient;
  for (; !steps.empty(); steps.pop_back()) {
    const Step<O> &step = steps.back();
    const Cell &cell = diagram.cells[step.id];
    const float *sites = scene.site_positions + 2 * scene.sites * step.id;
    const float *heights = scene.heights + scene.sites * step.id;
    const float weight = contribution ? contribution[step.id] * per_ray : 0.0f;
    const bool flat = diagram.flat[step.id] != 0;
    EndGradient<Packet> at_enter, at_leave;
    clear(gradient, count);
    const auto backward = [&](auto color) {
      cell_backward<K, true>(constants, cell, sites, heights, color, count, flat, step.to_center, rays.direction,
                       step.crossing, rays.far, step.mask, pixel, weight, suffix, gradient, at_enter, at_leave);
    };
    if (diagram.colors) {
      backward(ColorTable{diagram.colors.get() + 3 * scene.sites * step.id});
    } else {
      Vec<Packet> colors[SiteCount<K>::kBound];
      lane_colors<K>(scene, cell, step.id, rays.origin, colors);
      backward([&](int k) { return colors[k]; });
      own_colors_backward(scene, cell, step.id, rays.origin, gradient, rows, slots);
    }
    end_backward(scene, constants, cell, step.to_center, rays.direction, at_enter, step.crossing.enter_by,
                 gradient, rows.shapes, slots.shapes);
    end_backward(scene, constants, cell, step.to_center, rays.direction, at_leave, step.crossing.leave_by,
                 gradient, rows.shapes, slots.shapes);
    add_sums(gradient, count, rows.shapes.row(step.id, slots.shapes), rows.looks.row(step.id, slots.looks));
  }
}

template <int K, class O>
void trace_group_backward(const Diagram &diagram, const Constants &constants, const RayArgs &rays, int64_t group,
                          const ImageGradients &images, int threads, const Sums &sums) {
  const SceneArgs &scene = *diagram.scene;
  const int64_t bundles = ray_bundles(rays);
  const int32_t entry = rays.eyes ? locate(diagram, diagram.eye, diagram.entry) : diagram.entry;
  const int stride = look_stride(scene.sites), axes = static_cast<int>(3 * scene.sites * scene.axes);
  const float *contribution = images.contribution ? images.contribution + group * scene.cells : nullptr;
  constexpr int kAtOnce = 512;
  std::vector<BundleRows> tables(kAtOnce);
#pragma omp parallel num_threads(threads)
  {
    BundleSlots slots(scene.cells);
    std::vector<Step<O>> steps;
    int32_t hint = entry;
    for (int64_t first = 0; first < bundles; first += kAtOnce) {
      const int64_t last = first + kAtOnce < bundles ? first + kAtOnce : bundles;
#pragma omp for schedule(dynamic, 1)
      for (int64_t bundle = first; bundle < last; ++bundle) {
        BundleRows &rows = tables[bundle - first];
        slots.next();
        rows.shapes.reset(kShapeStride);
        rows.looks.reset(stride);
        rows.axes.reset(axes);
        rows.colors.reset(axes);
        for (int b = 0; b < 4; ++b) {
          RayBlock block;
          load_block(rays, group, bundle, b, block);
          const PacketInt start = start_cells(diagram, block, rays.eyes != nullptr, hint);
          trace_block_backward<K, O>(diagram, constants, block, start, images, group * rays.count, contribution,
                                     1.0f / static_cast<float>(rays.count), steps, rows, slots);
        }
      }
#pragma omp for schedule(static, 1)
      for (int part = 0; part < threads; ++part) {
        for (int64_t bundle = first; bundle < last; ++bundle) {
          const BundleRows &rows = tables[bundle - first];
          rows.shapes.add_to(sums.shapes, part, threads);
          rows.looks.add_to(sums.looks, part, threads);
          rows.axes.add_to(sums.axes, part, threads);
          rows.colors.add_to(sums.colors, part, threads);
        }
      }
    }
  }
}

}  // namespace
}  // namespace foam

// Gradients of the cells from those of the images of rays. All gradients must be zero.
GRAFTWORK_API int foam_raytrace_backward(const foam::SceneArgs *scene, const foam::RayArgs *rays,
                                         const foam::SettingsArgs *settings,
                                         const foam::ImageGradients *images,
                                         const foam::SceneGradients *gradients, int64_t threads) {
  using foam::Packet;
  if (threads < 1) return graftwork_fail("threads must be positive, got %lld", static_cast<long long>(threads));
  if (scene->cells < 1 || rays->count < 1) return graftwork_fail("there must be a cell and a ray");
  const foam::Constants constants = foam::constants_of(*settings);
  const int workers = static_cast<int>(threads);
  const int64_t cells = scene->cells, stride = foam::look_stride(scene->sites), sites = cells * scene->sites;
  foam::Diagram diagram;
  foam::build_diagram(*scene, workers, diagram);
  std::vector<float> shapes(cells * foam::kShapeStride, 0.0f), looks(cells * stride);
  std::vector<int32_t> all(cells);
  for (int64_t id = 0; id < cells; ++id) all[id] = static_cast<int32_t>(id);
  for (int64_t group = 0; group < rays->groups; ++group) {
    if (rays->eyes) foam::shade_diagram(workers, foam::load(rays->eyes + 3 * group), diagram);
    std::fill(looks.begin(), looks.end(), 0.0f);
    const foam::Sums sums{shapes.data(), looks.data(), gradients->site_axes, gradients->site_colors};
    const bool eight = scene->sites == 8;
    if (eight && rays->eyes) {
      foam::trace_group_backward<8, float>(diagram, constants, *rays, group, *images, workers, sums);
    } else if (eight) {
      foam::trace_group_backward<8, Packet>(diagram, constants, *rays, group, *images, workers, sums);
    } else if (rays->eyes) {
      foam::trace_group_backward<0, float>(diagram, constants, *rays, group, *images, workers, sums);
    } else {
      foam::trace_group_backward<0, Packet>(diagram, constants, *rays, group, *images, workers, sums);
    }
    std::vector<float> colors(rays->eyes ? 3 * sites : 0);
#pragma omp parallel for num_threads(workers) schedule(static)
    for (int64_t id = 0; id < cells; ++id) {
      const float *look = looks.data() + id * stride;
      foam::finish_cell(*scene, id, look, *gradients);
      if (!rays->eyes) continue;
      for (int64_t i = 0; i < 3 * scene->sites; ++i) {
        colors[3 * scene->sites * id + i] = look[10 + 3 * scene->sites + i];
      }
    }
    if (!rays->eyes) continue;
#pragma omp parallel for num_threads(workers) schedule(static)
    for (int64_t first = 0; first < sites; first += foam::kLanes) {
      foam::shade_sites_backward(*scene, all.data(), first, sites, diagram.eye, colors.data(), *gradients);
    }
  }
  for (int64_t id = 0; id < cells; ++id) {
    for (int i = 0; i < 3; ++i) gradients->centers[3 * id + i] = shapes[id * foam::kShapeStride + i];
    gradients->radii[id] = shapes[id * foam::kShapeStride + 3];
  }
  return 0;
}
