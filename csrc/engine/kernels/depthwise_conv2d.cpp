// depthwise_conv2d - one k x k filter a channel, forward and backward, for training.
// Replaces: conv2d(groups=C) and its backward
// Shapes:   x [N, C, H, W] at any strides, weight [C, 1, kh, kw] -> out [N, C, Ho, Wo] in x's format
// Traffic:  minimum, forward (N*C*H*W + N*C*Ho*Wo) * sizeof(T); backward reads x and grad and writes x's gradient, in
//           one pass: the rows of grad that an input row reads are still in cache from the weight's sums
// Bound:    memory
// Layout:   row by row; rows that do not have their channels innermost are transposed into a ring first
// Numerics: fp32. The weight's gradient is summed within chunks of rows that depend on the shapes alone, then chunk by
//           chunk; x's gradient gathers
// Limits:   float32, float16, bfloat16
#include "engine/kernels/depthwise_conv2d.h"

#include "engine/blocks/depthwise.h"
#include "engine/blocks/depthwise_backward.h"
#include "engine/blocks/output.h"
#include "engine/blocks/rows.h"

namespace liteseg::LITESEG_ISA {
namespace {

using cpu::DepthwiseConvArgs;

Image input_of(const DepthwiseConvArgs& g) {
  return {g.x, g.xs, g.c, g.h, g.w};
}
Image grad_of(const DepthwiseConvArgs& g) {
  return {g.grad, g.gs, g.c, g.oh, g.ow};
}
bool direct(const DepthwiseConvArgs& g) {
  return input_of(g).dense_channels() && (g.grad == nullptr || grad_of(g).dense_channels());
}

struct Scratch {
  ScratchLayout layout;
  int64_t x_slots, grad_slots;
  int64_t line, rows, taps, places, weights, x_tags, x_ring, grad_tags, grad_ring;

  explicit Scratch(const DepthwiseConvArgs& g) {
    x_slots = direct(g) ? 0 : min_i(g.h, (g.kh - 1) * g.dh + 1);
    grad_slots = direct(g) || g.grad == nullptr ? 0 : min_i(g.oh, (g.kh - 1) * g.dh / g.sh + 2);
    line = layout.take<float>((g.grad == nullptr ? g.ow : g.w) * g.channel_stride);
    rows = layout.take<void*>(g.kh);
    taps = layout.take<int64_t>(g.kh);
    places = layout.take<void*>(g.kh * g.kw);
    weights = layout.take<void*>(g.kh * g.kw);
    x_tags = layout.take<int64_t>(x_slots);
    x_ring = layout.take<float>(x_slots * g.w * g.c);
    grad_tags = layout.take<int64_t>(grad_slots);
    grad_ring = layout.take<float>(grad_slots * g.ow * g.c);
  }
};

// the rows of x that output row oy reads, and which taps they are
template <typename Rows>
int64_t rows_read(const DepthwiseConvArgs& g, Rows& source, int64_t n, int64_t oy, const typename Rows::Element** rows,
                  int64_t* taps) {
  int64_t count = 0;
  for (int64_t i = 0; i < g.kh; ++i) {
    const int64_t y = oy * g.sh - g.ph + i * g.dh;
    if (y >= 0 && y < g.h) {
      rows[count] = source.row(n, y);
      taps[count++] = i;
    }
  }
  return count;
}

// where a row of results is computed: in its place if it has the right form, else in `line`
LITESEG_INLINE float* own_row(float* row, const cpu::Strides4& s, float* line, int64_t* stride) {
  if (s.c == 1) {
    *stride = s.w;
    return row;
  }
  return line;
}
template <typename T>
LITESEG_INLINE float* own_row(T*, const cpu::Strides4&, float* line, int64_t*) {
  return line;
}

template <typename T, typename Rows>
void forward_from(const DepthwiseConvArgs& g, Rows source, const Scratch& s, char* scratch, int64_t begin,
                  int64_t end) {
  const typename Rows::Element** rows = at_offset<const typename Rows::Element*>(scratch, s.rows);
  int64_t* taps = at_offset<int64_t>(scratch, s.taps);
  float* line = at_offset<float>(scratch, s.line);
  const DepthwiseRow geometry{g.c, g.w, g.kh, g.kw, g.sw, g.pw, g.dw, source.pixel_stride(), nullptr, cpu::kNone, 0.0f};
  const Output<T> out{static_cast<T*>(g.out), g.os, nullptr, {}, g.c, g.oh, g.ow, cpu::kNone, 0.0f};
  for (int64_t row = begin; row < end; ++row) {
    const int64_t n = row / g.oh;
    const int64_t oy = row - n * g.oh;
    const int64_t count = rows_read(g, source, n, oy, rows, taps);
    int64_t stride = g.channel_stride;
    float* to = own_row(out.data + n * g.os.n + oy * g.os.h, g.os, line, &stride);
    depthwise_run(rows, taps, count, geometry, g.weight, 0, g.ow, to, stride);
    if (to == line) {
      finish_row(out, line, stride, n, oy, 0, g.ow);
    }
  }
}

template <typename T>
void forward_rows(const DepthwiseConvArgs& g, int64_t begin, int64_t end, char* scratch) {
  const Scratch s(g);
  const Image x = input_of(g);
  if (x.dense_channels()) {
    forward_from<T>(g, DirectRows<T>{x}, s, scratch, begin, end);
  } else {
    int64_t* tags = at_offset<int64_t>(scratch, s.x_tags);
    clear_tags(tags, s.x_slots);
    forward_from<T>(g, RingRows<T>{x, s.x_slots, tags, at_offset<float>(scratch, s.x_ring)}, s, scratch, begin, end);
  }
}

// one row of x's gradient
template <typename T, typename Rows>
void input_row(const DepthwiseConvArgs& g, Rows& grad, const Scratch& s, char* scratch, int64_t n, int64_t y) {
  using Element = typename Rows::Element;
  const Element** rows = at_offset<const Element*>(scratch, s.rows);
  int64_t* taps = at_offset<int64_t>(scratch, s.taps);
  float* line = at_offset<float>(scratch, s.line);
  int64_t count = 0;
  for (int64_t i = 0; i < g.kh; ++i) {
    const int64_t position = y + g.ph - i * g.dh;
    if (position >= 0 && position % g.sh == 0 && position / g.sh < g.oh) {
      rows[count] = grad.row(n, position / g.sh);
      taps[count++] = g.sw == 1 ? g.kh - 1 - i : i;
    }
  }
  const Output<T> out{static_cast<T*>(g.out), g.os, nullptr, {}, g.c, g.h, g.w, cpu::kNone, 0.0f};
  int64_t stride = g.channel_stride;
  float* to = own_row(out.data + n * g.os.n + y * g.os.h, g.os, line, &stride);
  if (g.sw == 1) {
    // without steps along x the gradient is itself a depthwise convolution, with the taps in reverse
    const DepthwiseRow geometry{g.c,     g.ow,       g.kh, g.kw, 1, g.dw * (g.kw - 1) - g.pw, g.dw, grad.pixel_stride(),
                                nullptr, cpu::kNone, 0.0f};
    depthwise_run(rows, taps, count, geometry, g.flipped, 0, g.w, to, stride);
  } else {
    gather_strided(DepthwiseTaps{g.c, g.w, g.ow, g.kh, g.kw, g.sw, g.pw, g.dw}, rows, taps, count, grad.pixel_stride(),
                   g.weight, at_offset<const Element*>(scratch, s.places), at_offset<const float*>(scratch, s.weights),
                   to, stride);
  }
  if (to == line) {
    finish_row(out, line, stride, n, y, 0, g.w);
  }
}

template <typename T, typename Rows>
void backward_from(const DepthwiseConvArgs& g, Rows x, Rows grad, const Scratch& s, char* scratch, int64_t chunk) {
  using Element = typename Rows::Element;
  const Element** rows = at_offset<const Element*>(scratch, s.rows);
  int64_t* taps = at_offset<int64_t>(scratch, s.taps);
  const int64_t total = g.n * g.oh;
  const int64_t sums_size = g.kh * g.kw * g.channel_stride;
  float* sums = g.sums == nullptr ? nullptr : g.sums + chunk * sums_size;
  for (int64_t i = 0; sums != nullptr && i < sums_size; ++i) {
    sums[i] = 0.0f;
  }
  for (int64_t row = total * chunk / g.chunks; row < total * (chunk + 1) / g.chunks; ++row) {
    const int64_t n = row / g.oh;
    const int64_t oy = row - n * g.oh;
    if (sums != nullptr) {
      const int64_t count = rows_read(g, x, n, oy, rows, taps);
      add_depthwise(DepthwiseTaps{g.c, g.w, g.ow, g.kh, g.kw, g.sw, g.pw, g.dw}, rows, taps, count, x.pixel_stride(), 0,
                    g.ow, grad.row(n, oy), grad.pixel_stride(), sums, g.channel_stride);
    }
    if (g.out != nullptr) {
      // every row of x belongs to one row of the output
      const int64_t last = oy + 1 == g.oh ? g.h : min_i(g.h, (oy + 1) * g.sh);
      for (int64_t y = oy * g.sh; y < last; ++y) {
        input_row<T>(g, grad, s, scratch, n, y);
      }
    }
  }
}

template <typename T>
void backward_chunks(const DepthwiseConvArgs& g, int64_t begin, int64_t end, char* scratch) {
  const Scratch s(g);
  const Image x = input_of(g);
  const Image grad = grad_of(g);
  int64_t* x_tags = at_offset<int64_t>(scratch, s.x_tags);
  int64_t* grad_tags = at_offset<int64_t>(scratch, s.grad_tags);
  clear_tags(x_tags, s.x_slots);
  clear_tags(grad_tags, s.grad_slots);
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    if (direct(g)) {
      backward_from<T>(g, DirectRows<T>{x}, DirectRows<T>{grad}, s, scratch, chunk);
    } else {
      backward_from<T>(g, RingRows<T>{x, s.x_slots, x_tags, at_offset<float>(scratch, s.x_ring)},
                       RingRows<T>{grad, s.grad_slots, grad_tags, at_offset<float>(scratch, s.grad_ring)}, s, scratch,
                       chunk);
    }
  }
}

template <typename T>
void reduce_weight(const DepthwiseConvArgs& g) {
  reduce_depthwise(g.sums, g.chunks, g.kh * g.kw, g.c, g.channel_stride, static_cast<T*>(g.grad_weight));
}

int64_t scratch_bytes(const DepthwiseConvArgs& args) {
  return Scratch(args).layout.bytes();
}

}  // namespace

const cpu::DepthwiseConvTable depthwise_conv2d_table = {
    Vec::width,
    scratch_bytes,
    {forward_rows<float>, forward_rows<f16>, forward_rows<bf16>},
    {backward_chunks<float>, backward_chunks<f16>, backward_chunks<bf16>},
    {reduce_weight<float>, reduce_weight<f16>, reduce_weight<bf16>},
};

}  // namespace liteseg::LITESEG_ISA
