// Tiles: moving a few pixels of all channels between a tensor and float32 scratch in (channel, pixel) order.
#pragma once
#include <algorithm>
#include <cstdint>

#include "butterfly.h"
#include "simd.h"

namespace bft {

// Rows of a tile: `at + channel * step`, pixels contiguous.
template <class T>
struct Rows {
  T* at;
  int64_t step;
  T* operator[](int64_t channel) const { return at + channel * step; }
};
using In = Rows<const float>;
using Out = Rows<float>;

// Where a tile lies: pixels [begin, begin + count) of an image. Channels-last tensors are one long image.
struct Span {
  int64_t image, begin;
  int count;
};

template <class T>
struct Tensor {
  T* data;
  int64_t channels, pixels;
  Layout layout;

  // Channel `c` at the first pixel of a span, channels first.
  T* row(Span s, int64_t c) const { return data + (s.image * channels + c) * pixels + s.begin; }
  // Pixel `p` of a span at channel `c`, channels last.
  T* pixel(Span s, int64_t p, int64_t c) const { return data + (s.begin + p) * channels + c; }
};

template <class T>
void read_channels_first(Tensor<T> x, Span s, int begin, int count, int width, float* to) {
  for (int c = 0; c < count; ++c, to += width) {
    const T* from = x.row(s, begin + c);
    int p = 0;
    for (; p + kLanes <= s.count; p += kLanes) store(to + p, load(from + p));
    for (; p < s.count; ++p) to[p] = to_float(from[p]);
    for (; p < width; ++p) to[p] = 0;
  }
}

template <class T>
void write_channels_first(Tensor<T> y, Span s, int begin, int count, int width, const float* from) {
  for (int c = 0; c < count; ++c, from += width) {
    T* to = y.row(s, begin + c);
    int p = 0;
    for (; p + kLanes <= s.count; p += kLanes) store(to + p, load(from + p));
    for (; p < s.count; ++p) from_float(to + p, from[p]);
  }
}

template <class T>
void read_channels_last(Tensor<T> x, Span s, int begin, int count, int width, float* to) {
  Vec block[kLanes];
  for (int p0 = 0; p0 < width; p0 += kLanes) {
    const int valid = std::min(kLanes, std::max(0, s.count - p0));
    int c = 0;
    for (; c + kLanes <= count; c += kLanes) {
      for (int p = 0; p < kLanes; ++p) block[p] = p < valid ? load(x.pixel(s, p0 + p, begin + c)) : Vec{};
      transpose(block);
      for (int k = 0; k < kLanes; ++k) store(to + (int64_t)(c + k) * width + p0, block[k]);
    }
    for (; c < count; ++c)
      for (int p = 0; p < kLanes; ++p)
        to[(int64_t)c * width + p0 + p] = p < valid ? to_float(*x.pixel(s, p0 + p, begin + c)) : 0;
  }
}

template <class T>
void write_channels_last(Tensor<T> y, Span s, int begin, int count, int width, const float* from) {
  Vec block[kLanes];
  for (int p0 = 0; p0 < s.count; p0 += kLanes) {
    const int valid = std::min(kLanes, s.count - p0);
    int c = 0;
    for (; c + kLanes <= count; c += kLanes) {
      for (int k = 0; k < kLanes; ++k) block[k] = load(from + (int64_t)(c + k) * width + p0);
      transpose(block);
      for (int p = 0; p < valid; ++p) store(y.pixel(s, p0 + p, begin + c), block[p]);
    }
    for (; c < count; ++c)
      for (int p = 0; p < valid; ++p)
        from_float(y.pixel(s, p0 + p, begin + c), from[(int64_t)c * width + p0 + p]);
  }
}

// True if a tile can be worked on where it lies: whole vectors of float32, no rows to invent or to drop.
template <class T>
bool in_place(Tensor<T> x, Span s, int count, int padded, int width) {
  return sizeof(T) == 4 && x.layout == kChannelsFirst && s.count == width && count == padded;
}

// `count` channels from `begin` as rows, followed by zero rows up to `padded`; copied to scratch unless in place.
template <class T>
In fetch(Tensor<T> x, Span s, int begin, int count, int padded, int width, float* scratch) {
  if constexpr (sizeof(T) == 4)
    if (in_place(x, s, count, padded, width)) return {x.row(s, begin), x.pixels};
  if (x.layout == kChannelsFirst) read_channels_first(x, s, begin, count, width, scratch);
  else read_channels_last(x, s, begin, count, width, scratch);
  std::fill(scratch + (int64_t)count * width, scratch + (int64_t)padded * width, 0.f);
  return {scratch, width};
}

// Rows to write `count` channels to: the tensor itself, or scratch that `put` copies out afterwards.
template <class T>
Out target(Tensor<T> y, Span s, int begin, int count, int padded, int width, float* scratch) {
  if constexpr (sizeof(T) == 4)
    if (in_place(y, s, count, padded, width)) return {y.row(s, begin), y.pixels};
  return {scratch, width};
}

template <class T>
void put(Tensor<T> y, Span s, int begin, int count, int width, Out rows, const float* scratch) {
  if (rows.at != scratch) return;
  if (y.layout == kChannelsFirst) write_channels_first(y, s, begin, count, width, scratch);
  else write_channels_last(y, s, begin, count, width, scratch);
}

}  // namespace bft
