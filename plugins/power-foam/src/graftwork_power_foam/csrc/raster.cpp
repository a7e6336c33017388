#include "cpu/raster.h"

namespace foam {
namespace {

struct Images {
  ImageArgs args;
  int64_t first_pixel;  // of this camera
  int quantiles;
};

void store(const Images &images, int64_t pixel, int lane, const Pixel<Packet> &packet, int count) {
  const ImageArgs &to = images.args;
  to.rgb[3 * pixel] = packet.color.x[lane];
  to.rgb[3 * pixel + 1] = packet.color.y[lane];
  to.rgb[3 * pixel + 2] = packet.color.z[lane];
  to.normal[3 * pixel] = packet.normal.x[lane];
  to.normal[3 * pixel + 1] = packet.normal.y[lane];
  to.normal[3 * pixel + 2] = packet.normal.z[lane];
  to.alpha[pixel] = packet.alpha[lane];
  to.facing[pixel] = packet.facing[lane];
  to.intersections[pixel] = count;
  for (int q = 0; q < images.quantiles; ++q) to.depth[images.quantiles * pixel + q] = packet.depth[q][lane];
}

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
  const int count = static_cast<int>(scene.sites);
  const Packet far = splat(INFINITY);
  Vec<Packet> direction;
  PacketInt alive = block_directions(frame, column, row, direction);
  const bool compare = images.args.target != nullptr;
  Vec<Packet> target{};
  if (compare) target = load_target(frame, images, column, row, alive);
  Pixel<Packet> pixel;
  start_pixel(constants, pixel);
  PacketInt met{}, enter_by, leave_by;
  work.balls.near_block(direction, alive, work.places);
  for (int32_t place : work.places) {
    if (!any(alive)) break;
    const int32_t rank = work.balls.rank(place), id = frame.cells[rank];
    const Cell &cell = frame.prepared[rank];
    const Vec<float> &to_center = frame.to_center[rank];
    Span<Packet> walls, span;
    PacketInt mask = alive & meet_ball(to_center, cell.radius, direction, constants.near, walls);
    if (!any(mask)) continue;
    mask = clip_cell<false>(frame, scene.neighbors, rank, direction, mask, walls, enter_by, leave_by);
    if (!any(mask)) continue;
    const LocalRay<Packet, float> ray = local_ray(cell, to_center, direction);
    const float *sites = scene.site_positions + 2 * scene.sites * id;
    if (frame.flat[rank]) {
      meet_plane(ray, walls, constants.near, far, span);
    } else {
      Surface<Packet, K> surface;
      meet_surface<K>(ray, cell.radius, sites, scene.heights + scene.sites * id, count, walls, constants.near,
                      far, surface);
      span = surface.span;
    }
    mask &= span.leave > span.enter;
    if (!any(mask)) continue;
    Packet weights[SiteCount<K>::kBound];
    site_weights<K>(sites, count, Packet(span.enter * ray.slope_u - ray.offset_u),
                    Packet(span.enter * ray.slope_v - ray.offset_v), weights);
    const float *colors = frame.colors.get() + 3 * scene.sites * rank;
    Vec<Packet> color{};
    for (int k = 0; k < SiteCount<K>::of(count); ++k) add(color, scale(weights[k], load(colors + 3 * k)));
    const Packet weight = composite(constants, cell, color, ray.facing, span, mask, pixel);
    met -= mask;
    float *sums = statistics.row(rank, work.slots);
    sums[0] += sum_lanes(weight);
    if (compare) {
      const Vec<Packet> gap = color - target;
      const Packet difference = magnitude(gap.x) + magnitude(gap.y) + magnitude(gap.z);
      sums[1] += sum_lanes(select(mask, weight * difference, Packet{}));
    }
    alive &= pixel.transmittance >= constants.stop;
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    if (column + lane_column(lane) < frame.width && row + lane_row(lane) < frame.height) {
      store(images, images.first_pixel + pixel_of(frame, column, row, lane), lane, pixel, met[lane]);
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
