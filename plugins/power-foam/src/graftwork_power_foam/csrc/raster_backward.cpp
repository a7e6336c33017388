#include "cpu/gradient.h"
#include "cpu/pixels.h"
#include "cpu/raster.h"

namespace foam {
namespace {

// A cell that a block of pixels shades, as found on the way from front to back.
struct Record {
  int32_t place;
  PacketInt mask;
  Crossing<Packet> crossing;
};

struct Block {
  Vec<Packet> direction;
  PixelGradient<Packet> gradient;
  Packet suffix;
  std::vector<Record> records;
};

struct BackwardWorkspace {
  BackwardWorkspace(int64_t ranks, int64_t cells) : work(ranks), shape_slots(cells) {}
  Workspace work;
  SlotMap shape_slots;
  Block blocks[4];
};

// Rows of one tile.
struct TileRows {
  RowTable shapes, looks;  // by cell, by rank
};

// Front to back once more, remembering what the way back needs.
template <int K>
void replay(const SceneArgs &scene, const Constants &constants, const Frame &frame, PacketInt inside,
            Workspace &work, Block &block) {
  Packet transmittance = splat(1.0f), optical{};
  visit_block<K, true>(
      scene, constants, frame, work, block.direction, inside,
      [&](int32_t place, int32_t rank, const LocalRay<Packet, float> &, Crossing<Packet> crossing,
          const Span<Packet> &span, PacketInt mask) {
        crossing.transmittance = transmittance;
        crossing.optical = optical;
        // lanes that miss must not spoil the sums
        crossing.walls.enter = select(mask, crossing.walls.enter, Packet{});
        crossing.walls.leave = select(mask, crossing.walls.leave, Packet{});
        block.records.push_back({place, mask, crossing});
        const float density = frame.prepared[rank].density;
        const Packet here = select(mask, density * (span.leave - span.enter), Packet{});
        optical += here;
        transmittance *= select(mask, exponential(-here), splat(1.0f));
        return transmittance;
      });
}

template <int K>
void render_tile_backward(const SceneArgs &scene, const Constants &constants, const Frame &frame,
                          const ImageGradients &images, const float *contribution, int64_t first_pixel,
                          int tile, BackwardWorkspace &thread, TileRows &rows) {
  const int count = static_cast<int>(scene.sites);
  const float per_pixel = 1.0f / (static_cast<float>(frame.width) * frame.height);
  const Packet far = splat(INFINITY);
  Workspace &work = thread.work;
  work.slots.next_tile();
  thread.shape_slots.next_tile();
  work.balls.gather(frame, tile);
  rows.shapes.reset(kShapeStride);
  rows.looks.reset(look_stride(scene.sites));
  for (int b = 0; b < 4; ++b) {
    Block &block = thread.blocks[b];
    block.records.clear();
    int column, row;
    if (!block_corner(frame, tile, b, column, row)) continue;
    const PacketInt inside = block_directions(frame, column, row, block.direction);
    block.gradient = PixelGradient<Packet>{};
    block.suffix = Packet{};
    for (int lane = 0; lane < kLanes; ++lane) {
      if (!inside[lane]) continue;
      load_gradient(images, first_pixel + pixel_of(frame, column, row, lane), constants.quantiles, lane,
                    block.gradient);
    }
    replay<K>(scene, constants, frame, inside, work, block);
  }
  CellGradient<Packet, K> gradient;
  for (;;) {
    int32_t place = -1;  // of the rearmost cell that is left
    for (const Block &block : thread.blocks) {
      if (!block.records.empty() && block.records.back().place > place) place = block.records.back().place;
    }
    if (place < 0) break;
    const int32_t rank = work.balls.rank(place), id = frame.cells[rank];
    const Cell &cell = frame.prepared[rank];
    const Vec<float> &to_center = frame.to_center[rank];
    const float weight = contribution ? contribution[id] * per_pixel : 0.0f;
    clear(gradient, count);
    for (Block &block : thread.blocks) {
      if (block.records.empty() || block.records.back().place != place) continue;
      const Record &record = block.records.back();
      EndGradient<Packet> at_enter, at_leave;
      cell_backward<K, true>(constants, cell, scene.site_positions + 2 * scene.sites * id,
                       scene.heights + scene.sites * id, ColorTable{frame.colors.get() + 3 * scene.sites * rank}, count,
                       frame.flat[rank] != 0, to_center, block.direction, record.crossing, far, record.mask,
                       block.gradient, weight, block.suffix, gradient, at_enter, at_leave);
      end_backward(scene, constants, cell, to_center, block.direction, at_enter, record.crossing.enter_by,
                   gradient, rows.shapes, thread.shape_slots);
      end_backward(scene, constants, cell, to_center, block.direction, at_leave, record.crossing.leave_by,
                   gradient, rows.shapes, thread.shape_slots);
      block.records.pop_back();
    }
    add_sums(gradient, count, rows.shapes.row(id, thread.shape_slots), rows.looks.row(rank, work.slots));
  }
}

template <int K>
void render_backward(const SceneArgs &scene, const Constants &constants, const Frame &frame,
                     const ImageGradients &images, const float *contribution, int64_t first_pixel, int threads,
                     float *shapes, const SceneGradients &gradients) {
  const int64_t ranks = frame.ranks(), stride = look_stride(scene.sites);
  std::vector<float> looks(ranks * stride, 0.0f);
  std::vector<TileRows> tables(kTilesAtOnce);
#pragma omp parallel num_threads(threads)
  {
    BackwardWorkspace thread(ranks, scene.cells);
    for (int first = 0; first < frame.tiles(); first += kTilesAtOnce) {
      const int last = first + kTilesAtOnce < frame.tiles() ? first + kTilesAtOnce : frame.tiles();
#pragma omp for schedule(dynamic, 1)
      for (int tile = first; tile < last; ++tile) {
        render_tile_backward<K>(scene, constants, frame, images, contribution, first_pixel, tile, thread,
                                tables[tile - first]);
      }
#pragma omp for schedule(static, 1)
      for (int part = 0; part < threads; ++part) {
        for (int tile = first; tile < last; ++tile) {
          tables[tile - first].shapes.add_to(shapes, part, threads);
          tables[tile - first].looks.add_to(looks.data(), part, threads);
        }
      }
    }
#pragma omp for schedule(static)
    for (int64_t rank = 0; rank < ranks; ++rank) {
      finish_cell(scene, frame.cells[rank], looks.data() + rank * stride, gradients);
    }
  }
  // gradients of the sites' colours, packed as the colours are
  std::vector<float> colors(ranks * scene.sites * 3);
  for (int64_t rank = 0; rank < ranks; ++rank) {
    const float *from = looks.data() + rank * stride + 10 + 3 * scene.sites;
    std::memcpy(&colors[rank * scene.sites * 3], from, sizeof(float) * 3 * scene.sites);
  }
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t first = 0; first < ranks * scene.sites; first += kLanes) {
    shade_sites_backward(scene, frame.cells.data(), first, ranks * scene.sites, frame.pose.eye, colors.data(),
                         gradients);
  }
}

}  // namespace
}  // namespace foam

// Gradients of the cells from those of the images. All gradients must be zero.
GRAFTWORK_API int foam_rasterize_backward(const foam::SceneArgs *scene, const foam::CameraArgs *cameras,
                                          const foam::SettingsArgs *settings,
                                          const foam::ImageGradients *images,
                                          const foam::SceneGradients *gradients, int64_t threads) {
  if (threads < 1) return graftwork_fail("threads must be positive, got %lld", static_cast<long long>(threads));
  const foam::Constants constants = foam::constants_of(*settings);
  const int workers = static_cast<int>(threads);
  std::vector<float> shapes(scene->cells * foam::kShapeStride, 0.0f);
  for (int64_t camera = 0; camera < cameras->count; ++camera) {
    foam::Frame frame;
    foam::build_frame(*scene, *cameras, camera, constants, workers, nullptr, frame);
    const float *contribution =
        images->contribution ? images->contribution + camera * scene->cells : nullptr;
    const int64_t first_pixel = camera * cameras->width * cameras->height;
    if (scene->sites == 8) {
      foam::render_backward<8>(*scene, constants, frame, *images, contribution, first_pixel, workers,
                               shapes.data(), *gradients);
    } else {
      foam::render_backward<0>(*scene, constants, frame, *images, contribution, first_pixel, workers,
                               shapes.data(), *gradients);
    }
  }
  for (int64_t cell = 0; cell < scene->cells; ++cell) {
    const float *shape = &shapes[cell * foam::kShapeStride];
    for (int i = 0; i < 3; ++i) gradients->centers[3 * cell + i] = shape[i];
    gradients->radii[cell] = shape[3];
  }
  return 0;
}
