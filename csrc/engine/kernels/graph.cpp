// graph - what a graph of layers needs between its convolutions: depthwise convolution, pools, sums and products of
//         maps, means, copies.
// Replaces: conv2d(groups) + activation, max_pool2d, avg_pool2d, add, mul, mean over the pixels, cat, pad, interpolate
//           (nearest), contiguous
// Shapes:   maps [N, H, W, C], dense; copies go between any strides
// Traffic:  minimum each map once
// Bound:    memory
// Numerics: fp32, every sum in one fixed order whatever the number of threads; NaN wins the maxima, as in torch
// Limits:   float32
#include "engine/kernels/graph.h"

#include "engine/blocks/depthwise.h"
#include "engine/blocks/output.h"
#include "engine/blocks/smooth.h"

namespace liteseg::LITESEG_ISA {
namespace {

using cpu::CombineArgs;
using cpu::CopyArgs;
using cpu::DepthwiseArgs;
using cpu::MeanArgs;
using cpu::WindowArgs;

constexpr int64_t kMostRows = 64;
constexpr int64_t kMeanVectors = 4;

void depthwise(const DepthwiseArgs& g, int64_t begin, int64_t end) {
  const DepthwiseRow geometry{g.c,    g.w, g.kh, g.kw, g.sw, g.pw, g.dw, g.c, g.bias, plain_activation(g.activation),
                              g.slope};
  for (int64_t row = begin; row < end; ++row) {
    const int64_t n = row / g.oh;
    const int64_t oy = row - n * g.oh;
    const float* rows[kMostRows];
    int64_t taps[kMostRows];
    int64_t count = 0;
    for (int64_t i = 0; i < g.kh; ++i) {
      const int64_t y = oy * g.sh - g.ph + i * g.dh;
      if (y >= 0 && y < g.h) {
        rows[count] = g.x + (n * g.h + y) * g.w * g.c;
        taps[count++] = i;
      }
    }
    float* out = g.out + row * g.ow * g.c;
    depthwise_run(rows, taps, count, geometry, g.weight, 0, g.ow, out, g.c);
    smooth_pixels(out, g.ow, g.c, g.c, g.activation);
  }
}

void window(const WindowArgs& g, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const int64_t n = row / g.oh;
    const int64_t oy = row - n * g.oh;
    const int64_t y0 = max_i(oy * g.sh - g.ph, 0);
    const int64_t y1 = min_i(oy * g.sh - g.ph + g.kh, g.h);
    // counts_zeros includes the padding, but not the part of the last window that ends behind it
    const int64_t tall = min_i(oy * g.sh - g.ph + g.kh, g.h + g.ph) - (oy * g.sh - g.ph);
    for (int64_t ox = 0; ox < g.ow; ++ox) {
      const int64_t x0 = max_i(ox * g.sw - g.pw, 0);
      const int64_t x1 = min_i(ox * g.sw - g.pw + g.kw, g.w);
      const int64_t wide = min_i(ox * g.sw - g.pw + g.kw, g.w + g.pw) - (ox * g.sw - g.pw);
      const int64_t count = g.counts_zeros ? tall * wide : (y1 - y0) * (x1 - x0);
      float* out = g.out + (row * g.ow + ox) * g.c;
      for (int64_t c = 0; c < g.c; c += Vec::width) {
        const int64_t left = g.c - c;
        Vec value = g.maximum ? load_partial(g.x + ((n * g.h + y0) * g.w + x0) * g.c + c, left) : zero();
        for (int64_t y = y0; y < y1; ++y) {
          for (int64_t x = x0; x < x1; ++x) {
            const Vec v = load_partial(g.x + ((n * g.h + y) * g.w + x) * g.c + c, left);
            value = g.maximum ? maximum_or_nan(value, v) : add(value, v);
          }
        }
        if (!g.maximum) {
          value = divide(value, set1(static_cast<float>(count)));
        }
        store_partial(out + c, value, left);
      }
    }
  }
}

template <bool Adds>
void combine_runs(const CombineArgs& g, int64_t begin, int64_t end) {
  const Vec slope = set1(g.slope);
  const int activation = plain_activation(g.activation);
  // maps of equal shape are one contiguous run of values
  const int64_t step = g.spread ? 1 : end - begin;
  for (int64_t p = begin; p < end; p += step) {
    const float* a = g.a + p * g.c;
    const float* b = g.spread ? g.b + p / g.plane * g.c : g.b + p * g.c;
    float* out = g.out + p * g.c;
    const int64_t count = step * g.c;
    for (int64_t i = 0; i < count; i += Vec::width) {
      const Vec x = load_partial(a + i, count - i);
      const Vec y = load_partial(b + i, count - i);
      store_partial(out + i, activate(Adds ? add(x, y) : mul(x, y), activation, slope), count - i);
    }
  }
  smooth_pixels(g.out + begin * g.c, 1, (end - begin) * g.c, 0, g.activation);
}

void combine(const CombineArgs& g, int64_t begin, int64_t end) {
  if (g.combination == cpu::kAdd) {
    combine_runs<true>(g, begin, end);
  } else {
    combine_runs<false>(g, begin, end);
  }
}

void mean(const MeanArgs& g, int64_t begin, int64_t end) {
  constexpr int64_t block = kMeanVectors * Vec::width;
  const int64_t blocks = div_up(g.c, block);
  const Vec count = set1(static_cast<float>(g.h * g.w));
  for (int64_t item = begin; item < end; ++item) {
    const int64_t n = item / blocks;
    const int64_t c0 = (item - n * blocks) * block;
    Vec sums[kMeanVectors];
    for (int64_t v = 0; v < kMeanVectors; ++v) {
      sums[v] = zero();
    }
    for (int64_t y = 0; y < g.h; ++y) {
      // per row first: the rounding error of a single chain grows with all pixels
      Vec row[kMeanVectors];
      for (int64_t v = 0; v < kMeanVectors; ++v) {
        row[v] = zero();
      }
      const float* x = g.x + (n * g.h + y) * g.w * g.c + c0;
      for (int64_t i = 0; i < g.w; ++i, x += g.c) {
        for (int64_t v = 0; v < kMeanVectors; ++v) {
          const int64_t left = g.c - c0 - v * Vec::width;
          if (left > 0) {
            row[v] = add(row[v], load_partial(x + v * Vec::width, left));
          }
        }
      }
      for (int64_t v = 0; v < kMeanVectors; ++v) {
        sums[v] = add(sums[v], row[v]);
      }
    }
    for (int64_t v = 0; v < kMeanVectors; ++v) {
      const int64_t left = g.c - c0 - v * Vec::width;
      if (left > 0) {
        store_partial(g.out + n * g.c + c0 + v * Vec::width, divide(sums[v], count), left);
      }
    }
  }
}

void fill_zero(float* to, const cpu::Strides4& s, int64_t channels, int64_t pixels) {
  for (int64_t x = 0; x < pixels; ++x) {
    for (int64_t c = 0; c < channels; ++c) {
      to[x * s.w + c * s.c] = 0.0f;
    }
  }
}

void copy(const CopyArgs& g, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const int64_t n = row / g.oh;
    const int64_t oy = row - n * g.oh;
    float* to = g.to + n * g.ts.n + oy * g.ts.h;
    const int64_t y = g.ys == nullptr ? oy - g.top : g.ys[oy];
    if (y < 0 || y >= g.h) {
      fill_zero(to, g.ts, g.c, g.ow);
      continue;
    }
    const float* from = g.from + n * g.fs.n + y * g.fs.h;
    if (g.xs != nullptr) {
      // channels are innermost on both sides
      for (int64_t x = 0; x < g.ow; ++x) {
        __builtin_memcpy(to + x * g.ts.w, from + g.xs[x] * g.fs.w, static_cast<size_t>(g.c) * sizeof(float));
      }
      continue;
    }
    const int64_t first = max_i(0, -g.left);
    const int64_t last = min_i(g.w, g.ow - g.left);
    fill_zero(to, g.ts, g.c, min_i(g.ow, max_i(0, g.left)));
    fill_zero(to + (last + g.left) * g.ts.w, g.ts, g.c, g.ow - last - g.left);
    from += first * g.fs.w;
    float* inside = to + (first + g.left) * g.ts.w;
    if (g.ts.c == 1 || g.c == 1) {
      transpose_copy(from, g.fs.c, g.fs.w, g.c, last - first, inside, g.ts.w);
    } else {
      // rows of `to` are channels
      transpose_copy(from, g.fs.w, g.fs.c, last - first, g.c, inside, g.ts.c);
    }
  }
}

void activate_all(float* p, int64_t count, int activation, float slope) {
  if (is_smooth(activation)) {
    smooth_pixels(p, 1, count, 0, activation);
    return;
  }
  const Vec slopes = set1(slope);
  for (int64_t i = 0; i < count; i += Vec::width) {
    store_partial(p + i, activate(load_partial(p + i, count - i), activation, slopes), count - i);
  }
}

}  // namespace

const cpu::GraphTable graph_table = {
    depthwise, window, combine, kMeanVectors * Vec::width, mean, copy, activate_all,
};

}  // namespace liteseg::LITESEG_ISA
