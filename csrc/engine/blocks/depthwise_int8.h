// 3x3 depthwise convolution of uint8 rows, with exact int32 sums, scaled and rounded as in gemm_int8.h. Three rows are
// interleaved into words as they are read, so that a column of the window is one product of words.
#pragma once

#include "engine/blocks/gemm_int8.h"

namespace liteseg::LITESEG_ISA {

struct ByteRow {
  int64_t c;   // channels
  int64_t ld;  // bytes from one pixel to the next, whole vectors of any instruction set
  int64_t stride, dilation;
  int64_t ldw;  // words from one kernel column to the next
  // in the order of `columns` (bytes.h): weights are words (w0, w1, w2, 0) of the three kernel rows, for
  // each of the three kernel columns
  const uint32_t* weight;
  const uint32_t* bias;
  const float* scale;
};

// P outputs, the first one's left column being x of the padded rows. S: the stride if the dilation is 1, known at
// compile time so that a column which several outputs read is interleaved once; 0 for any stride and dilation.
template <int P, int S>
void depthwise_bytes_block(const uint8_t* const rows[3], const ByteRow& g, int64_t x, uint8_t* out, int64_t ldo) {
  for (int64_t c = 0; c < g.c; c += kBytes) {
    Ints acc[P][4];
#pragma GCC unroll 5
    for (int p = 0; p < P; ++p) {
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) {
        acc[p][v] = load_ints(g.bias + c + v * Vec::width);
      }
    }
    const auto multiply = [&](Ints(&sums)[4], const Bytes* words, int j) LITESEG_INLINE_LAMBDA {
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) {
        sums[v] = dot(sums[v], left_of(words[v]), load_right(g.weight + j * g.ldw + c + v * Vec::width));
      }
    };
    const auto read = [&](int64_t column, Bytes* words) LITESEG_INLINE_LAMBDA {
      const int64_t at = (x + column) * g.ld + c;
      columns(load_bytes(rows[0] + at), load_bytes(rows[1] + at), load_bytes(rows[2] + at), words);
    };
    if constexpr (S > 0) {
#pragma GCC unroll 11
      for (int column = 0; column < (P - 1) * S + 3; ++column) {
        Bytes words[4];
        read(column, words);
#pragma GCC unroll 3
        for (int j = 0; j < 3; ++j) {
          const int p = (column - j) / S;
          if (column >= j && p * S + j == column && p < P) {
            multiply(acc[p], words, j);
          }
        }
      }
    } else {
#pragma GCC unroll 5
      for (int p = 0; p < P; ++p) {
        for (int j = 0; j < 3; ++j) {
          Bytes words[4];
          read(p * g.stride + j * g.dilation, words);
          multiply(acc[p], words, j);
        }
      }
    }
#pragma GCC unroll 5
    for (int p = 0; p < P; ++p) {
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) {
        acc[p][v] = to_ints(mul(to_floats(acc[p][v]), load(g.scale + c + v * Vec::width)));
      }
      store_bytes(out + p * ldo + c, pack(acc[p][0], acc[p][1], acc[p][2], acc[p][3]));
    }
  }
}

template <int S>
void depthwise_bytes_run(const uint8_t* const rows[3], const ByteRow& g, int64_t x, int64_t outputs, uint8_t* out,
                         int64_t ldo) {
  int64_t done = 0;
  for (int64_t blocks = div_up(outputs, kDotPixels); blocks > 0; --blocks) {
    const int64_t pixels = div_up(outputs - done, blocks);
    const int64_t at = x + done * g.stride;
    uint8_t* to = out + done * ldo;
    switch (pixels) {
#define LITESEG_PIXELS(P)                                \
  case P:                                                \
    if constexpr (P <= kDotPixels) {                     \
      depthwise_bytes_block<P, S>(rows, g, at, to, ldo); \
    }                                                    \
    break;
      LITESEG_PIXELS(1)
      LITESEG_PIXELS(2)
      LITESEG_PIXELS(3)
      LITESEG_PIXELS(4)
      LITESEG_PIXELS(5)
#undef LITESEG_PIXELS
    }
    done += pixels;
  }
}

// `outputs` outputs of one row; the first one's left column is x of the padded rows. A row outside of the image is one
// of zeros.
LITESEG_INLINE void depthwise_bytes(const uint8_t* const rows[3], const ByteRow& g, int64_t x, int64_t outputs,
                                    uint8_t* out, int64_t ldo) {
  if (g.dilation == 1 && g.stride == 1) {
    depthwise_bytes_run<1>(rows, g, x, outputs, out, ldo);
  } else if (g.dilation == 1 && g.stride == 2) {
    depthwise_bytes_run<2>(rows, g, x, outputs, out, ldo);
  } else {
    depthwise_bytes_run<0>(rows, g, x, outputs, out, ldo);
  }
}

}  // namespace liteseg::LITESEG_ISA
