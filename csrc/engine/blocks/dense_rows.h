// Rows of a dense 3x3 convolution of few channels, computed when they are first asked for and kept in a ring.
//
// Rows of x are copied, channels innermost, between zero columns; an output is then a product whose left side is three
// runs of 3 * C neighbouring floats, with no patches to gather.
#pragma once

#include "engine/blocks/dense_conv.h"
#include "engine/blocks/gemm.h"
#include "engine/blocks/rows.h"

namespace liteseg::LITESEG_ISA {

constexpr int64_t kDenseTaps = 3;

struct DenseScratch {
  int64_t ldh;        // floats of one pixel of the dense map
  int64_t input_row;  // floats of one copied row of x
  int64_t dense_row;
  int64_t input, dense, input_tags, dense_tags;

  DenseScratch(const cpu::DenseConv& g, ScratchLayout& layout) {
    ldh = div_up(g.hidden, Vec::width) * Vec::width;
    // if the stride does not divide the width, the last output's window ends behind the right zero column
    input_row = (g.ow * g.stride + kDenseTaps) * g.c;
    dense_row = (g.ow + 2) * ldh;
    input = layout.take<float>((kDenseTaps + 1) * input_row);
    dense = layout.take<float>(kDenseTaps * dense_row);
    input_tags = layout.take<int64_t>(kDenseTaps);
    dense_tags = layout.take<int64_t>(kDenseTaps);
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
  for (int64_t i = 0; i < kDenseTaps; ++i) {
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
void conv_panel(const cpu::DenseConv& g, const float* const* input, int64_t panel, float* out, int64_t ldo) {
  const int64_t run = kDenseTaps * g.c;
  const int64_t step = g.stride * g.c;
  const float* b = g.weight + panel * kDenseTaps * run;
  const int64_t cols = min_i(kPanel, g.hidden - panel);
  const float* rows[kDenseTaps] = {input[0], input[1], input[2]};
  const auto advance = [&](int64_t count) {
    out += count * ldo;
    for (int64_t i = 0; i < kDenseTaps; ++i) {
      rows[i] += count * step;
    }
  };
  int64_t x = 0;
  for (; x + kRows <= g.ow; x += kRows, advance(kRows)) {
    conv_block<kRows, V>(rows, run, step, b, g.bias + panel, out, ldo, cols, g.activation);
  }
  for (; x + 4 <= g.ow; x += 4, advance(4)) {
    conv_block<4, V>(rows, run, step, b, g.bias + panel, out, ldo, cols, g.activation);
  }
  for (; x < g.ow; ++x, advance(1)) {
    conv_block<1, V>(rows, run, step, b, g.bias + panel, out, ldo, cols, g.activation);
  }
}

class DenseRows {
 public:
  // border: the value of the columns beside the dense map
  DenseRows(const cpu::DenseConv& g, const DenseScratch& s, float border, char* scratch, bool fresh)
      : g_(g),
        s_(s),
        input_(at_offset<float>(scratch, s.input)),
        dense_(at_offset<float>(scratch, s.dense)),
        input_tags_(at_offset<int64_t>(scratch, s.input_tags)),
        dense_tags_(at_offset<int64_t>(scratch, s.dense_tags)) {
    if (fresh) {
      clear_tags(input_tags_, kDenseTaps);
      clear_tags(dense_tags_, kDenseTaps);
      fill(input_, (kDenseTaps + 1) * s.input_row, 0.0f);
      fill(dense_, kDenseTaps * s.dense_row, border);
    }
  }
  // row y of the dense map, its border column first
  const float* row(int64_t n, int64_t y) {
    float* row = dense_ + y % kDenseTaps * s_.dense_row;
    if (dense_tags_[y % kDenseTaps] == n * g_.oh + y) {
      return row;
    }
    dense_tags_[y % kDenseTaps] = n * g_.oh + y;
    const float* rows[kDenseTaps];
    for (int64_t i = 0; i < kDenseTaps; ++i) {
      rows[i] = input(n, y * g_.stride - 1 + g_.less_top + i);
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
  static void fill(float* p, int64_t count, float value) {
    for (int64_t i = 0; i < count; ++i) {
      p[i] = value;
    }
  }
  const float* input(int64_t n, int64_t y) {
    if (y < 0 || y >= g_.h) {
      return input_ + kDenseTaps * s_.input_row;  // the row of zeros behind the ring
    }
    float* row = input_ + y % kDenseTaps * s_.input_row;
    if (input_tags_[y % kDenseTaps] != n * g_.h + y) {
      input_tags_[y % kDenseTaps] = n * g_.h + y;
      const float* src = g_.x + n * g_.xs.n + y * g_.xs.h;
      float* dst = row + (1 - g_.less_left) * g_.c;
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

  const cpu::DenseConv& g_;
  const DenseScratch& s_;
  float* input_;
  float* dense_;
  int64_t* input_tags_;
  int64_t* dense_tags_;
};

}  // namespace liteseg::LITESEG_ISA
