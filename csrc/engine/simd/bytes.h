// Vectors of bytes and of the int32 sums of their products, for the instruction set this translation unit is compiled
// for. All of it is exact or correctly rounded, so that results are the same integers on every set.
//
// A header i8_<set>.h gives, beside the floats of f32_<set>.h:
//   Ints            Vec::width int32
//   Bytes           kBytes uint8, in quarters of 16
//   Left, Right     words of four uint8, and words of four int8 in -127..127, ready to be multiplied
//   kDotRows        rows of two vectors that a product sums at once (gemm_int8.h)
//   kDotPixels      outputs of four vectors that a depthwise convolution sums at once (depthwise_int8.h)
//   load_ints, store_ints, load_bytes, store_bytes, store_half, left_of (of one word, of Bytes), load_right, dot, add, to_floats
//   to_ints         to the nearest, ties to even; what no int32 holds is any number on that side, or INT32_MIN
//   add_product     sum + a * b, where a * b is exact: rounded once whether or not that is fused
//   pack            four vectors of int32 as uint8, saturated: 16 bytes of each quarter are four of each in turn
//   in_order        of packed a, b, c, d: all of a, then of b ...; store_half(p, x, 1) stores c and d of that
//   columns         three rows of bytes as words (r0, r1, r2, 0), in the order that `pack` undoes
#pragma once

#include "engine/simd/vec.h"

// clang-format off
#define LITESEG_BYTES_HEADER(set) LITESEG_QUOTED(engine/simd/i8_##set.h)
// clang-format on
#define LITESEG_BYTES_HEADER_OF(set) LITESEG_BYTES_HEADER(set)
#include LITESEG_BYTES_HEADER_OF(LITESEG_SIMD)

namespace liteseg::LITESEG_ISA {

constexpr int64_t kBytes = 4 * Vec::width;

LITESEG_INLINE uint32_t word_at(const uint8_t* p) {
  uint32_t word;
  __builtin_memcpy(&word, p, sizeof(word));
  return word;
}

}  // namespace liteseg::LITESEG_ISA
