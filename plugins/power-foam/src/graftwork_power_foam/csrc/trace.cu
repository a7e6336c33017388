#include "cuda/pixels.cuh"
#include "cuda/walk.cuh"

namespace foam {
namespace {

// A site's colour for a ray: from the table of the shared eye, or seen from the ray's own origin.
struct RayColors {
  const SceneArgs *scene;
  const Diagram *diagram;
  int32_t id;
  Vec<float> origin;
  __device__ Vec<float> operator()(int k) const {
    if (diagram->colors) return load(diagram->colors + 3 * (scene->sites * id + k));
    return site_color(*scene, diagram->cells[id], id, k, origin);
  }
};

template <int K>
__global__ void trace(SceneArgs scene, Constants constants, Diagram diagram, RayArgs rays, int64_t group,
                      ImageArgs images, float *contribution, float *error, uint8_t *visible) {
  const int64_t warp = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / kWarp;
  const Ray ray = load_ray(rays, group, warp, threadIdx.x % kWarp);
  const int count = static_cast<int>(scene.sites);
  const float per_ray = 1.0f / static_cast<float>(rays.count);
  const int64_t at = group * rays.count + ray.number;
  Vec<float> target{};
  if (images.target && ray.number >= 0) target = load(images.target + 3 * at);
  Pixel<float> pixel;
  start_pixel(constants, pixel);
  int met = 0;
  walk_warp<K>(scene, constants, diagram, ray, visible,
               [&](int32_t id, const Vec<float> &, const LocalRay<float, float> &local, const Crossing<float> &,
                   const Span<float> &span, bool mask) {
                 if (!mask) return pixel.transmittance;
                 const RayColors colors{&scene, &diagram, id, ray.origin};
                 const Vec<float> color =
                     blend_colors<K>(local, scene.site_positions + 2 * scene.sites * static_cast<int64_t>(id),
                                     count, span.enter, colors);
                 const float weight =
                     composite(constants, diagram.cells[id], color, local.facing, span, true, pixel) * per_ray;
                 ++met;
                 atomicAdd(contribution + id, weight);
                 if (images.target) {
                   const Vec<float> gap = color - target;
                   atomicAdd(error + id, weight * (fabsf(gap.x) + fabsf(gap.y) + fabsf(gap.z)));
                 }
                 return pixel.transmittance;
               });
  if (ray.number >= 0) store_pixel(images, at, constants.quantiles, pixel, met);
}

template <int K>
__global__ void trace_backward(SceneArgs scene, Constants constants, Diagram diagram, RayArgs rays,
                               int64_t group, ImageGradients images, const float *contribution, float *rows,
                               int stride, SceneGradients gradients) {
  const int64_t warp = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / kWarp;
  const int lane = threadIdx.x % kWarp, count = static_cast<int>(scene.sites);
  const Ray ray = load_ray(rays, group, warp, lane);
  const float per_ray = 1.0f / static_cast<float>(rays.count);
  PixelGradient<float> gradient{};
  if (ray.inside) gradient = load_gradient(images, group * rays.count + ray.number, constants.quantiles);
  float worth = 0.0f, transmittance = 1.0f, optical = 0.0f;
  walk_warp<K>(scene, constants, diagram, ray, nullptr,
               [&](int32_t id, const Vec<float> &, const LocalRay<float, float> &local, const Crossing<float> &,
                   const Span<float> &span, bool mask) {
                 if (!mask) return transmittance;
                 const RayColors colors{&scene, &diagram, id, ray.origin};
                 const Vec<float> color =
                     blend_colors<K>(local, scene.site_positions + 2 * scene.sites * static_cast<int64_t>(id),
                                     count, span.enter, colors);
                 worth += worth_of(constants, diagram.cells[id], color, local.facing, span, true,
                                   contribution ? contribution[id] * per_ray : 0.0f, gradient, transmittance,
                                   optical);
                 return transmittance;
               });
  transmittance = 1.0f;
  optical = 0.0f;
  walk_warp<K>(
      scene, constants, diagram, ray, nullptr,
      [&](int32_t id, const Vec<float> &to_center, const LocalRay<float, float> &, Crossing<float> crossing,
          const Span<float> &span, bool mask) {
        CellGradient<float, K> sums;
        EndGradient<float> at_enter{}, at_leave{};
        clear(sums, count);
        const Cell cell = diagram.cells[id];
        const RayColors colors{&scene, &diagram, id, ray.origin};
        if (mask) {
          crossing.transmittance = transmittance;
          crossing.optical = optical;
          cell_backward<K, false>(constants, cell, scene.site_positions + 2 * scene.sites * id,
                                  scene.heights + scene.sites * id, colors, count, diagram.flat[id] != 0,
                                  to_center, ray.direction, crossing, ray.far, true, gradient,
                                  contribution ? contribution[id] * per_ray : 0.0f, worth, sums, at_enter,
                                  at_leave);
          const float here = cell.density * (span.leave - span.enter);
          optical += here;
          transmittance *= exponential(-here);
        }
        end_backward(scene, constants, cell, to_center, ray.direction, at_enter, crossing.enter_by, mask, sums,
                     rows, stride, lane);
        end_backward(scene, constants, cell, to_center, ray.direction, at_leave, crossing.leave_by, mask, sums,
                     rows, stride, lane);
        if (mask && !diagram.colors) {
          for (int k = 0; k < count; ++k) {
            site_color_backward<true>(scene, cell, id, k, ray.origin, sums.colors[k], gradients);
          }
        }
        // rays of a warp that are in the same cell share one sum
        bool left = mask;
        for (unsigned bits = __ballot_sync(kWholeWarp, left); bits != 0;
             bits = __ballot_sync(kWholeWarp, left)) {
          const int32_t shared = __shfl_sync(kWholeWarp, id, __ffs(bits) - 1);
          const bool mine = left && id == shared;
          CellGradient<float, K> part = sums;
          if (!mine) clear(part, count);
          add_sums(part, count, rows + static_cast<int64_t>(shared) * stride, lane);
          left = left && !mine;
        }
        return transmittance;
      });
}

// Colours seen from the shared eye: their gradients go to axes and colours.
__global__ void shade_diagram_backward(SceneArgs scene, Diagram diagram, const float *eye, const float *rows,
                                       int stride, SceneGradients gradients) {
  const int64_t number = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t id = number / scene.sites, k = number % scene.sites;
  if (id >= scene.cells) return;
  const Vec<float> gradient = load(rows + id * stride + 14 + 3 * scene.sites + 3 * k);
  if (gradient.x == 0.0f && gradient.y == 0.0f && gradient.z == 0.0f) return;
  site_color_backward<false>(scene, diagram.cells[id], id, k, load(eye), gradient, gradients);
}

int build_diagram(const SceneArgs &scene, int64_t edges, bool shared, Scratch &scratch, Diagram &diagram) {
  FOAM_TRY(scratch.take(diagram.cells, scene.cells));
  FOAM_TRY(scratch.take(diagram.flat, scene.cells));
  FOAM_TRY(scratch.take(diagram.walls, edges));
  FOAM_TRY(scratch.take(diagram.starts, 1));
  diagram.colors = nullptr;
  if (shared) FOAM_TRY(scratch.take(diagram.colors, 3 * scene.cells * scene.sites));
  FOAM_LAUNCH(prepare_diagram, blocks_for(scene.cells), kBlockThreads, scratch.stream(), scene, diagram);
  return 0;
}

// Start cell, and the colours seen from the eye if the rays of the group share one.
int enter_group(const SceneArgs &scene, const RayArgs &rays, int64_t group, cudaStream_t stream,
                const Diagram &diagram) {
  const float *eye = rays.eyes ? rays.eyes + 3 * group : nullptr;
  FOAM_LAUNCH(find_start, 1, kWarp, stream, scene, diagram, eye);
  if (eye) {
    FOAM_LAUNCH(shade_diagram, blocks_for(scene.cells * scene.sites), kBlockThreads, stream, scene, diagram, eye);
  }
  return 0;
}

template <int K>
int forward(const SceneArgs &scene, const RayArgs &rays, const Constants &constants, const ImageArgs &images,
            int64_t edges, cudaStream_t stream) {
  Scratch scratch(stream);
  Diagram diagram;
  FOAM_TRY(build_diagram(scene, edges, rays.eyes != nullptr, scratch, diagram));
  for (int64_t group = 0; group < rays.groups; ++group) {
    FOAM_TRY(enter_group(scene, rays, group, stream, diagram));
    FOAM_LAUNCH(trace<K>, blocks_for(ray_warps(rays) * kWarp), kBlockThreads, stream, scene, constants, diagram,
                rays, group, images, images.contribution + group * scene.cells,
                images.error + group * scene.cells, images.visible + group * scene.cells);
    GRAFTWORK_CUDA(cudaGetLastError());
  }
  return 0;
}

template <int K>
int backward(const SceneArgs &scene, const RayArgs &rays, const Constants &constants,
             const ImageGradients &images, const SceneGradients &gradients, int64_t edges, cudaStream_t stream) {
  const int stride = row_stride(static_cast<int>(scene.sites));
  Scratch scratch(stream);
  Diagram diagram;
  float *rows;
  FOAM_TRY(build_diagram(scene, edges, rays.eyes != nullptr, scratch, diagram));
  FOAM_TRY(scratch.take(rows, scene.cells * stride));
  for (int64_t group = 0; group < rays.groups; ++group) {
    const float *contribution = images.contribution ? images.contribution + group * scene.cells : nullptr;
    GRAFTWORK_CUDA(cudaMemsetAsync(rows, 0, sizeof(float) * static_cast<size_t>(scene.cells * stride), stream));
    FOAM_TRY(enter_group(scene, rays, group, stream, diagram));
    FOAM_LAUNCH(trace_backward<K>, blocks_for(ray_warps(rays) * kWarp), kBlockThreads, stream, scene, constants,
                diagram, rays, group, images, contribution, rows, stride, gradients);
    if (rays.eyes) {
      FOAM_LAUNCH(shade_diagram_backward, blocks_for(scene.cells * scene.sites), kBlockThreads, stream, scene,
                  diagram, rays.eyes + 3 * group, rows, stride, gradients);
    }
    FOAM_LAUNCH(finish_cells, blocks_for(scene.cells), kBlockThreads, stream, scene, rows, stride, gradients);
    GRAFTWORK_CUDA(cudaGetLastError());
  }
  return 0;
}

}  // namespace
}  // namespace foam

// Images and statistics of rays; all pointers on the device. `contribution`, `error` and `visible` must be zero.
GRAFTWORK_API int foam_cuda_raytrace(const foam::SceneArgs *scene, const foam::RayArgs *rays,
                                     const foam::SettingsArgs *settings, const foam::ImageArgs *images,
                                     int64_t edges, void *stream) {
  const foam::Constants constants = foam::constants_of(*settings);
  const auto on = static_cast<cudaStream_t>(stream);
  FOAM_TRY(foam::keep_pool());
  if (scene->sites == 8) return foam::forward<8>(*scene, *rays, constants, *images, edges, on);
  return foam::forward<0>(*scene, *rays, constants, *images, edges, on);
}

// Gradients of the cells from those of the images of rays; all gradients must be zero.
GRAFTWORK_API int foam_cuda_raytrace_backward(const foam::SceneArgs *scene, const foam::RayArgs *rays,
                                              const foam::SettingsArgs *settings,
                                              const foam::ImageGradients *images,
                                              const foam::SceneGradients *gradients, int64_t edges,
                                              void *stream) {
  const foam::Constants constants = foam::constants_of(*settings);
  const auto on = static_cast<cudaStream_t>(stream);
  FOAM_TRY(foam::keep_pool());
  if (scene->sites == 8) return foam::backward<8>(*scene, *rays, constants, *images, *gradients, edges, on);
  return foam::backward<0>(*scene, *rays, constants, *images, *gradients, edges, on);
}
