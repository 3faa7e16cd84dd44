// separable_conv2d - depthwise k x k convolution, pointwise convolution, bias, residual and activation in one pass.
// Replaces: conv2d(groups=C), conv2d(1x1), add, activation (the depthwise map is never stored)
// Shapes:   x [N, C, H, W], depthwise [C, 1, kh, kw], pointwise [Co, C, 1, 1] -> out [N, Co, Ho, Wo]
// Traffic:  minimum (N*C*H*W + N*Co*Ho*Wo (twice with a residual)) * sizeof(T) + weights; eager adds
// 2*N*C*Ho*Wo*sizeof(T) Bound:    arithmetic for Co >= 32 or so (2*C*Co flops a pixel against kh*kw*2*C of the
// depthwise part) Layout:   the inner loops run over channels. x with dense channels (channels_last and its slices) is
// read in place; any
//           other x is transposed row by row into a ring of the rows that the taps reach. NCHW outputs are transposed
//           from a tile in cache
// Numerics: fp32 multiply-adds in one fixed order per output, whatever the tiling and the number of threads
// Limits:   float32, float16, bfloat16; half types are widened on load
#pragma once

#include "depthwise.h"
#include "gemm.h"
#include "separable_conv2d.h"

namespace liteseg::LITESEG_ISA {
namespace {

using cpu::SeparableConvArgs;

constexpr int64_t kAlign = 64;

int64_t aligned(int64_t bytes) {
  return div_up(bytes, kAlign) * kAlign;
}

// Pieces of one thread's scratch memory.
struct Scratch {
  int64_t lda, ldt;
  int64_t a, finished, rows, taps, tags, ring, bytes;
  int64_t slots;
};

Scratch layout(const SeparableConvArgs& g) {
  Scratch s;
  s.lda = div_up(g.c, Vec::width) * Vec::width;
  s.ldt = div_up(g.co, Vec::width) * Vec::width;
  // consecutive image rows map to different slots as long as they are needed together
  s.slots = min_i(g.h, (g.kh - 1) * g.dh + 1);
  const bool direct = g.xs.c == 1 || g.c == 1;
  int64_t at = 0;
  const auto take = [&](int64_t bytes) {
    const int64_t start = at;
    at += aligned(bytes);
    return start;
  };
  s.a = take(g.tile * s.lda * sizeof(float));
  s.finished = take(g.tile * s.ldt * sizeof(float));
  s.rows = take(g.kh * sizeof(void*));
  s.taps = take(g.kh * sizeof(int64_t));
  s.tags = take(s.slots * sizeof(int64_t));
  s.ring = take(direct ? 0 : s.slots * g.w * g.c * sizeof(float));
  s.bytes = at;
  return s;
}

// Reads x as rows of pixels with dense channels.
template <typename T>
struct DirectRows {
  using Element = T;
  const SeparableConvArgs& g;
  int64_t pixel_stride() const {
    return g.xs.w;
  }
  const T* row(int64_t n, int64_t y) {
    return static_cast<const T*>(g.x) + n * g.xs.n + y * g.xs.h;
  }
};

// Transposes rows of any other layout into a ring; a row stays until a later one takes its slot.
template <typename T>
struct RingRows {
  using Element = float;
  const SeparableConvArgs& g;
  int64_t slots;
  int64_t* tags;
  float* ring;  // [slots][W][C]
  int64_t pixel_stride() const {
    return g.c;
  }
  const float* row(int64_t n, int64_t y) {
    const int64_t slot = y % slots;
    float* dst = ring + slot * g.w * g.c;
    if (tags[slot] != n * g.h + y) {
      tags[slot] = n * g.h + y;
      transpose_copy(static_cast<const T*>(g.x) + n * g.xs.n + y * g.xs.h, g.xs.c, g.xs.w, g.c, g.w, dst, g.c);
    }
    return dst;
  }
};

// sums [pixels][ldt] of `count` pixels of one output row -> residual, activation, out at its own strides
template <typename T>
void finish_row(const SeparableConvArgs& g, const float* sums, int64_t ldt, int64_t n, int64_t oy, int64_t ox,
                int64_t count) {
  constexpr int64_t w = Vec::width;
  const Vec slope = set1(g.slope);
  T* out = static_cast<T*>(g.out) + n * g.os.n + oy * g.os.h + ox * g.os.w;
  const T* residual = static_cast<const T*>(g.residual);
  if (residual != nullptr) {
    residual += n * g.rs.n + oy * g.rs.h + ox * g.rs.w;
  }
  if (g.os.c == 1) {
    for (int64_t p = 0; p < count; ++p) {
      for (int64_t c = 0; c < g.co; c += w) {
        Vec v = load(sums + p * ldt + c);
        if (residual != nullptr) {
          v = add(v, load_strided(residual + p * g.rs.w + c * g.rs.c, g.rs.c, g.co - c));
        }
        store_partial(out + p * g.os.w + c, activate(v, g.activation, slope), g.co - c);
      }
    }
    return;
  }
  for (int64_t c = 0; c < g.co; c += w) {
    const int64_t nc = min_i(w, g.co - c);
    for (int64_t p = 0; p < count; p += w) {
      const int64_t np = min_i(w, count - p);
      Vec block[w];
      for (int64_t i = 0; i < w; ++i) {
        block[i] = i < np ? load(sums + (p + i) * ldt + c) : zero();
      }
      transpose(block);
      for (int64_t i = 0; i < nc; ++i) {
        Vec v = block[i];
        if (residual != nullptr) {
          v = add(v, load_strided(residual + (c + i) * g.rs.c + p * g.rs.w, g.rs.w, np));
        }
        store_partial(out + (c + i) * g.os.c + p, activate(v, g.activation, slope), np);
      }
    }
  }
}

template <typename T, typename Rows>
void run_tiles(const SeparableConvArgs& g, int64_t begin, int64_t end, Rows& source, const Scratch& s, char* scratch) {
  using Element = typename Rows::Element;
  float* a = reinterpret_cast<float*>(scratch + s.a);
  float* finished = reinterpret_cast<float*>(scratch + s.finished);
  const Element** rows = reinterpret_cast<const Element**>(scratch + s.rows);
  int64_t* taps = reinterpret_cast<int64_t*>(scratch + s.taps);

  const int64_t plane = g.oh * g.ow;
  const int64_t pixels = g.n * plane;
  const DepthwiseRow geometry{g.c, g.w, g.kh, g.kw, g.sw, g.pw, g.dw, source.pixel_stride()};
  // the output is dense, so with channels innermost its pixels are equally spaced over rows and images
  const bool residual_dense =
      g.residual == nullptr || (g.rs.c == 1 && g.rs.h == g.rs.w * g.ow && g.rs.n == g.rs.h * g.oh);
  const bool direct_out = g.os.c == 1 && residual_dense;

  const auto for_each_row = [&](int64_t p0, int64_t p1, auto body) {
    for (int64_t p = p0; p < p1;) {
      const int64_t n = p / plane;
      const int64_t oy = (p - n * plane) / g.ow;
      const int64_t ox = p - n * plane - oy * g.ow;
      const int64_t count = min_i(g.ow - ox, p1 - p);
      body(n, oy, ox, count, p - p0);
      p += count;
    }
  };

  for (int64_t t = begin; t < end; ++t) {
    const int64_t p0 = t * g.tile;
    const int64_t p1 = min_i(p0 + g.tile, pixels);
    for_each_row(p0, p1, [&](int64_t n, int64_t oy, int64_t ox, int64_t count, int64_t at) {
      int64_t row_count = 0;
      for (int64_t i = 0; i < g.kh; ++i) {
        const int64_t y = oy * g.sh - g.ph + i * g.dh;
        if (y >= 0 && y < g.h) {
          rows[row_count] = source.row(n, y);
          taps[row_count++] = i;
        }
      }
      depthwise_run(rows, taps, row_count, geometry, g.depthwise, ox, ox + count, a + at * s.lda, s.lda);
    });
    if (direct_out) {
      const T* residual = g.residual == nullptr ? nullptr : static_cast<const T*>(g.residual) + p0 * g.rs.w;
      gemm<T>(p1 - p0, g.co, g.c, a, s.lda, g.pointwise, g.bias, static_cast<T*>(g.out) + p0 * g.os.w, g.os.w,
              {residual, g.rs.w, g.activation, g.slope});
    } else {
      gemm<float>(p1 - p0, g.co, g.c, a, s.lda, g.pointwise, g.bias, finished, s.ldt, {nullptr, 0, cpu::kNone, 0.0f});
      for_each_row(p0, p1, [&](int64_t n, int64_t oy, int64_t ox, int64_t count, int64_t at) {
        finish_row<T>(g, finished + at * s.ldt, s.ldt, n, oy, ox, count);
      });
    }
  }
}

template <typename T>
void run(const SeparableConvArgs& g, int64_t begin, int64_t end, char* scratch) {
  const Scratch s = layout(g);
  if (g.xs.c == 1 || g.c == 1) {
    DirectRows<T> rows{g};
    run_tiles<T>(g, begin, end, rows, s, scratch);
  } else {
    int64_t* tags = reinterpret_cast<int64_t*>(scratch + s.tags);
    for (int64_t i = 0; i < s.slots; ++i) {
      tags[i] = -1;
    }
    RingRows<T> rows{g, s.slots, tags, reinterpret_cast<float*>(scratch + s.ring)};
    run_tiles<T>(g, begin, end, rows, s, scratch);
  }
}

template <typename T>
void pack(const void* weight, int64_t n_stride, int64_t k_stride, int64_t n, int64_t k, float* panels) {
  pack_panels(static_cast<const T*>(weight), n_stride, k_stride, n, k, panels);
}

int64_t scratch_bytes(const SeparableConvArgs& args) {
  return layout(args).bytes;
}

}  // namespace

const cpu::SeparableConvTable separable_conv2d_table = {
    kPanel,
    {pack<float>, pack<f16>, pack<bf16>},
    scratch_bytes,
    {run<float>, run<f16>, run<bf16>},
};

}  // namespace liteseg::LITESEG_ISA
