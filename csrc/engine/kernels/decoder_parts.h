// Parts of the decoder kernels that do not depend on how products are computed.
#pragma once

#include "engine/kernels/decoder.h"
#include "engine/simd/vec.h"

namespace liteseg::LITESEG_ISA {
namespace {

constexpr int64_t kTaps = 3;

// the packed depthwise weights have whole vectors of the widest instruction set
LITESEG_INLINE int64_t whole_vectors(int64_t channels) {
  return div_up(channels, cpu::kWidestVector) * cpu::kWidestVector;
}

// row y of an image [h, w] of pixels `ldx` apart, resized: c1 channels into pixels ldo apart
template <typename T>
void resize_row(const T* image, int64_t ldx, const cpu::DecoderArgs& g, int64_t y, float* blend, float* out,
                int64_t ldo) {
  const T* top = image + g.ys.i0[y] * g.w * ldx;
  const T* bottom = image + g.ys.i1[y] * g.w * ldx;
  const Vec y0 = set1(g.ys.w0[y]);
  const Vec y1 = set1(g.ys.w1[y]);
  for (int64_t i = 0; i < g.w * ldx; i += Vec::width) {
    const int64_t count = g.w * ldx - i;
    store_partial(blend + i, fma(y1, load_partial(bottom + i, count), mul(y0, load_partial(top + i, count))), count);
  }
  for (int64_t x = 0; x < g.ow; ++x, out += ldo) {
    const float* left = blend + g.xs.i0[x] * ldx;
    const float* right = blend + g.xs.i1[x] * ldx;
    const Vec x0 = set1(g.xs.w0[x]);
    const Vec x1 = set1(g.xs.w1[x]);
    for (int64_t c = 0; c < g.c1; c += Vec::width) {
      const int64_t count = g.c1 - c;
      store_partial(out + c, fma(x1, load_partial(right + c, count), mul(x0, load_partial(left + c, count))), count);
    }
  }
}

// what the lifted map of image n adds to row y of the first convolution, before its bias: pixels ldo apart
void resize_lifted_row(const cpu::DecoderArgs& g, int64_t n, int64_t y, float* blend, float* out, int64_t ldo) {
  // along y: [w][3 columns of taps][f1]
  const int64_t part = kTaps * g.f1;
  const int64_t pixel = kTaps * part;
  const float* image = g.lifted + n * g.h * g.w * pixel;
  const float* sources[2 * kTaps];
  Vec weights[2 * kTaps];
  int count = 0;
  for (int64_t i = 0; i < kTaps; ++i) {
    const int64_t at = y - 1 + i;
    if (at >= 0 && at < g.oh) {
      sources[count] = image + g.ys.i0[at] * g.w * pixel + i * part;
      weights[count++] = set1(g.ys.w0[at]);
      sources[count] = image + g.ys.i1[at] * g.w * pixel + i * part;
      weights[count++] = set1(g.ys.w1[at]);
    }
  }
  for (int64_t x = 0; x < g.w; ++x) {
    for (int64_t c = 0; c < part; c += Vec::width) {
      Vec sum = zero();
      for (int i = 0; i < count; ++i) {
        sum = fma(weights[i], load_partial(sources[i] + x * pixel + c, part - c), sum);
      }
      store_partial(blend + x * part + c, sum, part - c);
    }
  }
  for (int64_t x = 0; x < g.ow; ++x, out += ldo) {
    count = 0;
    for (int64_t i = 0; i < kTaps; ++i) {
      const int64_t at = x - 1 + i;
      if (at >= 0 && at < g.ow) {
        sources[count] = blend + g.xs.i0[at] * part + i * g.f1;
        weights[count++] = set1(g.xs.w0[at]);
        sources[count] = blend + g.xs.i1[at] * part + i * g.f1;
        weights[count++] = set1(g.xs.w1[at]);
      }
    }
    for (int64_t c = 0; c < g.f1; c += Vec::width) {
      Vec sum = zero();
      for (int i = 0; i < count; ++i) {
        sum = fma(weights[i], load_partial(sources[i] + c, g.f1 - c), sum);
      }
      store_partial(out + c, sum, g.f1 - c);
    }
  }
}

}  // namespace

}  // namespace liteseg::LITESEG_ISA
