// Parts of the pyramid kernels that do not depend on how products are computed.
#pragma once

#include "engine/blocks/depthwise.h"
#include "engine/blocks/gemm.h"
#include "engine/kernels/sliced_daspp.h"

namespace liteseg::LITESEG_ISA {
namespace {

constexpr int64_t kTaps = 3;

// some channels of a map
template <typename T>
struct Slice {
  const T* x;  // [H * W][ldx], its first channel
  int64_t ldx;
  int64_t first, count;  // channels
};

// 3x3 depthwise values of the pixels [p0, p1) of a map [H * W][x_stride], padded so that its size stays
template <typename T, typename Out>
void depthwise_tile(const T* map, const cpu::SlicedDasppArgs& g, const DepthwiseRow& geometry, const float* weight,
                    int64_t p0, int64_t p1, Out* out, int64_t ldo) {
  for (int64_t p = p0; p < p1;) {
    const int64_t y = p / g.w;
    const int64_t x0 = p - y * g.w;
    const int64_t x1 = min_i(g.w, x0 + p1 - p);
    const T* rows[kTaps];
    int64_t taps[kTaps];
    int64_t count = 0;
    for (int64_t i = 0; i < kTaps; ++i) {
      const int64_t at = y + (i - 1) * geometry.dilation;
      if (at >= 0 && at < g.h) {
        rows[count] = map + at * g.w * geometry.x_stride;
        taps[count++] = i;
      }
    }
    depthwise_run(rows, taps, count, geometry, weight, x0, x1, out + (p - p0) * ldo, ldo);
    p += x1 - x0;
  }
}

// out[m][n] (+)= a[m][k0 ...] * b[k0 ...][n] for k_count of the k_total rows that the panels of b have
LITESEG_INLINE void gemm_part(int64_t m_count, int64_t n_count, int64_t k_total, int64_t k0, int64_t k_count,
                              const float* a, int64_t lda, const float* panels, const float* bias, float* out,
                              int64_t ldo, const float* residual) {
  for (int64_t n = 0; n < n_count; n += kPanel) {
    const int64_t cols = min_i(kPanel, n_count - n);
    const float* b = panels + n * k_total + k0 * kPanel;
    const Epilogue<float> epilogue{residual == nullptr ? nullptr : residual + n, ldo, cpu::kNone, 0.0f};
    if (cols > Vec::width) {
      gemm_panel<float, 2>(m_count, a, lda, b, k_count, bias + n, out + n, ldo, cols, epilogue);
    } else {
      gemm_panel<float, 1>(m_count, a, lda, b, k_count, bias + n, out + n, ldo, cols, epilogue);
    }
  }
}

// means over the pixels
template <typename T, typename Out>
void pool_slice(int64_t pixels, const Slice<T>& slice, Out* mean) {
  const Vec scale = set1(1.0f / static_cast<float>(pixels));
  for (int64_t c = 0; c < slice.count; c += Vec::width) {
    const int64_t n = slice.count - c;
    Vec sum[4] = {zero(), zero(), zero(), zero()};
    int64_t p = 0;
    for (; p + 4 <= pixels; p += 4) {
      for (int64_t i = 0; i < 4; ++i) {
        sum[i] = add(sum[i], load_partial(slice.x + (p + i) * slice.ldx + c, n));
      }
    }
    for (; p < pixels; ++p) {
      sum[0] = add(sum[0], load_partial(slice.x + p * slice.ldx + c, n));
    }
    store_partial(mean + c, mul(scale, add(add(sum[0], sum[1]), add(sum[2], sum[3]))), n);
  }
}

// out[i] = act(the sum of `count` arrays that lie `pitch` apart, and of `bias` where given)
LITESEG_INLINE void add_up(const float* parts, int64_t pitch, int64_t count, const float* bias, int activation,
                           float* out, int64_t floats) {
  for (int64_t i = 0; i < floats; i += Vec::width) {
    const int64_t n = floats - i;
    Vec total = load_partial(parts + i, n);
    for (int64_t p = 1; p < count; ++p) {
      total = add(total, load_partial(parts + p * pitch + i, n));
    }
    if (bias != nullptr) {
      total = add(total, load_partial(bias + i, n));
    }
    store_partial(out + i, activate(total, activation, zero()), n);
  }
}

}  // namespace

}  // namespace liteseg::LITESEG_ISA
