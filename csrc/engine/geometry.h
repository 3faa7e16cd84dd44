// Sizes of convolutions and of the tiles they are computed in.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "common/check.h"

namespace liteseg::cpu {

inline int64_t div_up(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}
inline int64_t round_up(int64_t a, int64_t b) {
  return div_up(a, b) * b;
}

inline int64_t output_size(const char* op, const char* argument, int64_t size, int64_t kernel, int64_t stride,
                           int64_t padding, int64_t dilation) {
  LITESEG_CHECK(stride > 0 && dilation > 0 && padding >= 0, op, argument, "stride >= 1, dilation >= 1 and padding >= 0",
                text(stride, ", ", dilation, " and ", padding));
  const int64_t room = size + 2 * padding - dilation * (kernel - 1) - 1;
  LITESEG_CHECK(room >= 0, op, argument, text("at least ", dilation * (kernel - 1) + 1, " with its padding"),
                size + 2 * padding);
  return room / stride + 1;
}

// Pixels worked on at a time: enough for the registers of the product, few enough that the depthwise values of a tile
// stay in the first levels of cache and that every thread gets several tiles. Results do not depend on it.
inline int64_t tile_pixels(int64_t channels, int64_t pixels, int64_t least, int64_t threads) {
  constexpr int64_t cached_floats = 16384;
  const int64_t by_cache = cached_floats / std::max<int64_t>(channels, 1) / least * least;
  const int64_t by_balance = pixels / (4 * threads) / least * least;
  return std::max(least, std::min({by_cache, by_balance, int64_t{240}}));
}

// Pixels worked on at a time, near `tile`, so that every thread gets the same number of tiles where there are few of
// them. Results do not depend on it.
inline int64_t balanced_tile(int64_t tile, int64_t images, int64_t plane, int64_t threads) {
  constexpr int64_t step = 12;  // rows of a block of the widest product
  int64_t best = tile;
  int64_t least = std::numeric_limits<int64_t>::max();
  for (int64_t t = tile * 3 / 2; t >= tile / 2 && t >= step; t -= step) {
    const int64_t cost = div_up(images * div_up(plane, t), threads) * t;
    if (cost < least) {
      least = cost;
      best = t;
    }
  }
  return best;
}

}  // namespace liteseg::cpu
