// Bytes with AVX-512: words of four are one vpdpbusd where AVX512_VNNI is compiled for, else two products of 16 bits,
// which do not saturate as vpmaddubsw would.
#pragma once

#include "engine/simd/f32_avx512.h"

namespace liteseg::LITESEG_ISA {

struct Ints {
  __m512i v;
};
struct Bytes {
  __m512i v;
};

LITESEG_INLINE Ints load_ints(const void* p) {
  return {_mm512_loadu_si512(p)};
}
LITESEG_INLINE void store_ints(void* p, Ints a) {
  _mm512_storeu_si512(p, a.v);
}
LITESEG_INLINE Bytes load_bytes(const uint8_t* p) {
  return {_mm512_loadu_si512(p)};
}
LITESEG_INLINE void store_bytes(uint8_t* p, Bytes a) {
  _mm512_storeu_si512(p, a.v);
}
LITESEG_INLINE void store_half(uint8_t* p, Bytes a, int half) {
  const __m256i part = half == 0 ? _mm512_castsi512_si256(a.v) : _mm512_extracti64x4_epi64(a.v, 1);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), part);
}

#if defined(__AVX512VNNI__)
constexpr int kDotRows = 12;
constexpr int kDotPixels = 5;

struct Left {
  __m512i v;
};
struct Right {
  __m512i v;
};
LITESEG_INLINE Left left_of(uint32_t word) {
  return {_mm512_set1_epi32(static_cast<int>(word))};
}
LITESEG_INLINE Left left_of(Bytes a) {
  return {a.v};
}
LITESEG_INLINE Right load_right(const void* p) {
  return {_mm512_loadu_si512(p)};
}
LITESEG_INLINE Ints dot(Ints sum, Left a, Right b) {
  // gcc 12 copies and spills the sums of the intrinsic
  __asm__("vpdpbusd %2, %1, %0" : "+v"(sum.v) : "v"(a.v), "v"(b.v));
  return sum;
}
#else
constexpr int kDotRows = 8;
constexpr int kDotPixels = 3;

// bytes 0 and 2 of each word, and bytes 1 and 3, as 16 bits
struct Left {
  __m512i even, odd;
};
struct Right {
  __m512i even, odd;
};
LITESEG_INLINE Left left_of(uint32_t word) {
  return {_mm512_set1_epi32(static_cast<int>(word & 0x00ff00ffu)),
          _mm512_set1_epi32(static_cast<int>((word >> 8) & 0x00ff00ffu))};
}
LITESEG_INLINE Left left_of(Bytes a) {
  return {_mm512_and_si512(a.v, _mm512_set1_epi32(0x00ff00ff)), _mm512_srli_epi16(a.v, 8)};
}
LITESEG_INLINE Right load_right(const void* p) {
  const __m512i v = _mm512_loadu_si512(p);
  return {_mm512_srai_epi16(_mm512_slli_epi16(v, 8), 8), _mm512_srai_epi16(v, 8)};
}
LITESEG_INLINE Ints dot(Ints sum, Left a, Right b) {
  const __m512i even = _mm512_madd_epi16(a.even, b.even);
  const __m512i odd = _mm512_madd_epi16(a.odd, b.odd);
  return {_mm512_add_epi32(sum.v, _mm512_add_epi32(even, odd))};
}
#endif

LITESEG_INLINE Ints add(Ints a, Ints b) {
  return {_mm512_add_epi32(a.v, b.v)};
}
LITESEG_INLINE Ints set1_int(int32_t x) {
  return {_mm512_set1_epi32(x)};
}
LITESEG_INLINE Vec to_floats(Ints a) {
  return {_mm512_cvtepi32_ps(a.v)};
}
LITESEG_INLINE Ints to_ints(Vec a) {
  return {_mm512_cvtps_epi32(a.v)};
}
LITESEG_INLINE Vec add_product(Vec sum, Vec a, Vec b) {
  return {_mm512_fmadd_ps(a.v, b.v, sum.v)};
}
// Vec::width bytes as int32
LITESEG_INLINE Ints widen_bytes(const uint8_t* p) {
  return {_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
LITESEG_INLINE Bytes pack(Ints a, Ints b, Ints c, Ints d) {
  return {_mm512_packus_epi16(_mm512_packs_epi32(a.v, b.v), _mm512_packs_epi32(c.v, d.v))};
}
LITESEG_INLINE Bytes in_order(Bytes a) {
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return {_mm512_permutexvar_epi32(order, a.v)};
}
LITESEG_INLINE void columns(Bytes r0, Bytes r1, Bytes r2, Bytes words[4]) {
  const __m512i zero = _mm512_setzero_si512();
  const __m512i low01 = _mm512_unpacklo_epi8(r0.v, r1.v);
  const __m512i high01 = _mm512_unpackhi_epi8(r0.v, r1.v);
  const __m512i low2 = _mm512_unpacklo_epi8(r2.v, zero);
  const __m512i high2 = _mm512_unpackhi_epi8(r2.v, zero);
  words[0] = {_mm512_unpacklo_epi16(low01, low2)};
  words[1] = {_mm512_unpackhi_epi16(low01, low2)};
  words[2] = {_mm512_unpacklo_epi16(high01, high2)};
  words[3] = {_mm512_unpackhi_epi16(high01, high2)};
}

}  // namespace liteseg::LITESEG_ISA
