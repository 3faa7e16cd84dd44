// The last step of the convolution kernels: pointwise product of a tile of pixels, residual, activation, store.
#pragma once

#include "engine/blocks/gemm.h"

namespace liteseg::LITESEG_ISA {

template <typename T>
struct Output {
  T* data;  // [N, C, H, W], dense, channels innermost or NCHW
  cpu::Strides4 strides;
  const T* residual;  // same shape, any strides, or null
  cpu::Strides4 residual_strides;
  int64_t c, h, w;
  int activation;
  float slope;

  // Whether the product can store its results itself: output pixels, and the residual's if there is one, must be
  // equally spaced across rows and images.
  LITESEG_INLINE bool direct() const {
    const cpu::Strides4& r = residual_strides;
    return strides.c == 1 && (residual == nullptr || (r.c == 1 && r.h == r.w * w && r.n == r.h * h));
  }
};

// body(n, y, x, count, offset) for each stretch of pixels of one row in the flattened range [p0, p1)
template <typename Body>
LITESEG_INLINE void for_each_row(int64_t p0, int64_t p1, int64_t height, int64_t width, const Body& body) {
  const int64_t plane = height * width;
  for (int64_t p = p0; p < p1;) {
    const int64_t n = p / plane;
    const int64_t y = (p - n * plane) / width;
    const int64_t x = p - n * plane - y * width;
    const int64_t count = min_i(width - x, p1 - p);
    body(n, y, x, count, p - p0);
    p += count;
  }
}

// sums [count][lds] of pixels of one row -> residual, activation, out at its own strides
template <typename T>
void finish_row(const Output<T>& o, const float* sums, int64_t lds, int64_t n, int64_t y, int64_t x, int64_t count) {
  constexpr int64_t w = Vec::width;
  const Vec slope = set1(o.slope);
  const cpu::Strides4& s = o.strides;
  const cpu::Strides4& r = o.residual_strides;
  T* out = o.data + n * s.n + y * s.h + x * s.w;
  const T* residual = o.residual == nullptr ? nullptr : o.residual + n * r.n + y * r.h + x * r.w;
  if (s.c == 1) {
    for (int64_t p = 0; p < count; ++p) {
      for (int64_t c = 0; c < o.c; c += w) {
        Vec v = load(sums + p * lds + c);
        if (residual != nullptr) {
          v = add(v, load_strided(residual + p * r.w + c * r.c, r.c, o.c - c));
        }
        store_partial(out + p * s.w + c, activate(v, o.activation, slope), o.c - c);
      }
    }
    return;
  }
  for (int64_t c = 0; c < o.c; c += w) {
    const int64_t nc = min_i(w, o.c - c);
    for (int64_t p = 0; p < count; p += w) {
      const int64_t np = min_i(w, count - p);
      Vec block[w];
      for (int64_t i = 0; i < w; ++i) {
        block[i] = i < np ? load(sums + (p + i) * lds + c) : zero();
      }
      transpose(block);
      for (int64_t i = 0; i < nc; ++i) {
        Vec v = block[i];
        if (residual != nullptr) {
          v = add(v, load_strided(residual + (c + i) * r.c + p * r.w, r.w, np));
        }
        store_partial(out + (c + i) * s.c + p, activate(v, o.activation, slope), np);
      }
    }
  }
}

LITESEG_INLINE int64_t finish_stride(int64_t channels) {
  return div_up(channels, Vec::width) * Vec::width;
}

// a [p1 - p0][lda] times the panels -> output pixels [p0, p1); sums: scratch of [p1 - p0][finish_stride(c)]
template <typename T>
void project_tile(const Output<T>& o, int64_t p0, int64_t p1, const float* a, int64_t lda, int64_t k_count,
                  const float* panels, const float* bias, float* sums) {
  if (o.direct()) {
    const T* residual = o.residual == nullptr ? nullptr : o.residual + p0 * o.residual_strides.w;
    gemm<T>(p1 - p0, o.c, k_count, a, lda, panels, bias, o.data + p0 * o.strides.w, o.strides.w,
            {residual, o.residual_strides.w, o.activation, o.slope});
    return;
  }
  const int64_t lds = finish_stride(o.c);
  gemm<float>(p1 - p0, o.c, k_count, a, lda, panels, bias, sums, lds, {nullptr, 0, cpu::kNone, 0.0f});
  for_each_row(p0, p1, o.h, o.w, [&](int64_t n, int64_t y, int64_t x, int64_t count, int64_t offset) {
    finish_row(o, sums + offset * lds, lds, n, y, x, count);
  });
}

}  // namespace liteseg::LITESEG_ISA
