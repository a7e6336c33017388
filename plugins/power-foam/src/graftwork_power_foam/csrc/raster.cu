#include "cuda/frame.cuh"
#include "cuda/pixels.cuh"

namespace foam {
namespace {

constexpr int kWarpsPerBlock = 2;  // the two halves of a tile

// Pixel of a thread: a warp has 8 columns and 4 rows.
__device__ void warp_pixel(const Frame &frame, int tile, int half, int lane, int &column, int &row) {
  column = tile % frame.tile_columns * kTile + (lane & 7);
  row = tile / frame.tile_columns * kTile + half * 4 + (lane >> 3);
}

template <int K>
__global__ void render(SceneArgs scene, Constants constants, Frame frame, ImageArgs images, int64_t first_pixel,
                       float *contribution, float *error) {
  const int tile = blockIdx.x, lane = threadIdx.x % kWarp;
  const int count = static_cast<int>(scene.sites);
  const float per_pixel = 1.0f / (static_cast<float>(frame.width) * frame.height);
  int column, row;
  warp_pixel(frame, tile, threadIdx.x / kWarp, lane, column, row);
  Vec<float> direction;
  const bool inside = pixel_direction(frame, load_pose(frame.pose), column, row, direction);
  const int64_t at = first_pixel + static_cast<int64_t>(row) * frame.width + column;
  Vec<float> target{};
  if (images.target && inside) target = load(images.target + 3 * at);
  Pixel<float> pixel;
  start_pixel(constants, pixel);
  int met = 0;
  visit_warp<K, false>(
      scene, constants, frame, tile, direction, inside, lane,
      [&](int32_t rank, const LocalRay<float, float> &ray, const Crossing<float> &, const Span<float> &span,
          bool mask) {
        const int64_t id = frame.cells[rank];
        const ColorTable colors{frame.colors + 3 * scene.sites * rank};
        const Vec<float> color =
            blend_colors<K>(ray, scene.site_positions + 2 * scene.sites * id, count, span.enter, colors);
        const float weight =
            composite(constants, frame.prepared[rank], color, ray.facing, span, mask, pixel) * per_pixel;
        met += mask;
        const float sum = warp_sum(weight);
        if (lane == 0) atomicAdd(contribution + id, sum);
        if (images.target) {
          const Vec<float> gap = color - target;
          const float difference = fabsf(gap.x) + fabsf(gap.y) + fabsf(gap.z);
          const float total = warp_sum(mask ? weight * difference : 0.0f);
          if (lane == 0) atomicAdd(error + id, total);
        }
        return pixel.transmittance;
      });
  if (column < frame.width && row < frame.height) store_pixel(images, at, constants.quantiles, pixel, met);
}

template <int K>
__global__ void render_backward(SceneArgs scene, Constants constants, Frame frame, ImageGradients images,
                                int64_t first_pixel, const float *contribution, float *rows, int stride) {
  const int tile = blockIdx.x, lane = threadIdx.x % kWarp;
  const int count = static_cast<int>(scene.sites);
  const float per_pixel = 1.0f / (static_cast<float>(frame.width) * frame.height);
  int column, row;
  warp_pixel(frame, tile, threadIdx.x / kWarp, lane, column, row);
  Vec<float> direction;
  const bool inside = pixel_direction(frame, load_pose(frame.pose), column, row, direction);
  PixelGradient<float> gradient{};
  if (inside) {
    gradient = load_gradient(images, first_pixel + static_cast<int64_t>(row) * frame.width + column,
                             constants.quantiles);
  }
  // once through to know the worth of the whole ray, once more to spend it
  float worth = 0.0f, transmittance = 1.0f, optical = 0.0f;
  visit_warp<K, false>(
      scene, constants, frame, tile, direction, inside, lane,
      [&](int32_t rank, const LocalRay<float, float> &ray, const Crossing<float> &, const Span<float> &span,
          bool mask) {
        const int64_t id = frame.cells[rank];
        const ColorTable colors{frame.colors + 3 * scene.sites * rank};
        const Vec<float> color =
            blend_colors<K>(ray, scene.site_positions + 2 * scene.sites * id, count, span.enter, colors);
        worth += worth_of(constants, frame.prepared[rank], color, ray.facing, span, mask,
                          contribution ? contribution[id] * per_pixel : 0.0f, gradient, transmittance, optical);
        return transmittance;
      });
  transmittance = 1.0f;
  optical = 0.0f;
  visit_warp<K, true>(
      scene, constants, frame, tile, direction, inside, lane,
      [&](int32_t rank, const LocalRay<float, float> &, Crossing<float> crossing, const Span<float> &span,
          bool mask) {
        const int64_t id = frame.cells[rank];
        const Cell cell = frame.prepared[rank];
        const Vec<float> to_center = frame.balls[rank].to_center;
        crossing.transmittance = transmittance;
        crossing.optical = optical;
        if (!mask) crossing.walls = {0.0f, 0.0f};
        CellGradient<float, K> sums;
        clear(sums, count);
        EndGradient<float> at_enter, at_leave;
        cell_backward<K, false>(constants, cell, scene.site_positions + 2 * scene.sites * id,
                                scene.heights + scene.sites * id,
                                ColorTable{frame.colors + 3 * scene.sites * rank}, count,
                                frame.flat[rank] != 0, to_center, direction, crossing, float(INFINITY), mask,
                                gradient, contribution ? contribution[id] * per_pixel : 0.0f, worth, sums,
                                at_enter, at_leave);
        end_backward(scene, constants, cell, to_center, direction, at_enter, crossing.enter_by, mask, sums, rows,
                     stride, lane);
        end_backward(scene, constants, cell, to_center, direction, at_leave, crossing.leave_by, mask, sums, rows,
                     stride, lane);
        add_sums(sums, count, rows + id * stride, lane);
        const float here = mask ? cell.density * (span.leave - span.enter) : 0.0f;
        optical += here;
        transmittance *= exponential(-here);
        return transmittance;
      });
}

// Colours of the sites that were seen: their gradients go to axes and colours.
__global__ void shade_ranks_backward(SceneArgs scene, Frame frame, const float *rows, int stride,
                                     SceneGradients gradients) {
  const int64_t number = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t rank = number / scene.sites, k = number % scene.sites;
  if (rank >= *frame.seen) return;
  const int64_t id = frame.cells[rank];
  const Vec<float> gradient = load(rows + id * stride + 14 + 3 * scene.sites + 3 * k);
  if (gradient.x == 0.0f && gradient.y == 0.0f && gradient.z == 0.0f) return;
  site_color_backward<false>(scene, frame.prepared[rank], id, k, load_pose(frame.pose).eye, gradient, gradients);
}

template <int K>
int forward(const SceneArgs &scene, const CameraArgs &cameras, const Constants &constants,
            const ImageArgs &images, int64_t edges, int64_t capacity, int64_t *pairs, cudaStream_t stream) {
  for (int64_t camera = 0; camera < cameras.count; ++camera) {
    Scratch scratch(stream);
    Frame frame;
    FOAM_TRY(build_frame(scene, cameras, camera, constants, edges, capacity, pairs + camera,
                         images.visible + camera * scene.cells, scratch, frame));
    FOAM_LAUNCH(render<K>, frame.tiles(), kWarp * kWarpsPerBlock, stream, scene, constants, frame, images,
                camera * cameras.width * cameras.height, images.contribution + camera * scene.cells,
                images.error + camera * scene.cells);
    GRAFTWORK_CUDA(cudaGetLastError());
  }
  return 0;
}

template <int K>
int backward(const SceneArgs &scene, const CameraArgs &cameras, const Constants &constants,
             const ImageGradients &images, const SceneGradients &gradients, int64_t edges, int64_t capacity,
             int64_t *pairs, cudaStream_t stream) {
  const int stride = row_stride(static_cast<int>(scene.sites));
  for (int64_t camera = 0; camera < cameras.count; ++camera) {
    Scratch scratch(stream);
    Frame frame;
    float *rows;
    FOAM_TRY(build_frame(scene, cameras, camera, constants, edges, capacity, pairs + camera, nullptr, scratch,
                         frame));
    FOAM_TRY(scratch.take_zero(rows, scene.cells * stride));
    const float *contribution = images.contribution ? images.contribution + camera * scene.cells : nullptr;
    FOAM_LAUNCH(render_backward<K>, frame.tiles(), kWarp * kWarpsPerBlock, stream, scene, constants, frame,
                images, camera * cameras.width * cameras.height, contribution, rows, stride);
    FOAM_LAUNCH(shade_ranks_backward, blocks_for(scene.cells * scene.sites), kBlockThreads, stream, scene, frame,
                rows, stride, gradients);
    FOAM_LAUNCH(finish_cells, blocks_for(scene.cells), kBlockThreads, stream, scene, rows, stride, gradients);
    GRAFTWORK_CUDA(cudaGetLastError());
  }
  return 0;
}

}  // namespace
}  // namespace foam

// Images and statistics of cameras; all pointers on the device. Lists hold at most `capacity` pairs of tile and
// cell; `pairs` (C) receives how many there are. `contribution`, `error` and `visible` (C, N) must be zero.
GRAFTWORK_API int foam_cuda_rasterize(const foam::SceneArgs *scene, const foam::CameraArgs *cameras,
                                      const foam::SettingsArgs *settings, const foam::ImageArgs *images,
                                      int64_t edges, int64_t capacity, int64_t *pairs, void *stream) {
  const foam::Constants constants = foam::constants_of(*settings);
  const auto on = static_cast<cudaStream_t>(stream);
  FOAM_TRY(foam::keep_pool());
  if (scene->sites == 8) {
    return foam::forward<8>(*scene, *cameras, constants, *images, edges, capacity, pairs, on);
  }
  return foam::forward<0>(*scene, *cameras, constants, *images, edges, capacity, pairs, on);
}

// Gradients of the cells from those of the images; all gradients must be zero.
GRAFTWORK_API int foam_cuda_rasterize_backward(const foam::SceneArgs *scene, const foam::CameraArgs *cameras,
                                               const foam::SettingsArgs *settings,
                                               const foam::ImageGradients *images,
                                               const foam::SceneGradients *gradients, int64_t edges,
                                               int64_t capacity, int64_t *pairs, void *stream) {
  const foam::Constants constants = foam::constants_of(*settings);
  const auto on = static_cast<cudaStream_t>(stream);
  FOAM_TRY(foam::keep_pool());
  if (scene->sites == 8) {
    return foam::backward<8>(*scene, *cameras, constants, *images, *gradients, edges, capacity, pairs, on);
  }
  return foam::backward<0>(*scene, *cameras, constants, *images, *gradients, edges, capacity, pairs, on);
}
