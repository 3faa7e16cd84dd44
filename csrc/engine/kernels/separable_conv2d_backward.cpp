// separable_conv2d_backward - all gradients of separable_conv2d from its input and output.
// Replaces: the backwards of conv2d(groups=C), conv2d(1x1), add and the activation
// Shapes:   grad, output [N, Co, Ho, Wo], x [N, C, H, W] at any strides -> gradients of x, both weights, bias and
//           residual
// Traffic:  minimum (2*N*Co*Ho*Wo + 2*N*C*H*W) * sizeof(T); this one adds 2*N*Ho*Wo*C*4 for the gradient of the
//           depthwise map, which is stored once in fp32 where x's gradient is asked for. The depthwise map itself is
//           computed again tile by tile, not kept from the forward
// Bound:    arithmetic: three products of 2*C*Co flops a pixel
// Layout:   first, tile by tile: gradient before the activation, its product with the pointwise weight, and the tile's
//           share of the weight gradients. Second, row by row of x: its gradient gathers the taps, so no two threads
//           write one place
// Numerics: fp32. Weight gradients are summed tile by tile within a chunk, then chunk by chunk; tiles and chunks depend
//           on the shapes alone, so results do not depend on the number of threads
// Limits:   float32, float16, bfloat16
#include "engine/kernels/separable_conv2d_backward.h"

#include "engine/blocks/depthwise.h"
#include "engine/blocks/depthwise_backward.h"
#include "engine/blocks/output.h"
#include "engine/blocks/rows.h"

namespace liteseg::LITESEG_ISA {
namespace {

using cpu::SeparableConvBackwardArgs;

struct Scratch {
  ScratchLayout layout;
  int64_t slots;
  int64_t grad, output, map, map_grad, rows, taps, tags, ring;

  explicit Scratch(const SeparableConvBackwardArgs& g) {
    const bool direct = Image{g.x, g.xs, g.c, g.h, g.w}.dense_channels();
    slots = direct ? 0 : min_i(g.h, (g.kh - 1) * g.dh + 1);
    grad = layout.take<float>(g.tile * g.out_stride);
    output = layout.take<float>(g.tile * g.out_stride);
    map = layout.take<float>(g.tile * g.channel_stride);
    map_grad = layout.take<float>(g.tile * g.channel_stride);
    rows = layout.take<void*>(g.kh);
    taps = layout.take<int64_t>(g.kh);
    tags = layout.take<int64_t>(slots);
    ring = layout.take<float>(slots * g.w * g.c);
  }
};

// sum[m][n] += sum_k a[k][m] * b[k][n] for M rows and V vectors of columns
template <int M, int V>
void add_outer_block(int64_t k_count, const float* a, int64_t lda, const float* b, int64_t ldb, float* sum,
                     int64_t lds) {
  Vec acc[M][V];
#pragma GCC unroll 12
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) {
      acc[m][v] = zero();
    }
  }
  for (int64_t k = 0; k < k_count; ++k) {
    Vec bv[V];
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) {
      bv[v] = load(b + k * ldb + v * Vec::width);
    }
#pragma GCC unroll 12
    for (int m = 0; m < M; ++m) {
      const Vec av = set1(a[k * lda + m]);
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) {
        acc[m][v] = fma(av, bv[v], acc[m][v]);
      }
    }
  }
#pragma GCC unroll 12
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) {
      float* at = sum + m * lds + v * Vec::width;
      store(at, add(load(at), acc[m][v]));
    }
  }
}

template <int V>
void add_outer_columns(int64_t m_count, int64_t k_count, const float* a, int64_t lda, const float* b, int64_t ldb,
                       float* sum, int64_t lds) {
  int64_t m = 0;
  for (; m + kRows <= m_count; m += kRows) {
    add_outer_block<kRows, V>(k_count, a + m, lda, b, ldb, sum + m * lds, lds);
  }
  for (; m + 4 <= m_count; m += 4) {
    add_outer_block<4, V>(k_count, a + m, lda, b, ldb, sum + m * lds, lds);
  }
  for (; m < m_count; ++m) {
    add_outer_block<1, V>(k_count, a + m, lda, b, ldb, sum + m * lds, lds);
  }
}

// n_count is a multiple of the vector width
void add_outer(int64_t m_count, int64_t n_count, int64_t k_count, const float* a, int64_t lda, const float* b,
               int64_t ldb, float* sum, int64_t lds) {
  int64_t n = 0;
  for (; n + kPanel <= n_count; n += kPanel) {
    add_outer_columns<2>(m_count, k_count, a, lda, b + n, ldb, sum + n, lds);
  }
  if (n < n_count) {
    add_outer_columns<1>(m_count, k_count, a, lda, b + n, ldb, sum + n, lds);
  }
}

DepthwiseTaps taps_of(const SeparableConvBackwardArgs& g) {
  return {g.c, g.w, g.ow, g.kh, g.kw, g.sw, g.pw, g.dw};
}

void clear(float* p, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    p[i] = 0.0f;
  }
}

template <typename T, typename Rows>
void sum_tiles(const SeparableConvBackwardArgs& g, int64_t chunk, Rows source, const Scratch& s, char* scratch) {
  using Element = typename Rows::Element;
  float* grad = at_offset<float>(scratch, s.grad);
  float* output = at_offset<float>(scratch, s.output);
  float* map = at_offset<float>(scratch, s.map);
  const Element** rows = at_offset<const Element*>(scratch, s.rows);
  int64_t* taps = at_offset<int64_t>(scratch, s.taps);
  const Image grad_image{g.grad, g.gs, g.co, g.oh, g.ow};
  const Image output_image{g.output, g.os, g.co, g.oh, g.ow};
  const DepthwiseRow geometry{g.c, g.w, g.kh, g.kw, g.sw, g.pw, g.dw, source.pixel_stride(), nullptr, cpu::kNone, 0.0f};
  const Output<T> residual{static_cast<T*>(g.grad_residual), g.rs, nullptr, {}, g.co, g.oh, g.ow, cpu::kNone, 0.0f};
  const Vec slope = set1(g.slope);
  const int64_t pixels = g.n * g.oh * g.ow;
  const int64_t taps_count = g.kh * g.kw;
  float* pointwise_sum = g.pointwise_sum == nullptr ? nullptr : g.pointwise_sum + chunk * g.co * g.channel_stride;
  float* depthwise_sum = g.depthwise_sum == nullptr ? nullptr : g.depthwise_sum + chunk * taps_count * g.channel_stride;
  float* bias_sum = g.bias_sum == nullptr ? nullptr : g.bias_sum + chunk * g.out_stride;
  clear(pointwise_sum, pointwise_sum == nullptr ? 0 : g.co * g.channel_stride);
  clear(depthwise_sum, depthwise_sum == nullptr ? 0 : taps_count * g.channel_stride);
  clear(bias_sum, bias_sum == nullptr ? 0 : g.out_stride);

  for (int64_t t = 0; t < g.chunk_tiles; ++t) {
    const int64_t p0 = (chunk * g.chunk_tiles + t) * g.tile;
    const int64_t p1 = min_i(p0 + g.tile, pixels);
    if (p0 >= p1) {
      break;
    }
    for_each_row(p0, p1, g.oh, g.ow, [&](int64_t n, int64_t oy, int64_t ox, int64_t count, int64_t offset) {
      float* at = grad + offset * g.out_stride;
      transpose_copy(grad_image.row<T>(n, oy) + ox * g.gs.w, g.gs.c, g.gs.w, g.co, count, at, g.out_stride);
      if (g.activation != cpu::kNone) {
        float* out = output + offset * g.out_stride;
        transpose_copy(output_image.row<T>(n, oy) + ox * g.os.w, g.os.c, g.os.w, g.co, count, out, g.out_stride);
        for (int64_t i = 0; i < count * g.out_stride; i += Vec::width) {
          store(at + i, activation_gradient(load(at + i), load(out + i), g.activation, slope));
        }
      }
      if (g.grad_residual != nullptr) {
        finish_row(residual, at, g.out_stride, n, oy, ox, count);
      }
    });
    if (bias_sum != nullptr) {
      for (int64_t c = 0; c < g.co; c += Vec::width) {
        Vec sum = zero();
        for (int64_t p = 0; p < p1 - p0; ++p) {
          sum = add(sum, load(grad + p * g.out_stride + c));
        }
        store(bias_sum + c, add(load(bias_sum + c), sum));
      }
    }
    float* map_grad = g.between != nullptr ? g.between + p0 * g.channel_stride : at_offset<float>(scratch, s.map_grad);
    if (g.between != nullptr || depthwise_sum != nullptr) {
      gemm<float>(p1 - p0, g.c, g.co, grad, g.out_stride, g.transposed, g.zeros, map_grad, g.channel_stride,
                  {nullptr, 0, cpu::kNone, 0.0f});
    }
    if (pointwise_sum == nullptr && depthwise_sum == nullptr) {
      continue;
    }
    for_each_row(p0, p1, g.oh, g.ow, [&](int64_t n, int64_t oy, int64_t ox, int64_t count, int64_t offset) {
      int64_t row_count = 0;
      for (int64_t i = 0; i < g.kh; ++i) {
        const int64_t y = oy * g.sh - g.ph + i * g.dh;
        if (y >= 0 && y < g.h) {
          rows[row_count] = source.row(n, y);
          taps[row_count++] = i;
        }
      }
      if (depthwise_sum != nullptr) {
        add_depthwise(taps_of(g), rows, taps, row_count, source.pixel_stride(), ox, count,
                      map_grad + offset * g.channel_stride, g.channel_stride, depthwise_sum, g.channel_stride);
      }
      if (pointwise_sum != nullptr) {
        depthwise_run(rows, taps, row_count, geometry, g.depthwise, ox, ox + count, map + offset * g.channel_stride,
                      g.channel_stride);
      }
    });
    if (pointwise_sum != nullptr) {
      add_outer(g.co, g.channel_stride, p1 - p0, grad, g.out_stride, map, g.channel_stride, pointwise_sum,
                g.channel_stride);
    }
  }
}

template <typename T>
void sum_chunks(const SeparableConvBackwardArgs& g, int64_t begin, int64_t end, char* scratch) {
  const Scratch s(g);
  const Image x{g.x, g.xs, g.c, g.h, g.w};
  // the columns between the channels and their stride take part in the sums, though nothing reads the results
  clear(at_offset<float>(scratch, s.grad), g.tile * g.out_stride);
  clear(at_offset<float>(scratch, s.output), g.tile * g.out_stride);
  clear(at_offset<float>(scratch, s.map), g.tile * g.channel_stride);
  clear(at_offset<float>(scratch, s.map_grad), g.tile * g.channel_stride);
  int64_t* tags = at_offset<int64_t>(scratch, s.tags);
  clear_tags(tags, s.slots);
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    if (x.dense_channels()) {
      sum_tiles<T>(g, chunk, DirectRows<T>{x}, s, scratch);
    } else {
      sum_tiles<T>(g, chunk, RingRows<T>{x, s.slots, tags, at_offset<float>(scratch, s.ring)}, s, scratch);
    }
  }
}

struct InputScratch {
  ScratchLayout layout;
  int64_t sums, rows, taps, places, weights;

  explicit InputScratch(const SeparableConvBackwardArgs& g) {
    places = layout.take<void*>(g.kh * g.kw);
    weights = layout.take<void*>(g.kh * g.kw);
    sums = layout.take<float>(g.w * g.channel_stride);
    rows = layout.take<void*>(g.kh);
    taps = layout.take<int64_t>(g.kh);
  }
};

template <typename T>
void input_rows(const SeparableConvBackwardArgs& g, int64_t begin, int64_t end, char* scratch) {
  const InputScratch s(g);
  float* sums = at_offset<float>(scratch, s.sums);
  const float** rows = at_offset<const float*>(scratch, s.rows);
  int64_t* taps = at_offset<int64_t>(scratch, s.taps);
  const float** places = at_offset<const float*>(scratch, s.places);
  const float** weights = at_offset<const float*>(scratch, s.weights);
  const Output<T> out{static_cast<T*>(g.grad_x), g.dxs, nullptr, {}, g.c, g.h, g.w, cpu::kNone, 0.0f};
  // without steps along x the gradient is itself a depthwise convolution, with the taps in reverse
  const DepthwiseRow geometry{g.c,     g.ow,       g.kh, g.kw, 1, g.dw * (g.kw - 1) - g.pw, g.dw, g.channel_stride,
                              nullptr, cpu::kNone, 0.0f};
  for (int64_t row = begin; row < end; ++row) {
    const int64_t n = row / g.h;
    const int64_t y = row - n * g.h;
    int64_t row_count = 0;
    for (int64_t i = 0; i < g.kh; ++i) {
      const int64_t position = y + g.ph - i * g.dh;
      if (position >= 0 && position % g.sh == 0 && position / g.sh < g.oh) {
        rows[row_count] = g.between + (n * g.oh + position / g.sh) * g.ow * g.channel_stride;
        taps[row_count++] = g.sw == 1 ? g.kh - 1 - i : i;
      }
    }
    if (g.sw == 1) {
      depthwise_run(rows, taps, row_count, geometry, g.depthwise_flipped, 0, g.w, sums, g.channel_stride);
    } else {
      gather_strided(taps_of(g), rows, taps, row_count, g.channel_stride, g.depthwise, places, weights, sums,
                     g.channel_stride);
    }
    finish_row(out, sums, g.channel_stride, n, y, 0, g.w);
  }
}

template <typename T>
void reduce_pointwise(const SeparableConvBackwardArgs& g, int64_t begin, int64_t end) {
  T* out = static_cast<T*>(g.grad_pointwise);
  for (int64_t co = begin; co < end; ++co) {
    for (int64_t c = 0; c < g.c; c += Vec::width) {
      const float* parts = g.pointwise_sum + co * g.channel_stride + c;
      store_partial(out + co * g.c + c, sum_parts(parts, g.chunks, g.co * g.channel_stride), g.c - c);
    }
  }
}

template <typename T>
void reduce_rest(const SeparableConvBackwardArgs& g) {
  if (g.grad_bias != nullptr) {
    T* out = static_cast<T*>(g.grad_bias);
    for (int64_t c = 0; c < g.co; c += Vec::width) {
      store_partial(out + c, sum_parts(g.bias_sum + c, g.chunks, g.out_stride), g.co - c);
    }
  }
  if (g.grad_depthwise != nullptr) {
    reduce_depthwise(g.depthwise_sum, g.chunks, g.kh * g.kw, g.c, g.channel_stride, static_cast<T*>(g.grad_depthwise));
  }
}

int64_t scratch_bytes(const SeparableConvBackwardArgs& args) {
  return Scratch(args).layout.bytes();
}

int64_t input_scratch_bytes(const SeparableConvBackwardArgs& args) {
  return InputScratch(args).layout.bytes();
}

}  // namespace

const cpu::SeparableConvBackwardTable separable_conv2d_backward_table = {
    Vec::width,
    scratch_bytes,
    {sum_chunks<float>, sum_chunks<f16>, sum_chunks<bf16>},
    input_scratch_bytes,
    {input_rows<float>, input_rows<f16>, input_rows<bf16>},
    {reduce_pointwise<float>, reduce_pointwise<f16>, reduce_pointwise<bf16>},
    {reduce_rest<float>, reduce_rest<f16>, reduce_rest<bf16>},
};

}  // namespace liteseg::LITESEG_ISA
