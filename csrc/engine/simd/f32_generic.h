// Four floats as a compiler vector: SSE2 on x86-64, whatever the target has elsewhere.
#pragma once

#include "engine/simd/base.h"

namespace liteseg::LITESEG_ISA {

constexpr int kVectorRegisters = 16;
constexpr int kProductRows = 4;  // of two vectors each (gemm.h); without fused multiply-adds more would spill

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

}  // namespace liteseg::LITESEG_ISA
