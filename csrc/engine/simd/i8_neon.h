// Bytes with NEON as every aarch64 processor has it: products of 16 bits, for those of bytes are an extension.
#pragma once

#include "engine/simd/f32_neon.h"

namespace liteseg::LITESEG_ISA {

constexpr int kDotRows = 6;
constexpr int kDotPixels = 3;

struct Ints {
  int32x4_t v;
};
struct Bytes {
  uint8x16_t v;
};
// words 0 and 1, and words 2 and 3, as 16 bits
struct Left {
  int16x8_t low, high;
};
struct Right {
  int16x8_t low, high;
};

LITESEG_INLINE Ints load_ints(const void* p) {
  return {vreinterpretq_s32_u8(vld1q_u8(static_cast<const uint8_t*>(p)))};
}
LITESEG_INLINE void store_ints(void* p, Ints a) {
  vst1q_u8(static_cast<uint8_t*>(p), vreinterpretq_u8_s32(a.v));
}
LITESEG_INLINE Bytes load_bytes(const uint8_t* p) {
  return {vld1q_u8(p)};
}
LITESEG_INLINE void store_bytes(uint8_t* p, Bytes a) {
  vst1q_u8(p, a.v);
}
LITESEG_INLINE void store_half(uint8_t* p, Bytes a, int half) {
  vst1_u8(p, half == 0 ? vget_low_u8(a.v) : vget_high_u8(a.v));
}
LITESEG_INLINE Left left_of(uint32_t word) {
  const int16x8_t words = vreinterpretq_s16_u16(vmovl_u8(vreinterpret_u8_u32(vdup_n_u32(word))));
  return {words, words};
}
LITESEG_INLINE Left left_of(Bytes a) {
  return {vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(a.v))), vreinterpretq_s16_u16(vmovl_u8(vget_high_u8(a.v)))};
}
LITESEG_INLINE Right load_right(const void* p) {
  const int8x16_t v = vreinterpretq_s8_u8(vld1q_u8(static_cast<const uint8_t*>(p)));
  return {vmovl_s8(vget_low_s8(v)), vmovl_s8(vget_high_s8(v))};
}
LITESEG_INLINE Ints dot(Ints sum, Left a, Right b) {
  const int32x4_t word0 = vmull_s16(vget_low_s16(a.low), vget_low_s16(b.low));
  const int32x4_t word1 = vmull_s16(vget_high_s16(a.low), vget_high_s16(b.low));
  const int32x4_t word2 = vmull_s16(vget_low_s16(a.high), vget_low_s16(b.high));
  const int32x4_t word3 = vmull_s16(vget_high_s16(a.high), vget_high_s16(b.high));
  return {vaddq_s32(sum.v, vpaddq_s32(vpaddq_s32(word0, word1), vpaddq_s32(word2, word3)))};
}
LITESEG_INLINE Ints add(Ints a, Ints b) {
  return {vaddq_s32(a.v, b.v)};
}
LITESEG_INLINE Ints set1_int(int32_t x) {
  return {vdupq_n_s32(x)};
}
LITESEG_INLINE Vec to_floats(Ints a) {
  return {vcvtq_f32_s32(a.v)};
}
LITESEG_INLINE Ints to_ints(Vec a) {
  return {vcvtnq_s32_f32(a.v)};
}
LITESEG_INLINE Vec add_product(Vec sum, Vec a, Vec b) {
  return {vfmaq_f32(sum.v, a.v, b.v)};
}
LITESEG_INLINE Ints widen_bytes(const uint8_t* p) {
  const uint8x8_t bytes = vreinterpret_u8_u32(vld1_dup_u32(reinterpret_cast<const uint32_t*>(p)));
  return {vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(vmovl_u8(bytes))))};
}
LITESEG_INLINE Bytes pack(Ints a, Ints b, Ints c, Ints d) {
  const int16x8_t low = vcombine_s16(vqmovn_s32(a.v), vqmovn_s32(b.v));
  const int16x8_t high = vcombine_s16(vqmovn_s32(c.v), vqmovn_s32(d.v));
  return {vcombine_u8(vqmovun_s16(low), vqmovun_s16(high))};
}
LITESEG_INLINE Bytes in_order(Bytes a) {
  return a;
}
LITESEG_INLINE void columns(Bytes r0, Bytes r1, Bytes r2, Bytes words[4]) {
  const uint8x16_t zero = vdupq_n_u8(0);
  const uint16x8_t low01 = vreinterpretq_u16_u8(vzip1q_u8(r0.v, r1.v));
  const uint16x8_t high01 = vreinterpretq_u16_u8(vzip2q_u8(r0.v, r1.v));
  const uint16x8_t low2 = vreinterpretq_u16_u8(vzip1q_u8(r2.v, zero));
  const uint16x8_t high2 = vreinterpretq_u16_u8(vzip2q_u8(r2.v, zero));
  words[0] = {vreinterpretq_u8_u16(vzip1q_u16(low01, low2))};
  words[1] = {vreinterpretq_u8_u16(vzip2q_u16(low01, low2))};
  words[2] = {vreinterpretq_u8_u16(vzip1q_u16(high01, high2))};
  words[3] = {vreinterpretq_u8_u16(vzip2q_u16(high01, high2))};
}

}  // namespace liteseg::LITESEG_ISA
