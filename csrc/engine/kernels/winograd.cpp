// Dense 3x3 convolution of stride 1 by Winograd's minimal filtering, with bias, activation and 2x2 max pooling.
// Replaces: conv2d(3x3, any padding and dilation), activation, max_pool2d(2); the map before the pool is never stored
// Shapes:   x [N, H, W, C] -> out [N, Ho, Wo, Co]
// Traffic:  minimum (N*C*H*W + N*Co*Ho*Wo) * 4 + the transformed weights, which are 16/9 (tiles of 2x2 outputs) or four
//           times (4x4) as large as the plain ones; in passes also 2.25 to 4 times both maps twice, mostly in cache
// Bound:    arithmetic: 4 or 2.25 multiply-adds for an output and input channel instead of 9, and the transforms. Where
//           the maps are small, reading the weights
// Layout:   a tile's inputs become one row in each of the (output + 2)^2 left sides, so the products are of tiles x C
//           and C x Co. Either a thread takes a block of tiles through all steps, panel by panel of the output, in its
//           second level of cache; or, where the weights are too large to be read for each block, each step is one pass
//           over all tiles that fit into the shared cache. A dilated convolution is dilation^2 interleaved plain ones
// Numerics: fp32. The points 0, +-3/4, +-3/2 of 4x4 tiles halve the error of the usual +-1, +-2 (about 1e-6 of the
//           output's norm, 2e-7 for 2x2 and for a plain sum); all constants are exact in float. One fixed order per
//           output, whatever the tiling and the number of threads. A value that is not finite makes its whole tile NaN
// Limits:   float32
#include "engine/kernels/winograd.h"

#include "engine/blocks/gemm.h"
#include "engine/blocks/rows.h"

namespace liteseg::LITESEG_ISA {
namespace {

using cpu::WinogradArgs;

// the one-dimensional transforms, for output + 2 inputs
template <int Output>
struct Transform;

template <>
struct Transform<2> {
  static LITESEG_INLINE void input(const Vec* d, Vec* t) {
    t[0] = sub(d[2], d[0]);
    t[1] = add(d[2], d[1]);
    t[2] = sub(d[2], d[1]);
    t[3] = sub(d[3], d[1]);
  }
  static LITESEG_INLINE void output(const Vec* m, Vec* y) {
    y[0] = add(m[0], add(m[1], m[2]));
    y[1] = add(m[3], sub(m[1], m[2]));
  }
};

template <>
struct Transform<4> {
  static constexpr float a = 0.75f;
  static constexpr float b = 1.5f;

  static LITESEG_INLINE void input(const Vec* d, Vec* t) {
    const Vec product = set1(a * a * b * b);
    const Vec sum = set1(-(a * a + b * b));
    t[0] = fma(product, d[0], fma(sum, d[2], d[4]));
    t[5] = fma(product, d[1], fma(sum, d[3], d[5]));
    const Vec even_a = fma(set1(-b * b), d[2], d[4]);
    const Vec odd_a = fma(set1(-b * b), d[1], d[3]);
    t[1] = fma(set1(a), odd_a, even_a);
    t[2] = fma(set1(-a), odd_a, even_a);
    const Vec even_b = fma(set1(-a * a), d[2], d[4]);
    const Vec odd_b = fma(set1(-a * a), d[1], d[3]);
    t[3] = fma(set1(b), odd_b, even_b);
    t[4] = fma(set1(-b), odd_b, even_b);
  }
  static LITESEG_INLINE void output(const Vec* m, Vec* y) {
    const Vec even_a = add(m[1], m[2]);
    const Vec odd_a = sub(m[1], m[2]);
    const Vec even_b = add(m[3], m[4]);
    const Vec odd_b = sub(m[3], m[4]);
    y[0] = add(m[0], add(even_a, even_b));
    y[1] = fma(set1(a), odd_a, mul(set1(b), odd_b));
    y[2] = fma(set1(a * a), even_a, mul(set1(b * b), even_b));
    y[3] = fma(set1(a * a * a), odd_a, fma(set1(b * b * b), odd_b, m[5]));
  }
};

// extra floats between matrices: with a distance that is a power of two their rows would compete for few sets of L1
constexpr int64_t kAliased = 256;
constexpr int64_t kLine = 16;

int64_t pixel_floats(const WinogradArgs& g) {
  const int64_t floats = div_up(g.c, Vec::width) * Vec::width;
  return floats % kAliased == 0 ? floats + kLine : floats;
}
// from one of the (output + 2)^2 matrices to the next
int64_t v_stride(const WinogradArgs& g) {
  return g.block * pixel_floats(g) + kLine;
}
int64_t m_stride(const WinogradArgs& g) {
  return g.block * kPanel + kLine;
}
int64_t taps(const WinogradArgs& g) {
  return (g.output + 2) * (g.output + 2);
}
int64_t panels(const WinogradArgs& g) {
  return div_up(g.co, kPanel);
}
int64_t v_floats(const WinogradArgs& g) {
  return taps(g) * v_stride(g);
}
int64_t m_floats(const WinogradArgs& g, int64_t panel_count) {
  return panel_count * taps(g) * m_stride(g);
}

// where a tile's first output lies, and the distance to the next
struct Tile {
  int64_t n, y, x;

  LITESEG_INLINE Tile(const WinogradArgs& g, int64_t index) {
    const int64_t column = index % g.columns;
    index /= g.columns;
    const int64_t row = index % g.rows;
    index /= g.rows;
    const int64_t grid_column = index % g.grid_columns;
    index /= g.grid_columns;
    n = index / g.grid_rows;
    y = index % g.grid_rows + row * g.output * g.dilation;
    x = grid_column + column * g.output * g.dilation;
  }
};

// v: the tile's place in the first matrix
template <int Output>
void transform_tile(const WinogradArgs& g, int64_t index, const float* zeros, float* v) {
  constexpr int size = Output + 2;
  const Tile tile(g, index);
  const float* at[size][size];
  for (int i = 0; i < size; ++i) {
    const int64_t y = tile.y + i * g.dilation - g.padding;
    for (int j = 0; j < size; ++j) {
      const int64_t x = tile.x + j * g.dilation - g.padding;
      const bool inside = y >= 0 && y < g.h && x >= 0 && x < g.w;
      at[i][j] = inside ? g.x + ((tile.n * g.h + y) * g.w + x) * g.c : zeros;
    }
  }
  const int64_t stride = v_stride(g);
  for (int64_t c = 0; c < g.c; c += Vec::width) {
    Vec half[size][size];
#pragma GCC unroll 6
    for (int j = 0; j < size; ++j) {
      Vec d[size];
#pragma GCC unroll 6
      for (int i = 0; i < size; ++i) {
        d[i] = load_partial(at[i][j] + c, g.c - c);
      }
      Transform<Output>::input(d, half[j]);
    }
#pragma GCC unroll 6
    for (int i = 0; i < size; ++i) {
      Vec d[size], t[size];
#pragma GCC unroll 6
      for (int j = 0; j < size; ++j) {
        d[j] = half[j][i];
      }
      Transform<Output>::input(d, t);
#pragma GCC unroll 6
      for (int j = 0; j < size; ++j) {
        store(v + (i * size + j) * stride + c, t[j]);
      }
    }
  }
}

// products of `count` tiles for one panel of the output; the weights of the next call are `ahead` floats further
void multiply_panel(const WinogradArgs& g, int64_t count, int64_t tap, int64_t panel, const float* v, float* m,
                    int64_t ahead) {
  // zero in place of a bias
  alignas(64) static const float zeros[kPanel] = {};
  const float* weight = g.weight + (panel * taps(g) + tap) * g.c * kPanel;
  const Epilogue<float> plain{nullptr, 0, cpu::kNone, 0.0f};
  if (g.co - panel * kPanel > Vec::width) {
    gemm_panel<float, 2>(count, v, pixel_floats(g), weight, g.c, zeros, m, kPanel, kPanel, plain, {}, weight + ahead);
  } else {
    gemm_panel<float, 1>(count, v, pixel_floats(g), weight, g.c, zeros, m, kPanel, Vec::width, plain, {},
                         weight + ahead);
  }
}

// m: the tile's place in the panel's first matrix
template <int Output>
void finish_tile(const WinogradArgs& g, int64_t index, int64_t panel, const float* m) {
  constexpr int size = Output + 2;
  const Tile tile(g, index);
  const int64_t stride = m_stride(g);
  const int64_t step = g.pool ? 2 : 1;
  // places of the tile in out, pooled or not
  const int64_t height = g.oh / step;
  const int64_t width = g.ow / step;
  const int64_t rows = min_i(Output, div_up(g.oh - tile.y, g.dilation)) / step;
  const int64_t columns = min_i(Output, div_up(g.ow - tile.x, g.dilation)) / step;
  float* out = g.out + ((tile.n * height + tile.y / step) * width + tile.x / step) * g.co;
  const int64_t row_floats = g.dilation * width * g.co;
  const int64_t pixel = g.dilation * g.co;
  const Vec slope = set1(g.slope);
  for (int64_t v = 0; v < kPanel && panel * kPanel + v < g.co; v += Vec::width) {
    const int64_t c = panel * kPanel + v;
    Vec half[Output][size];
#pragma GCC unroll 6
    for (int j = 0; j < size; ++j) {
      Vec sums[size], y[Output];
#pragma GCC unroll 6
      for (int i = 0; i < size; ++i) {
        sums[i] = load(m + (i * size + j) * stride + v);
      }
      Transform<Output>::output(sums, y);
#pragma GCC unroll 4
      for (int i = 0; i < Output; ++i) {
        half[i][j] = y[i];
      }
    }
    const Vec bias = load(g.bias + c);
    const auto put = [&](int64_t i, int64_t j, Vec value) LITESEG_INLINE_LAMBDA {
      if (i < rows && j < columns) {
        store_partial(out + i * row_floats + j * pixel + c, activate(add(value, bias), g.activation, slope), g.co - c);
      }
    };
#pragma GCC unroll 2
    for (int i = 0; i < Output; i += 2) {
      Vec top[Output], bottom[Output];
      Transform<Output>::output(half[i], top);
      Transform<Output>::output(half[i + 1], bottom);
#pragma GCC unroll 2
      for (int j = 0; j < Output; j += 2) {
        if (g.pool) {
          put(i / 2, j / 2,
              maximum_or_nan(maximum_or_nan(top[j], top[j + 1]), maximum_or_nan(bottom[j], bottom[j + 1])));
        } else {
          put(i, j, top[j]);
          put(i, j + 1, top[j + 1]);
          put(i + 1, j, bottom[j]);
          put(i + 1, j + 1, bottom[j + 1]);
        }
      }
    }
  }
}

void transform_tiles(const WinogradArgs& g, int64_t first, int64_t count, const float* zeros, float* v) {
  const int64_t row = pixel_floats(g);
  for (int64_t i = 0; i < count; ++i) {
    if (g.output == 4) {
      transform_tile<4>(g, first + i, zeros, v + i * row);
    } else {
      transform_tile<2>(g, first + i, zeros, v + i * row);
    }
  }
}

void finish_tiles(const WinogradArgs& g, int64_t first, int64_t count, int64_t panel, const float* m) {
  for (int64_t i = 0; i < count; ++i) {
    if (g.output == 4) {
      finish_tile<4>(g, first + i, panel, m + i * kPanel);
    } else {
      finish_tile<2>(g, first + i, panel, m + i * kPanel);
    }
  }
}

struct Scratch {
  ScratchLayout layout;
  int64_t zeros, v, m;

  Scratch(const WinogradArgs& g, bool whole) {
    zeros = layout.take<float>(pixel_floats(g));
    v = layout.take<float>(whole ? v_floats(g) : 0);
    m = layout.take<float>(whole ? m_floats(g, 1) : 0);
  }
  const float* fill_zeros(const WinogradArgs& g, char* scratch) const {
    float* p = at_offset<float>(scratch, zeros);
    for (int64_t i = 0; i < pixel_floats(g); ++i) {
      p[i] = 0.0f;
    }
    return p;
  }
};

void run(const WinogradArgs& g, int64_t begin, int64_t end, char* scratch) {
  const Scratch s(g, true);
  const float* outside = s.fill_zeros(g, scratch);
  float* v = at_offset<float>(scratch, s.v);
  float* m = at_offset<float>(scratch, s.m);
  for (int64_t block = begin; block < end; ++block) {
    const int64_t first = g.first + block * g.block;
    const int64_t count = min_i(g.block, g.first + g.count - first);
    transform_tiles(g, first, count, outside, v);
    for (int64_t panel = 0; panel < panels(g); ++panel) {
      for (int64_t tap = 0; tap < taps(g); ++tap) {
        multiply_panel(g, count, tap, panel, v + tap * v_stride(g), m + tap * m_stride(g), g.c * kPanel);
      }
      finish_tiles(g, first, count, panel, m);
    }
  }
}

void transform(const WinogradArgs& g, int64_t begin, int64_t end, char* scratch) {
  const float* outside = Scratch(g, false).fill_zeros(g, scratch);
  transform_tiles(g, g.first + begin, end - begin, outside, g.v + begin * pixel_floats(g));
}

void multiply(const WinogradArgs& g, int64_t begin, int64_t end) {
  for (int64_t item = begin; item < end; ++item) {
    // all panels of one matrix before the next matrix, so that its left side stays in cache
    const int64_t tap = item / panels(g);
    const int64_t panel = item - tap * panels(g);
    multiply_panel(g, g.count, tap, panel, g.v + tap * v_stride(g), g.m + (panel * taps(g) + tap) * m_stride(g),
                   taps(g) * g.c * kPanel);
  }
}

void finish(const WinogradArgs& g, int64_t begin, int64_t end) {
  for (int64_t item = begin; item < end;) {
    const int64_t panel = item / g.count;
    const int64_t at = item - panel * g.count;
    const int64_t count = min_i(g.count - at, end - item);
    finish_tiles(g, g.first + at, count, panel, g.m + panel * taps(g) * m_stride(g) + at * kPanel);
    item += count;
  }
}

int64_t run_scratch(const WinogradArgs& g) {
  return Scratch(g, true).layout.bytes();
}
int64_t pass_scratch(const WinogradArgs& g) {
  return Scratch(g, false).layout.bytes();
}

}  // namespace

const cpu::WinogradTable winograd_table = {v_floats,     m_floats,  run_scratch, run,
                                           pass_scratch, transform, multiply,    finish};

}  // namespace liteseg::LITESEG_ISA
