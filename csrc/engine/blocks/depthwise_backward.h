// Gradients of a depthwise convolution, row by row, channels innermost on both sides.
#pragma once

#include "engine/simd/vec.h"

namespace liteseg::LITESEG_ISA {

struct DepthwiseTaps {
  int64_t c, w, ow;                   // channels, input and output width
  int64_t kh, kw;                     // taps
  int64_t stride, padding, dilation;  // horizontal
};

// sums[tap][c] += sum over outputs [ox, ox + count) of one row of grad * x; rows and taps: the input rows that are read
template <typename X, typename Grad>
void add_depthwise(const DepthwiseTaps& g, const X* const* rows, const int64_t* taps, int64_t row_count, int64_t pixel,
                   int64_t ox, int64_t count, const Grad* map_grad, int64_t grad_pixel, float* sums,
                   int64_t sums_stride) {
  constexpr int64_t unroll = 4;
  for (int64_t r = 0; r < row_count; ++r) {
    for (int64_t j = 0; j < g.kw; ++j) {
      // outputs [first, last) of the run whose tap j lies inside of the row
      const int64_t shift = g.padding - j * g.dilation;
      const int64_t first = max_i(ox, shift > 0 ? div_up(shift, g.stride) : 0);
      const int64_t last = min_i(ox + count, g.w - 1 + shift >= 0 ? (g.w - 1 + shift) / g.stride + 1 : 0);
      if (first >= last) {
        continue;
      }
      const X* x = rows[r] + (first * g.stride - shift) * pixel;
      const Grad* grad = map_grad + (first - ox) * grad_pixel;
      float* sum = sums + (taps[r] * g.kw + j) * sums_stride;
      int64_t c = 0;
      for (; c + unroll * Vec::width <= g.c; c += unroll * Vec::width) {
        Vec acc[unroll] = {zero(), zero(), zero(), zero()};
        for (int64_t p = 0; p < last - first; ++p) {
#pragma GCC unroll 4
          for (int64_t u = 0; u < unroll; ++u) {
            const int64_t at = c + u * Vec::width;
            acc[u] = fma(load(grad + p * grad_pixel + at), load(x + p * g.stride * pixel + at), acc[u]);
          }
        }
        for (int64_t u = 0; u < unroll; ++u) {
          float* at = sum + c + u * Vec::width;
          store(at, add(load(at), acc[u]));
        }
      }
      for (; c < g.c; c += Vec::width) {
        const int64_t left = g.c - c;
        Vec acc = zero();
        for (int64_t p = 0; p < last - first; ++p) {
          acc =
              fma(load_partial(grad + p * grad_pixel + c, left), load_partial(x + p * g.stride * pixel + c, left), acc);
        }
        store(sum + c, add(load(sum + c), acc));
      }
    }
  }
}

// One row of x's gradient for a horizontal stride above 1: each pixel gathers from the outputs that read it. places:
// room for kh * kw pairs of offsets.
template <typename Grad>
void gather_strided(const DepthwiseTaps& g, const Grad* const* rows, const int64_t* taps, int64_t row_count,
                    int64_t grad_pixel, const float* weight, const Grad** places, const float** weights, float* out,
                    int64_t ldo) {
  for (int64_t x = 0; x < g.w; ++x) {
    int64_t count = 0;
    for (int64_t j = 0; j < g.kw; ++j) {
      const int64_t position = x + g.padding - j * g.dilation;
      if (position >= 0 && position % g.stride == 0 && position / g.stride < g.ow) {
        for (int64_t r = 0; r < row_count; ++r) {
          places[count] = rows[r] + position / g.stride * grad_pixel;
          weights[count++] = weight + (taps[r] * g.kw + j) * g.c;
        }
      }
    }
    for (int64_t c = 0; c < g.c; c += Vec::width) {
      const int64_t left = g.c - c;
      Vec sum = zero();
      for (int64_t i = 0; i < count; ++i) {
        sum = fma(load_partial(places[i] + c, left), load_partial(weights[i] + c, left), sum);
      }
      store_partial(out + x * ldo + c, sum, left);
    }
  }
}

// the sum of an element's parts, in the order of the chunks
LITESEG_INLINE Vec sum_parts(const float* parts, int64_t chunks, int64_t chunk_stride) {
  Vec sum = zero();
  for (int64_t i = 0; i < chunks; ++i) {
    sum = add(sum, load(parts + i * chunk_stride));
  }
  return sum;
}

// sums [chunks][taps][stride] -> the weight's gradient [C][taps]
template <typename T>
void reduce_depthwise(const float* sums, int64_t chunks, int64_t taps, int64_t channels, int64_t stride, T* out) {
  for (int64_t t = 0; t < taps; ++t) {
    for (int64_t c = 0; c < channels; c += Vec::width) {
      T values[Vec::width];
      store(values, sum_parts(sums + t * stride + c, chunks, taps * stride));
      for (int64_t i = 0; i < min_i(Vec::width, channels - c); ++i) {
        out[(c + i) * taps + t] = values[i];
      }
    }
  }
}

}  // namespace liteseg::LITESEG_ISA
