// What every file of a kernel starts from: its instruction set, and arithmetic on single numbers.
//
// setup.py compiles a kernel once for each row of its table INSTRUCTION_SETS and names the set: LITESEG_ISA is the
// namespace of everything in the file, LITESEG_SIMD the header f32_<LITESEG_SIMD>.h of its vectors. The namespaces keep
// the linker from picking a function compiled for AVX-512 for a processor without it. For the same reason the headers
// included here define no inline functions of their own besides compiler intrinsics.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "engine/types.h"

#if !defined(LITESEG_ISA)
// a file that is compiled once, for every processor
#define LITESEG_ISA scalar
#define LITESEG_SIMD generic
#endif

#if defined(LITESEG_COVERAGE)  // gcov would count what is always inlined as a part of every caller
#define LITESEG_INLINE inline
#define LITESEG_INLINE_LAMBDA
#else
#define LITESEG_INLINE inline __attribute__((always_inline))
#define LITESEG_INLINE_LAMBDA __attribute__((always_inline))
#endif

// GCC would give every kernel a copy of its own, with other arguments; unchanged, the linker keeps one for all of them
#if defined(__GNUC__) && !defined(__clang__)
#define LITESEG_ONE_COPY __attribute__((noclone))
#else
#define LITESEG_ONE_COPY
#endif

namespace liteseg::LITESEG_ISA {

using cpu::bf16;
using cpu::f16;

LITESEG_INLINE int64_t min_i(int64_t a, int64_t b) {
  return a < b ? a : b;
}
LITESEG_INLINE int64_t max_i(int64_t a, int64_t b) {
  return a > b ? a : b;
}
LITESEG_INLINE int64_t div_up(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}
LITESEG_INLINE float from_bits(uint32_t u) {
  float f;
  __builtin_memcpy(&f, &u, sizeof(f));
  return f;
}
LITESEG_INLINE uint32_t to_bits(float f) {
  uint32_t u;
  __builtin_memcpy(&u, &f, sizeof(u));
  return u;
}

LITESEG_INLINE float widen(float x) {
  return x;
}
LITESEG_INLINE float widen(bf16 x) {
  return from_bits(static_cast<uint32_t>(x.bits) << 16);
}
LITESEG_INLINE float widen(f16 x) {
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  const uint32_t magnitude = static_cast<uint32_t>(x.bits & 0x7fffu) << 13;
  // multiplying by 2^112 moves the exponent bias and turns half subnormals into normal floats
  const float scaled = from_bits(magnitude) * from_bits(0x77800000u);
  const bool special = (x.bits & 0x7c00u) == 0x7c00u;
  return from_bits((special ? (magnitude | 0x7f800000u) : to_bits(scaled)) | sign);
}

LITESEG_INLINE void narrow(float x, float* out) {
  *out = x;
}
LITESEG_INLINE void narrow(float x, bf16* out) {
  const uint32_t u = to_bits(x);
  const bool nan = (u & 0x7fffffffu) > 0x7f800000u;
  out->bits = static_cast<uint16_t>(nan ? 0x7fc0u : (u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}
LITESEG_INLINE void narrow(float x, f16* out) {
  const uint32_t u = to_bits(x);
  const uint32_t sign = (u >> 16) & 0x8000u;
  const uint32_t magnitude = u & 0x7fffffffu;
  uint32_t half;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00u;
  } else if (magnitude >= 0x477ff000u) {
    half = 0x7c00u;  // rounds to infinity
  } else if (magnitude < 0x38800000u) {
    // subnormal: adding 0.5 leaves the rounded value in the lowest bits of the sum
    half = to_bits(from_bits(magnitude) + 0.5f) - 0x3f000000u;
  } else {
    half = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  }
  out->bits = static_cast<uint16_t>(half | sign);
}

}  // namespace liteseg::LITESEG_ISA
