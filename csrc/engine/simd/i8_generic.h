// Bytes as plain arrays, for any processor.
#pragma once

#include "engine/simd/f32_generic.h"

#if defined(__SSE2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace liteseg::LITESEG_ISA {

constexpr int kDotRows = 2;
constexpr int kDotPixels = 1;

struct Ints {
  int4 v;
};
struct Bytes {
  uint8_t v[16];
};
using Left = Bytes;
struct Right {
  int8_t v[16];
};

LITESEG_INLINE Ints load_ints(const void* p) {
  Ints a;
  __builtin_memcpy(&a.v, p, sizeof(a.v));
  return a;
}
LITESEG_INLINE void store_ints(void* p, Ints a) {
  __builtin_memcpy(p, &a.v, sizeof(a.v));
}
LITESEG_INLINE Bytes load_bytes(const uint8_t* p) {
  Bytes a;
  __builtin_memcpy(a.v, p, sizeof(a.v));
  return a;
}
LITESEG_INLINE void store_bytes(uint8_t* p, Bytes a) {
  __builtin_memcpy(p, a.v, sizeof(a.v));
}
LITESEG_INLINE void store_half(uint8_t* p, Bytes a, int half) {
  __builtin_memcpy(p, a.v + 8 * half, 8);
}
LITESEG_INLINE Left left_of(uint32_t word) {
  Left a;
  for (int i = 0; i < 4; ++i) {
    __builtin_memcpy(a.v + 4 * i, &word, sizeof(word));
  }
  return a;
}
LITESEG_INLINE Left left_of(Bytes a) {
  return a;
}
LITESEG_INLINE Right load_right(const void* p) {
  Right b;
  __builtin_memcpy(b.v, p, sizeof(b.v));
  return b;
}
LITESEG_INLINE Ints dot(Ints sum, Left a, Right b) {
  for (int i = 0; i < 4; ++i) {
    for (int j = 0; j < 4; ++j) {
      sum.v[i] += static_cast<int32_t>(a.v[4 * i + j]) * b.v[4 * i + j];
    }
  }
  return sum;
}
LITESEG_INLINE Ints add(Ints a, Ints b) {
  return {a.v + b.v};
}
LITESEG_INLINE Ints set1_int(int32_t x) {
  return {int4{x, x, x, x}};
}
LITESEG_INLINE Vec to_floats(Ints a) {
  return {__builtin_convertvector(a.v, float4)};
}
LITESEG_INLINE Ints to_ints(Vec a) {
#if defined(__SSE2__)
  return {(int4)_mm_cvtps_epi32((__m128)a.v)};
#elif defined(__aarch64__)
  return {(int4)vcvtnq_s32_f32((float32x4_t)a.v)};
#else
  Ints b;
  for (int i = 0; i < 4; ++i) {
    b.v[i] = static_cast<int32_t>(__builtin_lrintf(a.v[i]));
  }
  return b;
#endif
}
LITESEG_INLINE Vec add_product(Vec sum, Vec a, Vec b) {
#if defined(__aarch64__)
  // a compiler that fuses on its own might take the product that `sum` is
  for (int i = 0; i < 4; ++i) {
    sum.v[i] = __builtin_fmaf(a.v[i], b.v[i], sum.v[i]);
  }
  return sum;
#else
  return {sum.v + a.v * b.v};
#endif
}
LITESEG_INLINE Ints widen_bytes(const uint8_t* p) {
  return {int4{p[0], p[1], p[2], p[3]}};
}
LITESEG_INLINE Bytes pack(Ints a, Ints b, Ints c, Ints d) {
  Bytes out;
  const Ints parts[4] = {a, b, c, d};
  for (int i = 0; i < 16; ++i) {
    const int32_t x = parts[i / 4].v[i % 4];
    out.v[i] = static_cast<uint8_t>(x < 0 ? 0 : x > 255 ? 255 : x);
  }
  return out;
}
LITESEG_INLINE Bytes in_order(Bytes a) {
  return a;
}
LITESEG_INLINE void columns(Bytes r0, Bytes r1, Bytes r2, Bytes words[4]) {
  for (int i = 0; i < 16; ++i) {
    uint8_t* word = words[i / 4].v + 4 * (i % 4);
    word[0] = r0.v[i];
    word[1] = r1.v[i];
    word[2] = r2.v[i];
    word[3] = 0;
  }
}

}  // namespace liteseg::LITESEG_ISA
