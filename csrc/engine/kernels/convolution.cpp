// Dense convolution as a product without gathered patches, with bias, activation and 2x2 max pooling, or pooling alone.
// Replaces: conv2d, activation, max_pool2d(2); the map before the pool is never stored
// Shapes:   x [N, C, H, W] at any strides -> out [N, Ho, Wo, Co]; any stride, padding and dilation, up to 7x7 taps
// Traffic:  minimum (N*C*H*W + N*Co*Ho*Wo) * 4 + weights
// Bound:    arithmetic
// Layout:   rows of x are copied, channels innermost, between zero columns, as many as there are rows of taps; an
//           output is then a product whose left side is a few runs of neighbouring floats. Taps that lie in the padding
//           above, below or (with dilation) beside x are left out. 1x1 reads x in place, and a border that its padding
//           adds is the activation of the bias
// Numerics: fp32 multiply-adds in one fixed order per output, whatever the number of threads; NaN wins the maxima, as in
//           torch
// Limits:   float32
#include "engine/kernels/convolution.h"

#include "engine/blocks/output.h"
#include "engine/blocks/rows.h"

namespace liteseg::LITESEG_ISA {
namespace {

using cpu::ConvolutionArgs;
using cpu::PoolArgs;

constexpr int64_t kMostRuns = cpu::kMostTaps * cpu::kMostTaps;

struct Scratch {
  ScratchLayout layout;
  int64_t row;   // floats of one copied row of x
  int64_t tile;  // pixels of the rows that are pooled
  int64_t ldp;
  int64_t input, tags, pooled;

  explicit Scratch(const ConvolutionArgs& g) {
    row = (g.w + 2 * g.padding) * g.c;
    tile = g.pool ? min_i(4 * kRows, g.ow) : 0;
    ldp = finish_stride(g.co);
    input = layout.take<float>(g.kernel * row);
    tags = layout.take<int64_t>(g.kernel);
    pooled = layout.take<float>(2 * tile * ldp);
  }
};

// Taps that are one run of floats in a row of x, and in a panel of weights.
struct Run {
  const float* row;     // as the first output pixel of a row reads it
  int64_t weight;       // floats of the panel in front of it
  int64_t first, last;  // the output pixels for which it is more than zeros
};

struct Runs {
  Run run[kMostRuns];
  int64_t count = 0;
  int64_t length;  // floats of each
};

template <int M, int V>
void conv_block(const ConvolutionArgs& g, const Runs& runs, const float* weight, int64_t panel, int64_t x, float* out,
                int64_t ldo) {
  const int64_t step = g.stride * g.c;
  Vec acc[M][V];
#pragma GCC unroll 12
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) {
      acc[m][v] = load(g.bias + panel + v * Vec::width);
    }
  }
  for (const Run* run = runs.run; run != runs.run + runs.count; ++run) {
    if (x >= run->last || x + M <= run->first) {
      continue;
    }
    const float* a = run->row + x * step;
    const float* b = weight + run->weight;
    for (int64_t k = 0; k < runs.length; ++k, b += kPanel) {
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
  const Vec slope = set1(g.slope);
  const int64_t cols = g.co - panel;
#pragma GCC unroll 12
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) {
      store_partial(out + m * ldo + panel + v * Vec::width, activate(acc[m][v], g.activation, slope),
                    cols - v * Vec::width);
    }
  }
}

template <int V>
void conv_panel(const ConvolutionArgs& g, const Runs& runs, int64_t panel, int64_t x0, int64_t x1, float* out,
                int64_t ldo) {
  const float* weight = g.weight + panel * g.kernel * g.kernel * g.c;
  int64_t x = x0;
  for (; x + kRows <= x1; x += kRows, out += kRows * ldo) {
    conv_block<kRows, V>(g, runs, weight, panel, x, out, ldo);
  }
  for (; x + 4 <= x1; x += 4, out += 4 * ldo) {
    conv_block<4, V>(g, runs, weight, panel, x, out, ldo);
  }
  for (; x < x1; ++x, out += ldo) {
    conv_block<1, V>(g, runs, weight, panel, x, out, ldo);
  }
}

// copied rows of x between zero columns
class Rows {
 public:
  Rows(const ConvolutionArgs& g, const Scratch& s, char* scratch, bool fresh)
      : g_(g),
        s_(s),
        input_(at_offset<float>(scratch, s.input)),
        tags_(at_offset<int64_t>(scratch, s.tags)),
        image_{g.x, g.xs, g.c, g.h, g.w} {
    if (fresh) {
      clear_tags(tags_, g.kernel);
      for (int64_t i = 0; i < g.kernel * s.row; ++i) {
        input_[i] = 0.0f;
      }
    }
  }

  // pixels [x0, x1) of row y of the output, ldo floats apart
  void convolve(int64_t n, int64_t y, int64_t x0, int64_t x1, float* out, int64_t ldo) {
    // without dilation the taps of one row are contiguous and go into the product as one run
    const int64_t along = g_.dilation == 1 ? 1 : g_.kernel;
    Runs runs;
    runs.length = g_.kernel / along * g_.c;
    for (int64_t i = 0; i < g_.kernel; ++i) {
      const int64_t from = y * g_.stride - g_.padding + g_.less_top + i * g_.dilation;
      if (from < 0 || from >= g_.h) {
        continue;
      }
      const float* row = input(n, from);
      for (int64_t j = 0; j < along; ++j) {
        const int64_t right = g_.less_left + j * g_.dilation;
        Run& run = runs.run[runs.count++];
        run = {row + right * g_.c, (i * along + j) * runs.length * kPanel, 0, g_.ow};
        if (along > 1) {
          run.first = max_i(0, div_up(g_.padding - right, g_.stride));
          run.last = max_i(0, div_up(g_.padding - right + g_.w, g_.stride));
        }
      }
    }
    for (int64_t panel = 0; panel < g_.co; panel += kPanel) {
      if (g_.co - panel > Vec::width) {
        conv_panel<2>(g_, runs, panel, x0, x1, out, ldo);
      } else {
        conv_panel<1>(g_, runs, panel, x0, x1, out, ldo);
      }
    }
  }

 private:
  // row y of x, between its zeros
  const float* input(int64_t n, int64_t y) {
    // the rows that one output reads are `dilation` apart; counted like this they take different slots
    const int64_t slot = y / g_.dilation % g_.kernel;
    float* row = input_ + slot * s_.row;
    if (tags_[slot] != n * g_.h + y) {
      tags_[slot] = n * g_.h + y;
      copy(image_.row<float>(n, y), row + g_.padding * g_.c);
    }
    return row;
  }
  void copy(const float* src, float* dst) const {
    if (g_.xs.c == 1 && g_.xs.w == g_.c) {
      __builtin_memcpy(dst, src, static_cast<size_t>(g_.w * g_.c) * sizeof(float));
      return;
    }
    for (int64_t c = 0; c < g_.c; ++c) {
      for (int64_t x = 0; x < g_.w; ++x) {
        dst[x * g_.c + c] = src[c * g_.xs.c + x * g_.xs.w];
      }
    }
  }

  const ConvolutionArgs& g_;
  const Scratch& s_;
  float* input_;
  int64_t* tags_;
  Image image_;
};

// out [count][c] = maxima of 2x2 pixels, ld floats apart, of the rows top and bottom
void pool_row(const float* top, const float* bottom, int64_t ld, int64_t count, int64_t c, float* out) {
  for (int64_t x = 0; x < count; ++x, top += 2 * ld, bottom += 2 * ld, out += c) {
    for (int64_t i = 0; i < c; i += Vec::width) {
      const int64_t n = c - i;
      const Vec above = maximum_or_nan(load_partial(top + i, n), load_partial(top + ld + i, n));
      const Vec below = maximum_or_nan(load_partial(bottom + i, n), load_partial(bottom + ld + i, n));
      store_partial(out + i, maximum_or_nan(above, below), n);
    }
  }
}

void rows(const ConvolutionArgs& g, int64_t begin, int64_t end, char* scratch, bool fresh) {
  const Scratch s(g);
  Rows source(g, s, scratch, fresh);
  const int64_t height = g.pool ? g.oh / 2 : g.oh;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t n = row / height;
    const int64_t y = row - n * height;
    if (!g.pool) {
      source.convolve(n, y, 0, g.ow, g.out + row * g.ow * g.co, g.co);
      continue;
    }
    float* top = at_offset<float>(scratch, s.pooled);
    float* bottom = top + s.tile * s.ldp;
    float* out = g.out + row * (g.ow / 2) * g.co;
    for (int64_t x = 0; x < g.ow; x += s.tile) {
      const int64_t pixels = min_i(s.tile, g.ow - x);
      source.convolve(n, 2 * y, x, x + pixels, top, s.ldp);
      source.convolve(n, 2 * y + 1, x, x + pixels, bottom, s.ldp);
      pool_row(top, bottom, s.ldp, pixels / 2, g.co, out + x / 2 * g.co);
    }
  }
}

// `count` output pixels whose 1x1 window lies in the padding: activation(bias)
void fill_border(const ConvolutionArgs& g, float* out, int64_t count) {
  const Vec slope = set1(g.slope);
  for (int64_t p = 0; p < count; ++p, out += g.co) {
    for (int64_t c = 0; c < g.co; c += Vec::width) {
      store_partial(out + c, activate(load(g.bias + c), g.activation, slope), g.co - c);
    }
  }
}

void points(const ConvolutionArgs& g, int64_t begin, int64_t end) {
  const Epilogue<float> epilogue{nullptr, 0, g.activation, g.slope};
  const int64_t p = g.padding;
  const auto place = [&](int64_t n, int64_t y, int64_t x) { return g.out + ((n * g.oh + y) * g.ow + x) * g.co; };
  for (int64_t item = begin; item < end; ++item) {
    const int64_t p0 = item * g.tile;
    const int64_t p1 = min_i(p0 + g.tile, g.n * g.h * g.w);
    const float* x0 = g.x + p0 * g.c;
    for (int64_t panel = 0; panel < g.co; panel += kPanel) {
      if (p == 0) {
        gemm_columns<float>(panel, p1 - p0, g.co, g.c, x0, g.c, g.weight, g.bias, g.out + p0 * g.co, g.co, epilogue);
        continue;
      }
      for_each_row(p0, p1, g.h, g.w, [&](int64_t n, int64_t y, int64_t x, int64_t count, int64_t offset) {
        gemm_columns<float>(panel, count, g.co, g.c, x0 + offset * g.c, g.c, g.weight, g.bias, place(n, y + p, x + p),
                            g.co, epilogue);
      });
    }
    if (p == 0) {
      continue;
    }
    for_each_row(p0, p1, g.h, g.w, [&](int64_t n, int64_t y, int64_t x, int64_t count, int64_t) {
      if (x == 0) {
        fill_border(g, place(n, y + p, 0), p);
        if (y == 0) {
          fill_border(g, place(n, 0, 0), p * g.ow);
        }
      }
      if (x + count == g.w) {
        fill_border(g, place(n, y + p, g.ow - p), p);
        if (y == g.h - 1) {
          fill_border(g, place(n, g.oh - p, 0), p * g.ow);
        }
      }
    });
  }
}

void pool(const PoolArgs& g, int64_t begin, int64_t end) {
  const int64_t height = g.h / 2;
  const int64_t width = g.w / 2;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t n = row / height;
    const float* top = g.x + (n * g.h + 2 * (row - n * height)) * g.w * g.c;
    pool_row(top, top + g.w * g.c, g.c, width, g.c, g.out + row * width * g.c);
  }
}

int64_t scratch_bytes(const ConvolutionArgs& args) {
  return Scratch(args).layout.bytes();
}

}  // namespace

const cpu::ConvolutionTable convolution_table = {scratch_bytes, rows, points, pool};

}  // namespace liteseg::LITESEG_ISA
