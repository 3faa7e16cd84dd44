// Copies between layouts, widening to float.
#pragma once

#include "engine/simd/vec.h"

namespace liteseg::LITESEG_ISA {

// dst[c * dst_stride + r] = src[r * row_stride + c * col_stride] for r < rows, c < cols
template <typename T>
void transpose_copy(const T* src, int64_t row_stride, int64_t col_stride, int64_t rows, int64_t cols, float* dst,
                    int64_t dst_stride) {
  constexpr int64_t w = Vec::width;
  if (row_stride == 1) {
    for (int64_t c = 0; c < cols; ++c) {
      for (int64_t r = 0; r < rows; r += w) {
        store_partial(dst + c * dst_stride + r, load_partial(src + c * col_stride + r, rows - r), rows - r);
      }
    }
    return;
  }
  if (col_stride != 1) {
    for (int64_t c = 0; c < cols; ++c) {
      for (int64_t r = 0; r < rows; ++r) {
        dst[c * dst_stride + r] = widen(src[r * row_stride + c * col_stride]);
      }
    }
    return;
  }
  for (int64_t c = 0; c < cols; c += w) {
    const int64_t nc = min_i(w, cols - c);
    for (int64_t r = 0; r < rows; r += w) {
      const int64_t nr = min_i(w, rows - r);
      Vec block[w];
      for (int64_t i = 0; i < w; ++i) {
        block[i] = i < nr ? load_partial(src + (r + i) * row_stride + c, nc) : zero();
      }
      transpose(block);
      for (int64_t i = 0; i < nc; ++i) {
        store_partial(dst + (c + i) * dst_stride + r, block[i], nr);
      }
    }
  }
}

// n < width elements at any stride, widened
template <typename T>
LITESEG_INLINE Vec load_strided(const T* p, int64_t stride, int64_t n) {
  if (stride == 1) {
    return load_partial(p, n);
  }
  float tmp[Vec::width] = {};
  for (int64_t i = 0; i < min_i(n, Vec::width); ++i) {
    tmp[i] = widen(p[i * stride]);
  }
  return load(tmp);
}

}  // namespace liteseg::LITESEG_ISA
