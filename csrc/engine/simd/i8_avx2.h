// Bytes with AVX2: words of four are two products of 16 bits, which do not saturate as vpmaddubsw would.
#pragma once

#include "engine/simd/f32_avx2.h"

namespace liteseg::LITESEG_ISA {

constexpr int kDotRows = 4;
constexpr int kDotPixels = 1;

struct Ints {
  __m256i v;
};
struct Bytes {
  __m256i v;
};
// bytes 0 and 2 of each word, and bytes 1 and 3, as 16 bits
struct Left {
  __m256i even, odd;
};
struct Right {
  __m256i even, odd;
};

LITESEG_INLINE __m256i load_256(const void* p) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(p));
}
LITESEG_INLINE Ints load_ints(const void* p) {
  return {load_256(p)};
}
LITESEG_INLINE void store_ints(void* p, Ints a) {
  _mm256_storeu_si256(static_cast<__m256i*>(p), a.v);
}
LITESEG_INLINE Bytes load_bytes(const uint8_t* p) {
  return {load_256(p)};
}
LITESEG_INLINE void store_bytes(uint8_t* p, Bytes a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a.v);
}
LITESEG_INLINE void store_half(uint8_t* p, Bytes a, int half) {
  const __m128i part = half == 0 ? _mm256_castsi256_si128(a.v) : _mm256_extracti128_si256(a.v, 1);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), part);
}
LITESEG_INLINE Left left_of(uint32_t word) {
  return {_mm256_set1_epi32(static_cast<int>(word & 0x00ff00ffu)),
          _mm256_set1_epi32(static_cast<int>((word >> 8) & 0x00ff00ffu))};
}
LITESEG_INLINE Left left_of(Bytes a) {
  return {_mm256_and_si256(a.v, _mm256_set1_epi32(0x00ff00ff)), _mm256_srli_epi16(a.v, 8)};
}
LITESEG_INLINE Right load_right(const void* p) {
  const __m256i v = load_256(p);
  return {_mm256_srai_epi16(_mm256_slli_epi16(v, 8), 8), _mm256_srai_epi16(v, 8)};
}
LITESEG_INLINE Ints dot(Ints sum, Left a, Right b) {
  const __m256i even = _mm256_madd_epi16(a.even, b.even);
  const __m256i odd = _mm256_madd_epi16(a.odd, b.odd);
  return {_mm256_add_epi32(sum.v, _mm256_add_epi32(even, odd))};
}
LITESEG_INLINE Ints add(Ints a, Ints b) {
  return {_mm256_add_epi32(a.v, b.v)};
}
LITESEG_INLINE Ints set1_int(int32_t x) {
  return {_mm256_set1_epi32(x)};
}
LITESEG_INLINE Vec to_floats(Ints a) {
  return {_mm256_cvtepi32_ps(a.v)};
}
LITESEG_INLINE Ints to_ints(Vec a) {
  return {_mm256_cvtps_epi32(a.v)};
}
LITESEG_INLINE Vec add_product(Vec sum, Vec a, Vec b) {
  return {_mm256_fmadd_ps(a.v, b.v, sum.v)};
}
LITESEG_INLINE Ints widen_bytes(const uint8_t* p) {
  return {_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)))};
}
LITESEG_INLINE Bytes pack(Ints a, Ints b, Ints c, Ints d) {
  return {_mm256_packus_epi16(_mm256_packs_epi32(a.v, b.v), _mm256_packs_epi32(c.v, d.v))};
}
LITESEG_INLINE Bytes in_order(Bytes a) {
  return {_mm256_permutevar8x32_epi32(a.v, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7))};
}
LITESEG_INLINE void columns(Bytes r0, Bytes r1, Bytes r2, Bytes words[4]) {
  const __m256i zero = _mm256_setzero_si256();
  const __m256i low01 = _mm256_unpacklo_epi8(r0.v, r1.v);
  const __m256i high01 = _mm256_unpackhi_epi8(r0.v, r1.v);
  const __m256i low2 = _mm256_unpacklo_epi8(r2.v, zero);
  const __m256i high2 = _mm256_unpackhi_epi8(r2.v, zero);
  words[0] = {_mm256_unpacklo_epi16(low01, low2)};
  words[1] = {_mm256_unpackhi_epi16(low01, low2)};
  words[2] = {_mm256_unpacklo_epi16(high01, high2)};
  words[3] = {_mm256_unpackhi_epi16(high01, high2)};
}

}  // namespace liteseg::LITESEG_ISA
