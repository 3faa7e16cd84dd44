// One SIMD vector of floats, for the instruction set this translation unit is compiled for.
//
// Everything lives in a namespace named after the instruction set (LITESEG_ISA), so that no function compiled for
// AVX-512 can be picked by the linker for the baseline. For the same reason the headers included here define no inline
// functions of their own besides compiler intrinsics.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "types.h"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
#if defined(__AVX512BF16__)
#define LITESEG_ISA avx512bf16
#else
#define LITESEG_ISA avx512
#endif
#define LITESEG_ISA_AVX512 1
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define LITESEG_ISA avx2
#define LITESEG_ISA_AVX2 1
#else
#define LITESEG_ISA scalar
#define LITESEG_ISA_SCALAR 1
#endif

#if !defined(LITESEG_ISA_SCALAR)
// gcc 12 reports its own _mm512_undefined_* as uninitialised wherever an intrinsic is inlined (gcc bug 105593)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>
#endif

#if defined(LITESEG_COVERAGE)  // gcov would count what is always inlined as a part of every caller
#define LITESEG_INLINE inline
#define LITESEG_INLINE_LAMBDA
#else
#define LITESEG_INLINE inline __attribute__((always_inline))
#define LITESEG_INLINE_LAMBDA __attribute__((always_inline))
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

#if defined(LITESEG_ISA_AVX512)

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

#elif defined(LITESEG_ISA_AVX2)

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

#else

// four lanes as a compiler vector: SSE2 on x86-64, whatever the target has elsewhere
typedef float float4 __attribute__((vector_size(16)));
typedef int32_t int4 __attribute__((vector_size(16)));

struct Vec {
  static constexpr int64_t width = 4;
  float4 v;
};
LITESEG_INLINE Vec set1(float x) {
  return {float4{x, x, x, x}};
}
template <typename T>
LITESEG_INLINE Vec load(const T* p) {
  return {float4{widen(p[0]), widen(p[1]), widen(p[2]), widen(p[3])}};
}
LITESEG_INLINE Vec load(const float* p) {
  Vec a;
  __builtin_memcpy(&a.v, p, sizeof(a.v));
  return a;
}
// the first n < width elements; the other lanes are zero and their memory is not touched
template <typename T>
LITESEG_INLINE Vec load_n(const T* p, int64_t n) {
  float tmp[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  for (int64_t i = 0; i < n; ++i) {
    tmp[i] = widen(p[i]);
  }
  return load(tmp);
}
template <typename T>
LITESEG_INLINE void store_n(T* p, Vec a, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    narrow(a.v[i], p + i);
  }
}
template <typename T>
LITESEG_INLINE void store(T* p, Vec a) {
  store_n(p, a, 4);
}
LITESEG_INLINE void store(float* p, Vec a) {
  __builtin_memcpy(p, &a.v, sizeof(a.v));
}
LITESEG_INLINE Vec fma(Vec a, Vec b, Vec c) {
  return {a.v * b.v + c.v};
}
LITESEG_INLINE Vec add(Vec a, Vec b) {
  return {a.v + b.v};
}
LITESEG_INLINE Vec sub(Vec a, Vec b) {
  return {a.v - b.v};
}
LITESEG_INLINE Vec mul(Vec a, Vec b) {
  return {a.v * b.v};
}
LITESEG_INLINE Vec divide(Vec a, Vec b) {
  return {a.v / b.v};
}
LITESEG_INLINE Vec select(int4 mask, Vec a, Vec b) {
  return {(float4)((mask & (int4)a.v) | (~mask & (int4)b.v))};
}
// maximum and minimum return b where either is NaN
LITESEG_INLINE Vec maximum(Vec a, Vec b) {
  return select(a.v > b.v, a, b);
}
LITESEG_INLINE Vec minimum(Vec a, Vec b) {
  return select(a.v < b.v, a, b);
}
// NaN where either is
LITESEG_INLINE Vec maximum_or_nan(Vec a, Vec b) {
  return select(a.v != a.v, a, maximum(a, b));
}
// lane by lane: a > b ? x : y
LITESEG_INLINE Vec where_greater(Vec a, Vec b, Vec x, Vec y) {
  return select(a.v > b.v, x, y);
}
// a * 2^n for whole n from -126 to 127
LITESEG_INLINE Vec scale_by_power(Vec a, Vec n) {
  Vec scaled;
  for (int i = 0; i < 4; ++i) {
    // NaN has no integer value; it comes back through a
    const int32_t exponent = n.v[i] == n.v[i] ? static_cast<int32_t>(n.v[i]) : 0;
    scaled.v[i] = a.v[i] * from_bits(static_cast<uint32_t>(exponent + 127) << 23);
  }
  return scaled;
}
typedef int4 Index;
LITESEG_INLINE Index load_index(const int32_t* p, int32_t base) {
  return int4{p[0] - base, p[1] - base, p[2] - base, p[3] - base};
}
// p[index] lane by lane; with Near all indices are below the width and p is readable that far
template <bool Near>
LITESEG_INLINE Vec lookup(const float* p, Index index) {
  return {float4{p[index[0]], p[index[1]], p[index[2]], p[index[3]]}};
}

LITESEG_INLINE void transpose(Vec r[4]) {
  for (int i = 0; i < 4; ++i) {
    for (int j = i + 1; j < 4; ++j) {
      const float t = r[i].v[j];
      r[i].v[j] = r[j].v[i];
      r[j].v[i] = t;
    }
  }
}

#endif

LITESEG_INLINE Vec zero() {
  return set1(0.0f);
}
// into the second level of cache; any address is allowed
LITESEG_INLINE void prefetch(const float* p) {
  __builtin_prefetch(p, 0, 2);
}

template <typename T>
LITESEG_INLINE Vec load_partial(const T* p, int64_t n) {
  return n >= Vec::width ? load(p) : load_n(p, n);
}
template <typename T>
LITESEG_INLINE void store_partial(T* p, Vec a, int64_t n) {
  if (n >= Vec::width) {
    store(p, a);
  } else {
    store_n(p, a, n);
  }
}

// e^x for x <= 0 (or NaN), within 2 ulp; below -87, where the result would be subnormal, it stays at e^-87
LITESEG_INLINE Vec exp_negative(Vec x) {
  x = maximum(set1(-87.0f), x);
  // adding 1.5 * 2^23 rounds to a whole number
  const Vec magic = set1(12582912.0f);
  const Vec n = sub(fma(x, set1(1.44269504f), magic), magic);
  // ln 2 in two parts, the first of few bits
  Vec r = fma(n, set1(-0.693359375f), x);
  r = fma(n, set1(2.12194440e-4f), r);
  // minimax polynomial of (e^r - 1 - r) / r^2 on |r| <= ln 2 / 2
  Vec p = set1(1.9875691500e-4f);
  p = fma(p, r, set1(1.3981999507e-3f));
  p = fma(p, r, set1(8.3334519073e-3f));
  p = fma(p, r, set1(4.1665795894e-2f));
  p = fma(p, r, set1(1.6666665459e-1f));
  p = fma(p, r, set1(5.0000001201e-1f));
  return scale_by_power(add(fma(p, mul(r, r), r), set1(1.0f)), n);
}

// the operand order of maximum and minimum lets NaN through, as torch does
LITESEG_INLINE Vec activate(Vec a, int activation, Vec slope) {
  switch (activation) {
    case cpu::kRelu:
      return maximum(zero(), a);
    case cpu::kRelu6:
      return minimum(set1(6.0f), maximum(zero(), a));
    case cpu::kLeakyRelu:
      return where_greater(a, zero(), a, mul(a, slope));
    default:
      return a;
  }
}

// gradient before the activation, from the value on either side of it; zero at the kinks, as torch has it
LITESEG_INLINE Vec activation_gradient(Vec grad, Vec out, int activation, Vec slope) {
  switch (activation) {
    case cpu::kRelu:
      return where_greater(out, zero(), grad, zero());
    case cpu::kRelu6:
      return where_greater(out, zero(), where_greater(set1(6.0f), out, grad, zero()), zero());
    case cpu::kLeakyRelu:
      return where_greater(out, zero(), grad, mul(grad, slope));
    default:
      return grad;
  }
}

}  // namespace liteseg::LITESEG_ISA
