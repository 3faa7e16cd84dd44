// Eight floats with AVX2, FMA and F16C.
#pragma once

#include "engine/simd/base.h"

// gcc 12 reports its own _mm512_undefined_* as uninitialised wherever an intrinsic is inlined (gcc bug 105593)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>

namespace liteseg::LITESEG_ISA {

constexpr int kVectorRegisters = 16;
constexpr int kProductRows = 6;  // of two vectors each (gemm.h): 12 registers accumulate

struct Vec {
  static constexpr int64_t width = 8;
  __m256 v;
};
LITESEG_INLINE __m256i lanes(int64_t n) {
  const __m256i index = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), index);
}
LITESEG_INLINE Vec set1(float x) {
  return {_mm256_set1_ps(x)};
}
LITESEG_INLINE Vec load(const float* p) {
  return {_mm256_loadu_ps(p)};
}
LITESEG_INLINE Vec load(const f16* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
LITESEG_INLINE Vec load(const bf16* p) {
  const __m128i x = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16))};
}
// the first n < width elements; the other lanes are zero and their memory is not touched
LITESEG_INLINE Vec load_n(const float* p, int64_t n) {
  return {_mm256_maskload_ps(p, lanes(n))};
}
template <typename T>
LITESEG_INLINE Vec load_n(const T* p, int64_t n) {
  alignas(16) T tmp[8] = {};
  for (int64_t i = 0; i < n; ++i) {
    tmp[i] = p[i];
  }
  return load(tmp);
}
LITESEG_INLINE void store(float* p, Vec a) {
  _mm256_storeu_ps(p, a.v);
}
LITESEG_INLINE void store(f16* p, Vec a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
LITESEG_INLINE void store(bf16* p, Vec a) {
  const __m256i u = _mm256_castps_si256(a.v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(u, _mm256_set1_epi32(0x7fff)), odd), 16);
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q));
  const __m256i words = _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc0), nan);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm_packus_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
}
LITESEG_INLINE void store_n(float* p, Vec a, int64_t n) {
  _mm256_maskstore_ps(p, lanes(n), a.v);
}
template <typename T>
LITESEG_INLINE void store_n(T* p, Vec a, int64_t n) {
  alignas(16) T tmp[8];
  store(tmp, a);
  for (int64_t i = 0; i < n; ++i) {
    p[i] = tmp[i];
  }
}
LITESEG_INLINE Vec fma(Vec a, Vec b, Vec c) {
  return {_mm256_fmadd_ps(a.v, b.v, c.v)};
}
LITESEG_INLINE Vec add(Vec a, Vec b) {
  return {_mm256_add_ps(a.v, b.v)};
}
LITESEG_INLINE Vec sub(Vec a, Vec b) {
  return {_mm256_sub_ps(a.v, b.v)};
}
LITESEG_INLINE Vec mul(Vec a, Vec b) {
  return {_mm256_mul_ps(a.v, b.v)};
}
LITESEG_INLINE Vec divide(Vec a, Vec b) {
  return {_mm256_div_ps(a.v, b.v)};
}
// maximum and minimum return b where either is NaN
LITESEG_INLINE Vec maximum(Vec a, Vec b) {
  return {_mm256_max_ps(a.v, b.v)};
}
LITESEG_INLINE Vec minimum(Vec a, Vec b) {
  return {_mm256_min_ps(a.v, b.v)};
}
// NaN where either is
LITESEG_INLINE Vec maximum_or_nan(Vec a, Vec b) {
  return {_mm256_blendv_ps(_mm256_max_ps(a.v, b.v), a.v, _mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q))};
}
// lane by lane: a > b ? x : y
LITESEG_INLINE Vec where_greater(Vec a, Vec b, Vec x, Vec y) {
  return {_mm256_blendv_ps(y.v, x.v, _mm256_cmp_ps(a.v, b.v, _CMP_GT_OQ))};
}
// a * 2^n for whole n from -126 to 127
LITESEG_INLINE Vec scale_by_power(Vec a, Vec n) {
  const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n.v), _mm256_set1_epi32(127));
  return {_mm256_mul_ps(a.v, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)))};
}
using Index = __m256i;
LITESEG_INLINE Index load_index(const int32_t* p, int32_t base) {
  return _mm256_sub_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), _mm256_set1_epi32(base));
}
// p[index] lane by lane; with Near all indices are below the width and p is readable that far
template <bool Near>
LITESEG_INLINE Vec lookup(const float* p, Index index) {
  return {Near ? _mm256_permutevar8x32_ps(_mm256_loadu_ps(p), index) : _mm256_i32gather_ps(p, index, 4)};
}

LITESEG_INLINE void transpose(Vec r[8]) {
  __m256 t[8];
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_ps(r[i].v, r[i + 1].v);
    t[i + 1] = _mm256_unpackhi_ps(r[i].v, r[i + 1].v);
  }
  __m256 u[8];
  for (int i = 0; i < 8; i += 4) {
    u[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
    u[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
    u[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
    u[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
  }
  for (int i = 0; i < 4; ++i) {
    r[i].v = _mm256_permute2f128_ps(u[i], u[i + 4], 0x20);
    r[i + 4].v = _mm256_permute2f128_ps(u[i], u[i + 4], 0x31);
  }
}

}  // namespace liteseg::LITESEG_ISA
