// Sixteen floats with AVX-512 (F, BW, VL, DQ).
#pragma once

#include "engine/simd/base.h"

// gcc 12 reports its own _mm512_undefined_* as uninitialised wherever an intrinsic is inlined (gcc bug 105593)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>

namespace liteseg::LITESEG_ISA {

constexpr int kVectorRegisters = 32;
constexpr int kProductRows = 12;  // of two vectors each (gemm.h): 24 registers accumulate

struct Vec {
  static constexpr int64_t width = 16;
  __m512 v;
};
LITESEG_INLINE __mmask16 lanes(int64_t n) {
  return static_cast<__mmask16>((1u << n) - 1u);
}
LITESEG_INLINE Vec set1(float x) {
  return {_mm512_set1_ps(x)};
}
LITESEG_INLINE Vec load(const float* p) {
  return {_mm512_loadu_ps(p)};
}
LITESEG_INLINE Vec load(const f16* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
LITESEG_INLINE __m512 widen_bf16(__m256i x) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
}
LITESEG_INLINE Vec load(const bf16* p) {
  return {widen_bf16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
// the first n < width elements; the other lanes are zero and their memory is not touched
LITESEG_INLINE Vec load_n(const float* p, int64_t n) {
  return {_mm512_maskz_loadu_ps(lanes(n), p)};
}
LITESEG_INLINE Vec load_n(const f16* p, int64_t n) {
  return {_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(lanes(n), p))};
}
LITESEG_INLINE Vec load_n(const bf16* p, int64_t n) {
  return {widen_bf16(_mm256_maskz_loadu_epi16(lanes(n), p))};
}
LITESEG_INLINE __m256i narrow_f16(Vec a) {
  return _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
LITESEG_INLINE __m256i narrow_bf16(Vec a) {
  const __m512i u = _mm512_castps_si512(a.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(u, _mm512_set1_epi32(0x7fff)), odd);
  const __mmask16 nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
  return _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(_mm512_srli_epi32(rounded, 16), nan, _mm512_set1_epi32(0x7fc0)));
}
LITESEG_INLINE void store(float* p, Vec a) {
  _mm512_storeu_ps(p, a.v);
}
LITESEG_INLINE void store(f16* p, Vec a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow_f16(a));
}
LITESEG_INLINE void store(bf16* p, Vec a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow_bf16(a));
}
LITESEG_INLINE void store_n(float* p, Vec a, int64_t n) {
  _mm512_mask_storeu_ps(p, lanes(n), a.v);
}
LITESEG_INLINE void store_n(f16* p, Vec a, int64_t n) {
  _mm256_mask_storeu_epi16(p, lanes(n), narrow_f16(a));
}
LITESEG_INLINE void store_n(bf16* p, Vec a, int64_t n) {
  _mm256_mask_storeu_epi16(p, lanes(n), narrow_bf16(a));
}
LITESEG_INLINE Vec fma(Vec a, Vec b, Vec c) {
  return {_mm512_fmadd_ps(a.v, b.v, c.v)};
}
LITESEG_INLINE Vec add(Vec a, Vec b) {
  return {_mm512_add_ps(a.v, b.v)};
}
LITESEG_INLINE Vec sub(Vec a, Vec b) {
  return {_mm512_sub_ps(a.v, b.v)};
}
LITESEG_INLINE Vec mul(Vec a, Vec b) {
  return {_mm512_mul_ps(a.v, b.v)};
}
LITESEG_INLINE Vec divide(Vec a, Vec b) {
  return {_mm512_div_ps(a.v, b.v)};
}
// maximum and minimum return b where either is NaN
LITESEG_INLINE Vec maximum(Vec a, Vec b) {
  return {_mm512_max_ps(a.v, b.v)};
}
LITESEG_INLINE Vec minimum(Vec a, Vec b) {
  return {_mm512_min_ps(a.v, b.v)};
}
// NaN where either is
LITESEG_INLINE Vec maximum_or_nan(Vec a, Vec b) {
  return {_mm512_mask_mov_ps(_mm512_max_ps(a.v, b.v), _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q), a.v)};
}
// lane by lane: a > b ? x : y
LITESEG_INLINE Vec where_greater(Vec a, Vec b, Vec x, Vec y) {
  return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ), y.v, x.v)};
}
// a * 2^n for whole n
LITESEG_INLINE Vec scale_by_power(Vec a, Vec n) {
  return {_mm512_scalef_ps(a.v, n.v)};
}
using Index = __m512i;
LITESEG_INLINE Index load_index(const int32_t* p, int32_t base) {
  return _mm512_sub_epi32(_mm512_loadu_si512(p), _mm512_set1_epi32(base));
}
// p[index] lane by lane; with Near all indices are below the width and p is readable that far
template <bool Near>
LITESEG_INLINE Vec lookup(const float* p, Index index) {
  return {Near ? _mm512_permutexvar_ps(index, _mm512_loadu_ps(p)) : _mm512_i32gather_ps(index, p, 4)};
}

LITESEG_INLINE void transpose(Vec r[16]) {
  __m512 t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_ps(r[i].v, r[i + 1].v);
    t[i + 1] = _mm512_unpackhi_ps(r[i].v, r[i + 1].v);
  }
  __m512 u[16];
  for (int i = 0; i < 16; i += 4) {
    u[i] = _mm512_shuffle_ps(t[i], t[i + 2], 0x44);
    u[i + 1] = _mm512_shuffle_ps(t[i], t[i + 2], 0xee);
    u[i + 2] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0x44);
    u[i + 3] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0xee);
  }
  for (int i = 0; i < 4; ++i) {
    const __m512 a = _mm512_shuffle_f32x4(u[i], u[i + 4], 0x88);
    const __m512 b = _mm512_shuffle_f32x4(u[i], u[i + 4], 0xdd);
    const __m512 c = _mm512_shuffle_f32x4(u[i + 8], u[i + 12], 0x88);
    const __m512 d = _mm512_shuffle_f32x4(u[i + 8], u[i + 12], 0xdd);
    r[i].v = _mm512_shuffle_f32x4(a, c, 0x88);
    r[i + 4].v = _mm512_shuffle_f32x4(b, d, 0x88);
    r[i + 8].v = _mm512_shuffle_f32x4(a, c, 0xdd);
    r[i + 12].v = _mm512_shuffle_f32x4(b, d, 0xdd);
  }
}

}  // namespace liteseg::LITESEG_ISA
