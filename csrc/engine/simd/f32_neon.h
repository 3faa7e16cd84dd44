// Four floats with NEON, as every aarch64 processor has it.
#pragma once

#include "engine/simd/base.h"

#include <arm_neon.h>

namespace liteseg::LITESEG_ISA {

constexpr int kVectorRegisters = 32;
constexpr int kProductRows = 12;  // of two vectors each (gemm.h): 24 registers accumulate

struct Vec {
  static constexpr int64_t width = 4;
  float32x4_t v;
};
LITESEG_INLINE Vec set1(float x) {
  return {vdupq_n_f32(x)};
}
LITESEG_INLINE Vec load(const float* p) {
  return {vld1q_f32(p)};
}
LITESEG_INLINE Vec load(const f16* p) {
  return {vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(reinterpret_cast<const uint16_t*>(p))))};
}
LITESEG_INLINE Vec load(const bf16* p) {
  return {vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(reinterpret_cast<const uint16_t*>(p)), 16))};
}
// the first n < width elements; the other lanes are zero and their memory is not touched
template <typename T>
LITESEG_INLINE Vec load_n(const T* p, int64_t n) {
  T tmp[4] = {};
  for (int64_t i = 0; i < n; ++i) {
    tmp[i] = p[i];
  }
  return load(tmp);
}
LITESEG_INLINE void store(float* p, Vec a) {
  vst1q_f32(p, a.v);
}
LITESEG_INLINE void store(f16* p, Vec a) {
  vst1_u16(reinterpret_cast<uint16_t*>(p), vreinterpret_u16_f16(vcvt_f16_f32(a.v)));
}
LITESEG_INLINE void store(bf16* p, Vec a) {
  const uint32x4_t u = vreinterpretq_u32_f32(a.v);
  const uint32x4_t odd = vandq_u32(vshrq_n_u32(u, 16), vdupq_n_u32(1));
  const uint32x4_t rounded = vaddq_u32(vaddq_u32(u, vdupq_n_u32(0x7fff)), odd);
  const uint32x4_t number = vceqq_f32(a.v, a.v);
  vst1_u16(reinterpret_cast<uint16_t*>(p), vshrn_n_u32(vbslq_u32(number, rounded, vdupq_n_u32(0x7fc00000)), 16));
}
template <typename T>
LITESEG_INLINE void store_n(T* p, Vec a, int64_t n) {
  T tmp[4];
  store(tmp, a);
  for (int64_t i = 0; i < n; ++i) {
    p[i] = tmp[i];
  }
}
LITESEG_INLINE Vec fma(Vec a, Vec b, Vec c) {
  return {vfmaq_f32(c.v, a.v, b.v)};
}
LITESEG_INLINE Vec add(Vec a, Vec b) {
  return {vaddq_f32(a.v, b.v)};
}
LITESEG_INLINE Vec sub(Vec a, Vec b) {
  return {vsubq_f32(a.v, b.v)};
}
LITESEG_INLINE Vec mul(Vec a, Vec b) {
  return {vmulq_f32(a.v, b.v)};
}
LITESEG_INLINE Vec divide(Vec a, Vec b) {
  return {vdivq_f32(a.v, b.v)};
}
// maximum and minimum return b where either is NaN; FMAX and FMIN would return NaN
LITESEG_INLINE Vec maximum(Vec a, Vec b) {
  return {vbslq_f32(vcgtq_f32(a.v, b.v), a.v, b.v)};
}
LITESEG_INLINE Vec minimum(Vec a, Vec b) {
  return {vbslq_f32(vcltq_f32(a.v, b.v), a.v, b.v)};
}
// NaN where either is
LITESEG_INLINE Vec maximum_or_nan(Vec a, Vec b) {
  return {vmaxq_f32(a.v, b.v)};
}
// lane by lane: a > b ? x : y
LITESEG_INLINE Vec where_greater(Vec a, Vec b, Vec x, Vec y) {
  return {vbslq_f32(vcgtq_f32(a.v, b.v), x.v, y.v)};
}
// a * 2^n for whole n from -126 to 127
LITESEG_INLINE Vec scale_by_power(Vec a, Vec n) {
  const int32x4_t exponent = vaddq_s32(vcvtnq_s32_f32(n.v), vdupq_n_s32(127));
  return {vmulq_f32(a.v, vreinterpretq_f32_s32(vshlq_n_s32(exponent, 23)))};
}
using Index = int32x4_t;
LITESEG_INLINE Index load_index(const int32_t* p, int32_t base) {
  return vsubq_s32(vld1q_s32(p), vdupq_n_s32(base));
}
// p[index] lane by lane; with Near all indices are below the width and p is readable that far
template <bool Near>
LITESEG_INLINE Vec lookup(const float* p, Index index) {
  if (Near) {
    // the four bytes of each float, by their numbers
    const uint32x4_t bytes =
        vaddq_u32(vmulq_n_u32(vreinterpretq_u32_s32(index), 0x04040404u), vdupq_n_u32(0x03020100u));
    return {vreinterpretq_f32_u8(vqtbl1q_u8(vreinterpretq_u8_f32(vld1q_f32(p)), vreinterpretq_u8_u32(bytes)))};
  }
  float32x4_t found = vdupq_n_f32(p[vgetq_lane_s32(index, 0)]);
  found = vld1q_lane_f32(p + vgetq_lane_s32(index, 1), found, 1);
  found = vld1q_lane_f32(p + vgetq_lane_s32(index, 2), found, 2);
  return {vld1q_lane_f32(p + vgetq_lane_s32(index, 3), found, 3)};
}

LITESEG_INLINE void transpose(Vec r[4]) {
  const float64x2_t a = vreinterpretq_f64_f32(vtrn1q_f32(r[0].v, r[1].v));
  const float64x2_t b = vreinterpretq_f64_f32(vtrn2q_f32(r[0].v, r[1].v));
  const float64x2_t c = vreinterpretq_f64_f32(vtrn1q_f32(r[2].v, r[3].v));
  const float64x2_t d = vreinterpretq_f64_f32(vtrn2q_f32(r[2].v, r[3].v));
  r[0].v = vreinterpretq_f32_f64(vtrn1q_f64(a, c));
  r[1].v = vreinterpretq_f32_f64(vtrn1q_f64(b, d));
  r[2].v = vreinterpretq_f32_f64(vtrn2q_f64(a, c));
  r[3].v = vreinterpretq_f32_f64(vtrn2q_f64(b, d));
}

}  // namespace liteseg::LITESEG_ISA
