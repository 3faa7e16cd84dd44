// Depthwise convolution of a run of output pixels of one row, channels innermost on both sides.
#pragma once

#include "engine/simd/vec.h"

namespace liteseg::LITESEG_ISA {

struct DepthwiseRow {
  int64_t c, w;                       // channels, input width
  int64_t kh, kw;                     // taps
  int64_t stride, padding, dilation;  // horizontal
  int64_t x_stride;                   // elements from one input pixel to the next
  const float* bias;                  // [C] or null
  int activation;
  float slope;
};

constexpr int kBlock = 6;  // interior pixels that share one load of the weights

template <typename T, typename Out, int P, int KW>
void depthwise_block(const T* const* rows, const int64_t* row_taps, int64_t row_count, const DepthwiseRow& g,
                     const float* weight, int64_t x0, Out* out, int64_t ldo) {
  const int64_t kw = KW > 0 ? KW : g.kw;
  const int64_t pixel = g.stride * g.x_stride;
  const int64_t tap = g.dilation * g.x_stride;
  const Vec slope = set1(g.slope);
  const auto group = [&](int64_t c, auto load_some, auto store_some) LITESEG_INLINE_LAMBDA {
    const Vec start = g.bias == nullptr ? zero() : load_some(g.bias + c);
    Vec acc[P];
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) {
      acc[p] = start;
    }
    for (int64_t i = 0; i < row_count; ++i) {
      const T* x = rows[i] + x0 * g.x_stride + c;
      const float* wt = weight + row_taps[i] * kw * g.c + c;
      for (int64_t j = 0; j < kw; ++j, x += tap, wt += g.c) {
        const Vec wv = load_some(wt);
#pragma GCC unroll 8
        for (int p = 0; p < P; ++p) {
          acc[p] = fma(load_some(x + p * pixel), wv, acc[p]);
        }
      }
    }
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) {
      store_some(out + p * ldo + c, activate(acc[p], g.activation, slope));
    }
  };
  const auto whole = [&](int64_t c) LITESEG_INLINE_LAMBDA {
    group(
        c, [](const auto* p) LITESEG_INLINE_LAMBDA { return load(p); },
        [](Out* p, Vec a) LITESEG_INLINE_LAMBDA { store(p, a); });
  };
  int64_t c = 0;
  for (; c + Vec::width <= g.c; c += Vec::width) {
    whole(c);
  }
  if (c < g.c && g.c > Vec::width) {
    whole(g.c - Vec::width);  // the last vector overlaps the one before, which is cheaper than a mask
  } else if (c < g.c) {
    const int64_t n = g.c - c;
    group(
        c, [n](const auto* p) LITESEG_INLINE_LAMBDA { return load_n(p, n); },
        [n](Out* p, Vec a) LITESEG_INLINE_LAMBDA { store_n(p, a, n); });
  }
}

// one pixel whose taps partly lie outside of the row
template <typename T, typename Out>
void depthwise_border(const T* const* rows, const int64_t* row_taps, int64_t row_count, const DepthwiseRow& g,
                      const float* weight, int64_t x0, Out* out) {
  // first and one past the last tap with 0 <= x0 + j * dilation < w
  const int64_t first = x0 < 0 ? div_up(-x0, g.dilation) : 0;
  const int64_t last = x0 < g.w ? min_i(g.kw, (g.w - 1 - x0) / g.dilation + 1) : 0;
  constexpr int64_t unroll = 4;
  for (int64_t c = 0; c < g.c; c += unroll * Vec::width) {
    Vec acc[unroll];
    for (int64_t u = 0; u < unroll; ++u) {
      const int64_t at = c + u * Vec::width;
      acc[u] = g.bias == nullptr || at >= g.c ? zero() : load_partial(g.bias + at, g.c - at);
    }
    for (int64_t i = 0; i < row_count; ++i) {
      for (int64_t j = first; j < last; ++j) {
        const T* x = rows[i] + (x0 + j * g.dilation) * g.x_stride;
        const float* wt = weight + (row_taps[i] * g.kw + j) * g.c;
        for (int64_t u = 0; u < unroll; ++u) {
          const int64_t at = c + u * Vec::width;
          if (at < g.c) {
            acc[u] = fma(load_partial(x + at, g.c - at), load_partial(wt + at, g.c - at), acc[u]);
          }
        }
      }
    }
    for (int64_t u = 0; u < unroll; ++u) {
      const int64_t at = c + u * Vec::width;
      if (at < g.c) {
        store_partial(out + at, activate(acc[u], g.activation, set1(g.slope)), g.c - at);
      }
    }
  }
}

// rows: for each kernel row that falls inside the image, the start of the input row it reads; row_taps: its kernel row
template <typename T, typename Out>
void depthwise_run(const T* const* rows, const int64_t* row_taps, int64_t row_count, const DepthwiseRow& g,
                   const float* weight, int64_t ox0, int64_t ox1, Out* out, int64_t ldo) {
  const int64_t reach = (g.kw - 1) * g.dilation;
  // outputs [lo, hi) have all their taps inside
  const int64_t lo = min_i(ox1, max_i(ox0, div_up(g.padding, g.stride)));
  const int64_t room = g.w - 1 - reach + g.padding;
  const int64_t hi = max_i(lo, min_i(ox1, room >= 0 ? room / g.stride + 1 : 0));
  const auto x_of = [&](int64_t ox) { return ox * g.stride - g.padding; };
  int64_t ox = ox0;
  for (; ox < lo; ++ox, out += ldo) {
    depthwise_border(rows, row_taps, row_count, g, weight, x_of(ox), out);
  }
  for (; ox + kBlock <= hi; ox += kBlock, out += kBlock * ldo) {
    if (g.kw == 3) {
      depthwise_block<T, Out, kBlock, 3>(rows, row_taps, row_count, g, weight, x_of(ox), out, ldo);
    } else {
      depthwise_block<T, Out, kBlock, 0>(rows, row_taps, row_count, g, weight, x_of(ox), out, ldo);
    }
  }
  for (; ox < hi; ++ox, out += ldo) {
    depthwise_block<T, Out, 1, 0>(rows, row_taps, row_count, g, weight, x_of(ox), out, ldo);
  }
  for (; ox < ox1; ++ox, out += ldo) {
    depthwise_border(rows, row_taps, row_count, g, weight, x_of(ox), out);
  }
}

}  // namespace liteseg::LITESEG_ISA
