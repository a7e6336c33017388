#include "cpu/pixels.h"
#include "cpu/raster.h"

namespace foam {
namespace {

struct Images {
  ImageArgs args;
  int64_t first_pixel;  // of this camera
  int quantiles;
};

Vec<Packet> load_target(const Frame &frame, const Images &images, int column, int row, PacketInt inside) {
  Vec<Packet> target{};
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!inside[lane]) continue;
    const float *at = images.args.target + 3 * (images.first_pixel + pixel_of(frame, column, row, lane));
    target.x[lane] = at[0];
    target.y[lane] = at[1];
    target.z[lane] = at[2];
  }
  return target;
}

template <int K>
void render_block(const SceneArgs &scene, const Constants &constants, const Frame &frame, const Images &images,
                  int column, int row, Workspace &work, RowTable &statistics) {
  Vec<Packet> direction;
  const PacketInt inside = block_directions(frame, column, row, direction);
  const bool compare = images.args.target != nullptr;
  Vec<Packet> target{};
  if (compare) target = load_target(frame, images, column, row, inside);
  Pixel<Packet> pixel;
  start_pixel(constants, pixel);
  PacketInt met{};
  visit_block<K, false>(
      scene, constants, frame, work, direction, inside,
      [&](int32_t, int32_t rank, const LocalRay<Packet, float> &ray, const Crossing<Packet> &,
          const Span<Packet> &span, PacketInt mask) {
        const float *sites = scene.site_positions + 2 * scene.sites * frame.cells[rank];
        const ColorTable colors{frame.colors.get() + 3 * scene.sites * rank};
        const Vec<Packet> color =
            blend_colors<K>(ray, sites, static_cast<int>(scene.sites), span.enter, colors);
        const Packet weight = composite(constants, frame.prepared[rank], color, ray.facing, span, mask, pixel);
        met -= mask;
        float *sums = statistics.row(rank, work.slots);
        sums[0] += sum_lanes(weight);
        if (compare) {
          const Vec<Packet> gap = color - target;
          const Packet difference = magnitude(gap.x) + magnitude(gap.y) + magnitude(gap.z);
          sums[1] += sum_lanes(select(mask, weight * difference, Packet{}));
        }
        return pixel.transmittance;
      });
  for (int lane = 0; lane < kLanes; ++lane) {
    if (column + lane_column(lane) < frame.width && row + lane_row(lane) < frame.height) {
      store_pixel(images.args, images.first_pixel + pixel_of(frame, column, row, lane), images.quantiles, lane,
                  pixel, met[lane]);
    }
  }
}

template <int K>
void render(const SceneArgs &scene, const Constants &constants, const Frame &frame, const Images &images,
            float *contribution, float *error, int threads) {
  const float per_pixel = 1.0f / (static_cast<float>(frame.width) * frame.height);
  std::vector<float> sums(2 * frame.ranks(), 0.0f);
  std::vector<RowTable> tables(kTilesAtOnce);
#pragma omp parallel num_threads(threads)
  {
    Workspace work(frame.ranks());
    for (int first = 0; first < frame.tiles(); first += kTilesAtOnce) {
      const int last = first + kTilesAtOnce < frame.tiles() ? first + kTilesAtOnce : frame.tiles();
#pragma omp for schedule(dynamic, 1)
      for (int tile = first; tile < last; ++tile) {
        work.slots.next_tile();
        work.balls.gather(frame, tile);
        tables[tile - first].reset(2);
        for (int block = 0; block < 4; ++block) {
          int column, row;
          if (!block_corner(frame, tile, block, column, row)) continue;
          render_block<K>(scene, constants, frame, images, column, row, work, tables[tile - first]);
        }
      }
#pragma omp for schedule(static, 1)
      for (int part = 0; part < threads; ++part) {
        for (int tile = first; tile < last; ++tile) tables[tile - first].add_to(sums.data(), part, threads);
      }
    }
  }
  for (int64_t rank = 0; rank < frame.ranks(); ++rank) {
    contribution[frame.cells[rank]] = sums[2 * rank] * per_pixel;
    error[frame.cells[rank]] = sums[2 * rank + 1] * per_pixel;
  }
}

}  // namespace
}  // namespace foam

// Images and statistics of cameras. `contribution`, `error` and `visible` (C, N) must be zero.
GRAFTWORK_API int foam_rasterize(const foam::SceneArgs *scene, const foam::CameraArgs *cameras,
                                 const foam::SettingsArgs *settings, const foam::ImageArgs *images,
                                 int64_t threads) {
  if (threads < 1) return graftwork_fail("threads must be positive, got %lld", static_cast<long long>(threads));
  const foam::Constants constants = foam::constants_of(*settings);
  for (int64_t camera = 0; camera < cameras->count; ++camera) {
    foam::Frame frame;
    const int workers = static_cast<int>(threads);
    foam::build_frame(*scene, *cameras, camera, constants, workers, images->visible + camera * scene->cells,
                      frame);
    const foam::Images to{*images, camera * cameras->width * cameras->height, constants.quantiles};
    float *contribution = images->contribution + camera * scene->cells;
    float *error = images->error + camera * scene->cells;
    if (scene->sites == 8) foam::render<8>(*scene, constants, frame, to, contribution, error, workers);
    else foam::render<0>(*scene, constants, frame, to, contribution, error, workers);
  }
  return 0;
}
