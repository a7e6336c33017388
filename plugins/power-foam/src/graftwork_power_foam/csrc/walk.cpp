#include "cpu/walk.h"

namespace foam {

void build_diagram(const SceneArgs &scene, int threads, Diagram &diagram) {
  diagram.scene = &scene;
  diagram.cells.resize(scene.cells);
  diagram.flat.resize(scene.cells);
  diagram.walls.reset(new Wall[scene.offsets[scene.cells]]);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t id = 0; id < scene.cells; ++id) {
    const float radius = scene.radii[id];
    diagram.cells[id] =
        prepare(scene.centers + 3 * id, radius, scene.density[id], scene.quaternions + 4 * id);
    bool flat = true;
    for (int64_t k = 0; k < scene.sites; ++k) flat &= scene.heights[id * scene.sites + k] == 0.0f;
    diagram.flat[id] = flat;
    for (int32_t e = scene.offsets[id]; e < scene.offsets[id + 1]; ++e) {
      const int32_t other = scene.neighbors[e];
      const Vec<float> toward = load(scene.centers + 3 * other) - diagram.cells[id].center;
      diagram.walls[e] = {toward, wall_numerator(toward, radius, scene.radii[other], Vec<float>{})};
    }
  }
  diagram.entry = 0;
  for (int64_t id = 0; id < scene.cells; ++id) {
    if (scene.offsets[id + 1] == scene.offsets[id]) continue;
    diagram.entry = static_cast<int32_t>(id);
    return;
  }
  // no walls at all: one cell owns everything, and hides the others if there are any
  for (int64_t id = 1; id < scene.cells; ++id) {
    if (scene.radii[id] > scene.radii[diagram.entry]) diagram.entry = static_cast<int32_t>(id);
  }
}

void shade_diagram(int threads, const Vec<float> &eye, Diagram &diagram) {
  const SceneArgs &scene = *diagram.scene;
  diagram.eye = eye;
  const int64_t sites = scene.cells * scene.sites;
  if (!diagram.colors) diagram.colors.reset(new float[3 * sites]);
  std::vector<int32_t> all(scene.cells);
  for (int64_t id = 0; id < scene.cells; ++id) all[id] = static_cast<int32_t>(id);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t first = 0; first < sites; first += kLanes) {
    shade_sites(scene, all.data(), first, sites, eye, diagram.colors.get());
  }
}

int32_t locate(const Diagram &diagram, const Vec<float> &point, int32_t from) {
  const SceneArgs &scene = *diagram.scene;
  float best = origin_power(diagram.cells[from].center - point, diagram.cells[from].radius);
  for (;;) {
    int32_t next = from;
    for (int32_t e = scene.offsets[from]; e < scene.offsets[from + 1]; ++e) {
      const Cell &other = diagram.cells[scene.neighbors[e]];
      const float power = origin_power(other.center - point, other.radius);
      if (power < best) {
        best = power;
        next = scene.neighbors[e];
      }
    }
    if (next == from) return from;
    from = next;
  }
}

}  // namespace foam
