// Products of bfloat16 by AMX: sixteen rows times sixteen columns of sums in one register, for gemm_bf16.h.
//
// The right side is packed there as tiles want it, rows of words of two neighbouring k, so packed weights serve both. A
// tile keeps the sums over even and over odd k apart and adds them up at its end: results differ from vdpbf16ps in
// their last bits, but as there not with what is computed together, for every output adds its tiles of k in one order.
#pragma once

#include "engine/blocks/copy.h"

namespace liteseg::LITESEG_ISA {

constexpr int64_t kTileRows = 16;
constexpr int64_t kTileWords = 16;  // of a row of the left side, and rows of the right one

// The eight registers; intrinsics want literals. Sums of two groups of rows by two groups of columns, then whole tiles
// of either side, then tiles of the words left over.
#define LITESEG_SUMS_00 0
#define LITESEG_SUMS_01 1
#define LITESEG_SUMS_10 2
#define LITESEG_SUMS_11 3
#define LITESEG_LEFT 4
#define LITESEG_RIGHT 5
#define LITESEG_LEFT_REST 6
#define LITESEG_RIGHT_REST 7

// the intrinsics do not tell compilers which memory they read
LITESEG_INLINE void finish_stores(const void* p) {
  asm volatile("" : : "r"(p) : "memory");
}

// The registers' shapes, for as long as it lives; released registers are nothing that a context switch has to save.
class Tiles {
 public:
  // products of `rows` rows at a time, with `rest` words beyond whole tiles of them
  LITESEG_INLINE Tiles(int64_t rows, int64_t rest) {
    alignas(64) struct {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {};
      uint8_t rows[16] = {};
    } shapes;
    const auto set = [&](int tile, int64_t height, int64_t words) LITESEG_INLINE_LAMBDA {
      shapes.rows[tile] = static_cast<uint8_t>(height);
      shapes.row_bytes[tile] = static_cast<uint16_t>(4 * words);
    };
    set(LITESEG_SUMS_00, rows, kTileWords);
    set(LITESEG_SUMS_01, rows, kTileWords);
    set(LITESEG_SUMS_10, rows, kTileWords);
    set(LITESEG_SUMS_11, rows, kTileWords);
    set(LITESEG_LEFT, rows, kTileWords);
    set(LITESEG_RIGHT, kTileWords, kTileWords);
    if (rest > 0) {
      set(LITESEG_LEFT_REST, rows, rest);
      set(LITESEG_RIGHT_REST, rest, kTileWords);
    }
    finish_stores(&shapes);
    _tile_loadconfig(&shapes);
  }
  LITESEG_INLINE ~Tiles() {
    _tile_release();
  }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;
};

// sums += left * right for G groups of rows and V columns of tiles; L, R: the registers of either side
#define LITESEG_ADD_PRODUCTS(L, R)           \
  _tile_loadd(L, a0, step);                  \
  _tile_loadd(R, b, row);                    \
  _tile_dpbf16ps(LITESEG_SUMS_00, L, R);     \
  if constexpr (V == 2) {                    \
    _tile_loadd(R, b + kTileWords, row);     \
    _tile_dpbf16ps(LITESEG_SUMS_01, L, R);   \
  }                                          \
  if constexpr (G == 2) {                    \
    _tile_loadd(L, a1, step);                \
    if constexpr (V == 2) {                  \
      _tile_dpbf16ps(LITESEG_SUMS_11, L, R); \
      _tile_loadd(R, b, row);                \
    }                                        \
    _tile_dpbf16ps(LITESEG_SUMS_10, L, R);   \
  }

// Sums of one run of `words` words: a0 and a1 are the two groups' rows, `step` bytes apart; b has rows of `row` bytes.
template <int G, int V>
LITESEG_INLINE void add_run(const bf16* a0, const bf16* a1, int64_t step, int64_t words, const float* b, int64_t row) {
  const int64_t tile = kTileWords * row / static_cast<int64_t>(sizeof(float));
  for (; words >= kTileWords; words -= kTileWords) {
    LITESEG_ADD_PRODUCTS(LITESEG_LEFT, LITESEG_RIGHT)
    a0 += 2 * kTileWords;
    a1 += 2 * kTileWords;
    b += tile;
  }
  if (words > 0) {
    LITESEG_ADD_PRODUCTS(LITESEG_LEFT_REST, LITESEG_RIGHT_REST)
  }
}
#undef LITESEG_ADD_PRODUCTS

// every row of the sums from the same `bias`
template <int G, int V>
LITESEG_INLINE void start_sums(const float* bias) {
  _tile_loadd(LITESEG_SUMS_00, bias, 0);
  if constexpr (V == 2) {
    _tile_loadd(LITESEG_SUMS_01, bias + kTileWords, 0);
  }
  if constexpr (G == 2) {
    _tile_loadd(LITESEG_SUMS_10, bias, 0);
    if constexpr (V == 2) {
      _tile_loadd(LITESEG_SUMS_11, bias + kTileWords, 0);
    }
  }
}

// sums of the groups into [G][kTileRows][V * kTileWords]
template <int G, int V>
LITESEG_INLINE void store_sums(float* out) {
  constexpr int64_t row = V * kTileWords * sizeof(float);
  _tile_stored(LITESEG_SUMS_00, out, row);
  if constexpr (V == 2) {
    _tile_stored(LITESEG_SUMS_01, out + kTileWords, row);
  }
  if constexpr (G == 2) {
    float* second = out + kTileRows * V * kTileWords;
    _tile_stored(LITESEG_SUMS_10, second, row);
    if constexpr (V == 2) {
      _tile_stored(LITESEG_SUMS_11, second + kTileWords, row);
    }
  }
}

}  // namespace liteseg::LITESEG_ISA
