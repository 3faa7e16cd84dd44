// Stem of a network: dense 3x3 convolution of few channels, 3x3 depthwise, pointwise, in one pass over rows.
// Replaces: conv2d(3x3), activation, conv2d(groups), activation, conv2d(1x1) (neither map in between is ever stored)
// Shapes:   x [N, C, H, W] -> out [N, Ho, Wo, Co]; the dense convolution has padding 1 and any stride
// Traffic:  minimum (N*C*H*W + N*Co*Ho*Wo) * 4; eager adds 4*N*hidden*Ho*Wo*4
// Bound:    arithmetic
// Layout:   rows of x are copied, channels innermost, between zero columns; a dense output is then a product whose left
//           side is three runs of 3 * C neighbouring floats, with no patches to gather. Three rows of the dense map
//           stay in a ring for the depthwise part
// Numerics: fp32 multiply-adds in one fixed order per output, whatever the tiling and the number of threads
// Limits:   float32
#pragma once

#include "depthwise.h"
#include "gemm.h"
#include "plan_stem.h"
#include "rows.h"

namespace liteseg::LITESEG_ISA {
namespace {

using cpu::StemArgs;

constexpr int64_t kTaps = 3;

struct Scratch {
  ScratchLayout layout;
  int64_t ldh;        // floats of one pixel of the dense map
  int64_t input_row;  // floats of one copied row of x
  int64_t dense_row;
  int64_t tile;
  int64_t a, input, dense, input_tags, dense_tags;

  explicit Scratch(const StemArgs& g) {
    ldh = div_up(g.hidden, Vec::width) * Vec::width;
    // the last output may reach past the right zero column when the stride leaves a remainder
    input_row = (g.ow * g.stride + kTaps) * g.c;
    dense_row = (g.ow + 2) * ldh;
    tile = 4 * kRows;
    a = layout.take<float>(tile * ldh);
    input = layout.take<float>((kTaps + 1) * input_row);
    dense = layout.take<float>(kTaps * dense_row);
    input_tags = layout.take<int64_t>(kTaps);
    dense_tags = layout.take<int64_t>(kTaps);
  }
};

template <int M, int V>
void conv_block(const float* const* rows, int64_t run, int64_t step, const float* b, const float* bias, float* out,
                int64_t ldo, int64_t cols, int activation) {
  Vec acc[M][V];
#pragma GCC unroll 12
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) {
      acc[m][v] = load(bias + v * Vec::width);
    }
  }
  for (int64_t i = 0; i < kTaps; ++i) {
    const float* a = rows[i];
    for (int64_t k = 0; k < run; ++k, b += kPanel) {
      Vec bv[V];
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) {
        bv[v] = load(b + v * Vec::width);
      }
#pragma GCC unroll 12
      for (int m = 0; m < M; ++m) {
        const Vec av = set1(a[m * step + k]);
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) {
          acc[m][v] = fma(av, bv[v], acc[m][v]);
        }
      }
    }
  }
#pragma GCC unroll 12
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) {
      store_partial(out + m * ldo + v * Vec::width, activate(acc[m][v], activation, zero()), cols - v * Vec::width);
    }
  }
}

template <int V>
void conv_panel(const StemArgs& g, const float* const* input, int64_t panel, float* out, int64_t ldo) {
  const int64_t run = kTaps * g.c;
  const int64_t step = g.stride * g.c;
  const float* b = g.conv + panel * kTaps * run;
  const int64_t cols = min_i(kPanel, g.hidden - panel);
  const float* rows[kTaps] = {input[0], input[1], input[2]};
  const auto advance = [&](int64_t count) {
    out += count * ldo;
    for (int64_t i = 0; i < kTaps; ++i) {
      rows[i] += count * step;
    }
  };
  int64_t x = 0;
  for (; x + kRows <= g.ow; x += kRows, advance(kRows)) {
    conv_block<kRows, V>(rows, run, step, b, g.conv_bias + panel, out, ldo, cols, g.conv_activation);
  }
  for (; x + 4 <= g.ow; x += 4, advance(4)) {
    conv_block<4, V>(rows, run, step, b, g.conv_bias + panel, out, ldo, cols, g.conv_activation);
  }
  for (; x < g.ow; ++x, advance(1)) {
    conv_block<1, V>(rows, run, step, b, g.conv_bias + panel, out, ldo, cols, g.conv_activation);
  }
}

void fill_zero(float* p, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    p[i] = 0.0f;
  }
}

class Rows {
 public:
  Rows(const StemArgs& g, const Scratch& s, char* scratch, bool fresh)
      : g_(g),
        s_(s),
        input_(at_offset<float>(scratch, s.input)),
        dense_(at_offset<float>(scratch, s.dense)),
        input_tags_(at_offset<int64_t>(scratch, s.input_tags)),
        dense_tags_(at_offset<int64_t>(scratch, s.dense_tags)) {
    if (fresh) {
      clear_tags(input_tags_, kTaps);
      clear_tags(dense_tags_, kTaps);
      fill_zero(input_, (kTaps + 1) * s.input_row);
      fill_zero(dense_, kTaps * s.dense_row);
    }
  }
  // row y of the dense map, its zero column first
  const float* dense(int64_t n, int64_t y) {
    float* row = dense_ + y % kTaps * s_.dense_row;
    if (dense_tags_[y % kTaps] == n * g_.oh + y) {
      return row;
    }
    dense_tags_[y % kTaps] = n * g_.oh + y;
    const float* rows[kTaps];
    for (int64_t i = 0; i < kTaps; ++i) {
      rows[i] = input(n, y * g_.stride - 1 + i);
    }
    for (int64_t panel = 0; panel < g_.hidden; panel += kPanel) {
      if (g_.hidden - panel > Vec::width) {
        conv_panel<2>(g_, rows, panel, row + s_.ldh + panel, s_.ldh);
      } else {
        conv_panel<1>(g_, rows, panel, row + s_.ldh + panel, s_.ldh);
      }
    }
    return row;
  }

 private:
  const float* input(int64_t n, int64_t y) {
    if (y < 0 || y >= g_.h) {
      return input_ + kTaps * s_.input_row;  // stays zero
    }
    float* row = input_ + y % kTaps * s_.input_row;
    if (input_tags_[y % kTaps] != n * g_.h + y) {
      input_tags_[y % kTaps] = n * g_.h + y;
      const float* src = g_.x + n * g_.xs.n + y * g_.xs.h;
      float* dst = row + g_.c;
      if (g_.xs.c == 1 && g_.xs.w == g_.c) {
        __builtin_memcpy(dst, src, static_cast<size_t>(g_.w * g_.c) * sizeof(float));
      } else {
        for (int64_t c = 0; c < g_.c; ++c) {
          for (int64_t x = 0; x < g_.w; ++x) {
            dst[x * g_.c + c] = src[c * g_.xs.c + x * g_.xs.w];
          }
        }
      }
    }
    return row;
  }

  const StemArgs& g_;
  const Scratch& s_;
  float* input_;
  float* dense_;
  int64_t* input_tags_;
  int64_t* dense_tags_;
};

void run(const StemArgs& g, int64_t begin, int64_t end, char* scratch, bool fresh) {
  const Scratch s(g);
  Rows source(g, s, scratch, fresh);
  float* a = at_offset<float>(scratch, s.a);
  const DepthwiseRow geometry{
      g.hidden, g.ow + 2, kTaps, kTaps, 1, 0, 1, s.ldh, g.depthwise_bias, g.depthwise_activation, 0.0f};
  for (int64_t row = begin; row < end; ++row) {
    const int64_t n = row / g.oh;
    const int64_t oy = row - n * g.oh;
    const float* rows[kTaps];
    int64_t taps[kTaps];
    int64_t count = 0;
    for (int64_t i = 0; i < kTaps; ++i) {
      const int64_t y = oy - 1 + i;
      if (y >= 0 && y < g.oh) {
        rows[count] = source.dense(n, y);
        taps[count++] = i;
      }
    }
    for (int64_t x = 0; x < g.ow; x += s.tile) {
      const int64_t pixels = min_i(s.tile, g.ow - x);
      depthwise_run(rows, taps, count, geometry, g.depthwise, x, x + pixels, a, s.ldh);
      gemm<float>(pixels, g.co, g.hidden, a, s.ldh, g.project, g.project_bias, g.out + (row * g.ow + x) * g.co, g.co,
                  {nullptr, 0, cpu::kNone, 0.0f});
    }
  }
}

int64_t scratch_bytes(const StemArgs& args) {
  return Scratch(args).layout.bytes();
}

}  // namespace

const cpu::StemTable stem_table = {scratch_bytes, run};

}  // namespace liteseg::LITESEG_ISA
