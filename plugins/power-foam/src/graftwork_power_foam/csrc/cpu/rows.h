// Sums per cell over tiles that run in parallel, the same for any number of threads.
//
// Every tile collects rows (cell, values); after a batch of tiles each thread adds the rows of its own cells in
// the order of the tiles. No atomic operation, no private copy of the result, and bit for bit the same sums on
// one thread and on many.
#pragma once

#include <cstdint>
#include <vector>

namespace foam {

// Finds the row of a cell within one tile in constant time.
class SlotMap {
 public:
  explicit SlotMap(int64_t cells) : slot_(cells), stamp_(cells, 0) {}
  void next_tile() { ++now_; }
  int32_t *find(int32_t cell, bool &fresh) {
    fresh = stamp_[cell] != now_;
    stamp_[cell] = now_;
    return &slot_[cell];
  }

 private:
  std::vector<int32_t> slot_;
  std::vector<uint32_t> stamp_;
  uint32_t now_ = 0;
};

class RowTable {
 public:
  void reset(int stride) {
    stride_ = stride;
    cells_.clear();
    values_.clear();
  }
  // The row of a cell, zero at first. Valid until the next call.
  float *row(int32_t cell, SlotMap &slots) {
    bool fresh;
    int32_t *slot = slots.find(cell, fresh);
    if (fresh) {
      *slot = static_cast<int32_t>(cells_.size());
      cells_.push_back(cell);
      values_.resize(values_.size() + stride_, 0.0f);
    }
    return &values_[static_cast<size_t>(*slot) * stride_];
  }
  void add_to(float *sums, int part, int parts) const {
    for (size_t i = 0; i < cells_.size(); ++i) {
      const int32_t cell = cells_[i];
      if ((cell >> 3) % parts != part) continue;
      float *to = sums + static_cast<int64_t>(cell) * stride_;
      const float *from = &values_[i * stride_];
      for (int j = 0; j < stride_; ++j) to[j] += from[j];
    }
  }

 private:
  int stride_ = 0;
  std::vector<int32_t> cells_;
  std::vector<float> values_;
};

}  // namespace foam
