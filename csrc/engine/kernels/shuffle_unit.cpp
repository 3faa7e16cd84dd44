// shuffle_unit - ShuffleNet v1's unit with folded weights: compress, shuffle, depthwise, expand, combine in one pass.
// Replaces: conv2d(1x1, groups), relu, channel_shuffle, conv2d(3x3, groups=b), conv2d(1x1, groups), add or avg_pool2d
//           and cat, relu (no narrow map is ever stored)
// Shapes:   x [N, C, H, W], compress [b, C / g1, 1, 1], depthwise [b, 1, 3, 3], expand [Cb, b / g, 1, 1]
//           -> out [N, C, H, W], or [N, C + Cb, Ho, Wo] with the pooled x in front; padding = dilation
// Traffic:  minimum (N*C*H*W + N*Co*Ho*Wo) * sizeof(T) + weights; eager adds 2*N*b*(2*H*W + Ho*Wo) * sizeof(T) and more
//           for combining and the activations
// Bound:    memory where the groups are many: C*b*(1/g1 + 1/g) multiply-adds a pixel against 2*C values moved
// Layout:   as inverted_residual: a ring keeps the compressed rows that the taps of a tile of output pixels reach, each
//           computed once apart from the rows that two threads share. The ring's left and right columns stay zero, and
//           rows outside of the image are left out, so the zero padding comes after the biased compression. A small
//           compressed map may be stored as a whole instead: then no row is computed twice. The shuffle moves nothing:
//           the expansion reads its inputs through an index. The shortcut of the pooled form is a depthwise convolution
//           of x with ninths
// Numerics: fp32 multiply-adds in one fixed order per output, whatever the tiling and the number of threads
// Limits:   float32, float16, bfloat16; half types are widened on load, the narrow maps are fp32
#include "engine/kernels/shuffle_unit.h"

#include "engine/blocks/depthwise.h"
#include "engine/blocks/grouped.h"
#include "engine/blocks/output.h"
#include "engine/blocks/rows.h"

namespace liteseg::LITESEG_ISA {
namespace {

using cpu::GroupedPointwise;
using cpu::ShuffleUnitArgs;

constexpr int64_t kTaps = 3;

Image image_of(const ShuffleUnitArgs& g) {
  return {g.x, g.xs, g.c, g.h, g.w};
}

struct Scratch {
  ScratchLayout layout;
  int64_t ldb;           // floats of one compressed pixel
  int64_t pad;           // zero columns on either side of a ring row
  int64_t slots;         // rows of the ring
  int64_t pooled_slots;  // rows of x kept for the average
  int64_t a, sums, tags, missing, ring, source, pooled, pooled_tags, pooled_ring;

  explicit Scratch(const ShuffleUnitArgs& g) {
    ldb = div_up(g.bottleneck, Vec::width) * Vec::width;
    // with a wide dilation the zero columns would cost more than testing each tap's range, so there are none then
    pad = g.dw == 1 && !g.stores ? 1 : 0;
    const int64_t span = min_i(g.oh, div_up(g.tile - 1, g.ow) + 1);
    slots = g.stores ? 0 : min_i(g.h, (span - 1) * g.sh + (kTaps - 1) * g.dh + 1);
    pooled_slots = g.average == nullptr || image_of(g).dense_channels() ? 0 : min_i(g.h, kTaps);
    a = layout.take<float>(g.tile * ldb);
    sums = layout.take<float>(g.tile * finish_stride(g.branch));
    tags = layout.take<int64_t>(slots);
    missing = layout.take<int64_t>(slots);
    ring = layout.take<float>(slots * ring_row(g));
    source = layout.take<float>(slots * g.w * g.c);
    pooled = layout.take<float>(g.average == nullptr ? 0 : g.tile * finish_stride(g.c));
    pooled_tags = layout.take<int64_t>(pooled_slots);
    pooled_ring = layout.take<float>(pooled_slots * g.w * g.c);
  }
  int64_t ring_row(const ShuffleUnitArgs& g) const {
    return (g.w + 2 * pad) * ldb;
  }
};

// one panel of the compressed channels of `count` pixels
void compress_columns(const GroupedPointwise& p, int64_t group, int64_t column, int64_t count, const float* a,
                      int64_t lda, float* out, int64_t ldo) {
  grouped_columns<cpu::kRelu, false, float>(p, group, column, count, a + group * p.in, lda, out, ldo, nullptr, 0,
                                            InOrder{});
}

// rows of the compressed map that is stored as a whole
struct StoredRows {
  using Element = float;
  const ShuffleUnitArgs& g;
  const Scratch& s;

  int64_t pixel_stride() const {
    return s.ldb;
  }
  float* row(int64_t n, int64_t y) const {
    return g.compressed + (n * g.h + y) * g.w * s.ldb;
  }
  void prepare(int64_t, int64_t, int64_t) const {}
};

// rows of the compressed map in a ring
template <typename T>
struct CompressedRows {
  using Element = float;
  const ShuffleUnitArgs& g;
  const Scratch& s;
  const Image& image;
  int64_t* tags;
  int64_t* missing;
  float* ring;
  float* converted;  // [slots][W][C], for inputs that the product cannot read in place

  int64_t pixel_stride() const {
    return s.ldb;
  }
  float* row(int64_t, int64_t y) const {
    return ring + (y % s.slots) * s.ring_row(g);
  }
  // compresses what the output rows [first, last] need and the ring does not hold
  void prepare(int64_t n, int64_t first, int64_t last) {
    int64_t count = 0;
    for (int64_t oy = first; oy <= last; ++oy) {
      for (int64_t i = 0; i < kTaps; ++i) {
        const int64_t y = oy * g.sh + (i - 1) * g.dh;
        if (y >= 0 && y < g.h && tags[y % s.slots] != n * g.h + y) {
          tags[y % s.slots] = n * g.h + y;
          missing[count++] = y;
        }
      }
    }
    const bool in_place = sizeof(T) == sizeof(float) && image.dense_channels();
    const int64_t lda = in_place ? image.strides.w : g.c;
    for (int64_t r = 0; r < count && !in_place; ++r) {
      transpose_copy(image.row<T>(n, missing[r]), image.strides.c, image.strides.w, g.c, g.w, converted + r * g.w * g.c,
                     g.c);
    }
    for_each_panel(g.compress, [&](int64_t group, int64_t column) {
      for (int64_t r = 0; r < count; ++r) {
        const float* a = in_place ? image.row<float>(n, missing[r]) : converted + r * g.w * g.c;
        compress_columns(g.compress, group, column, g.w, a, lda, row(n, missing[r]) + s.pad * s.ldb, s.ldb);
      }
    });
  }
};

// a 3x3 depthwise convolution of output pixels [p0, p1) of the flattened N x Ho x Wo -> out [p1 - p0][ldo]
template <typename Rows>
void filter_tile(const ShuffleUnitArgs& g, int64_t p0, int64_t p1, Rows& source, const DepthwiseRow& geometry,
                 int64_t dilation, const float* weight, float* out, int64_t ldo) {
  for_each_row(p0, p1, g.oh, g.ow, [&](int64_t n, int64_t oy, int64_t ox, int64_t count, int64_t offset) {
    const typename Rows::Element* rows[kTaps];
    int64_t taps[kTaps];
    int64_t row_count = 0;
    for (int64_t i = 0; i < kTaps; ++i) {
      const int64_t y = oy * g.sh + (i - 1) * dilation;
      if (y >= 0 && y < g.h) {
        rows[row_count] = source.row(n, y);
        taps[row_count++] = i;
      }
    }
    depthwise_run(rows, taps, row_count, geometry, weight, ox, ox + count, out + offset * ldo, ldo);
  });
}

template <typename T>
void finish_tile(const Output<T>& o, int64_t p0, int64_t p1, const float* sums, int64_t lds) {
  for_each_row(p0, p1, o.h, o.w, [&](int64_t n, int64_t y, int64_t x, int64_t count, int64_t offset) {
    finish_row(o, sums + offset * lds, lds, n, y, x, count);
  });
}

// a [p1 - p0][lda] expanded -> output pixels [p0, p1) of the branch
template <typename T>
void expand_tile(const ShuffleUnitArgs& g, const Output<T>& o, int64_t p0, int64_t p1, const float* a, int64_t lda,
                 float* sums) {
  const GroupedPointwise& p = g.expand;
  const auto order = [&](int64_t group) { return ByIndex{g.shuffle + group * p.in}; };
  if (!o.direct()) {
    const int64_t lds = finish_stride(o.c);
    for_each_panel(p, [&](int64_t group, int64_t column) {
      grouped_columns<cpu::kNone, false, float>(p, group, column, p1 - p0, a, lda, sums, lds, nullptr, 0, order(group));
    });
    finish_tile(o, p0, p1, sums, lds);
    return;
  }
  T* out = o.data + p0 * o.strides.w;
  const int64_t ldr = o.residual_strides.w;
  const T* residual = o.residual == nullptr ? nullptr : o.residual + p0 * ldr;
  for_each_panel(p, [&](int64_t group, int64_t column) {
    if (residual == nullptr) {
      grouped_columns<cpu::kRelu, false, T>(p, group, column, p1 - p0, a, lda, out, o.strides.w, residual, ldr,
                                            order(group));
    } else {
      grouped_columns<cpu::kRelu, true, T>(p, group, column, p1 - p0, a, lda, out, o.strides.w, residual, ldr,
                                           order(group));
    }
  });
}

// the average of output pixels [p0, p1) -> channels [0, C) of the output
template <typename T, typename Rows>
void pool_tile(const ShuffleUnitArgs& g, int64_t p0, int64_t p1, Rows& source, float* pooled) {
  const DepthwiseRow geometry{g.c, g.w, kTaps, kTaps, g.sw, 1, 1, source.pixel_stride(), nullptr, cpu::kNone, 0.0f};
  const int64_t ldp = finish_stride(g.c);
  filter_tile(g, p0, p1, source, geometry, 1, g.average, pooled, ldp);
  finish_tile<T>({static_cast<T*>(g.out), g.os, nullptr, {}, g.c, g.oh, g.ow, cpu::kRelu, 0.0f}, p0, p1, pooled, ldp);
}

template <typename T, typename Rows>
void run_tiles(const ShuffleUnitArgs& g, int64_t begin, int64_t end, Rows& compressed, const Image& image,
               const Scratch& s, char* scratch, bool fresh) {
  float* a = at_offset<float>(scratch, s.a);
  float* sums = at_offset<float>(scratch, s.sums);
  float* pooled = at_offset<float>(scratch, s.pooled);
  DirectRows<T> direct{image};
  RingRows<T> transposed{image, s.pooled_slots, at_offset<int64_t>(scratch, s.pooled_tags),
                         at_offset<float>(scratch, s.pooled_ring)};
  if (fresh) {
    clear_tags(transposed.tags, s.pooled_slots);
  }
  const DepthwiseRow geometry{
      g.bottleneck,     g.w + 2 * s.pad, kTaps, kTaps, g.sw, g.dw - s.pad, g.dw, compressed.pixel_stride(),
      g.depthwise_bias, cpu::kNone,      0.0f};
  const bool concat = g.average != nullptr;
  const Output<T> branch{static_cast<T*>(g.out) + (concat ? g.c * g.os.c : 0),
                         g.os,
                         concat ? nullptr : static_cast<const T*>(g.x),
                         g.xs,
                         g.branch,
                         g.oh,
                         g.ow,
                         cpu::kRelu,
                         0.0f};
  const int64_t plane = g.oh * g.ow;
  const int64_t tiles = div_up(plane, g.tile);
  for (int64_t t = begin; t < end; ++t) {
    const int64_t n = t / tiles;
    const int64_t p0 = n * plane + (t - n * tiles) * g.tile;
    const int64_t p1 = min_i(p0 + g.tile, (n + 1) * plane);
    compressed.prepare(n, (p0 - n * plane) / g.ow, (p1 - 1 - n * plane) / g.ow);
    filter_tile(g, p0, p1, compressed, geometry, g.dh, g.depthwise, a, s.ldb);
    expand_tile(g, branch, p0, p1, a, s.ldb, sums);
    if (concat && image.dense_channels()) {
      pool_tile<T>(g, p0, p1, direct, pooled);
    } else if (concat) {
      pool_tile<T>(g, p0, p1, transposed, pooled);
    }
  }
}

template <typename T>
void run(const ShuffleUnitArgs& g, int64_t begin, int64_t end, char* scratch, bool fresh) {
  const Scratch s(g);
  const Image image = image_of(g);
  if (g.stores) {
    StoredRows stored{g, s};
    run_tiles<T>(g, begin, end, stored, image, s, scratch, fresh);
    return;
  }
  CompressedRows<T> compressed{g,
                               s,
                               image,
                               at_offset<int64_t>(scratch, s.tags),
                               at_offset<int64_t>(scratch, s.missing),
                               at_offset<float>(scratch, s.ring),
                               at_offset<float>(scratch, s.source)};
  if (fresh) {
    clear_tags(compressed.tags, s.slots);
    for (int64_t r = 0; r < s.slots; ++r) {
      float* row = compressed.row(0, r);
      for (int64_t i = 0; i < s.pad * s.ldb; ++i) {
        row[i] = 0.0f;
        row[(s.pad + g.w) * s.ldb + i] = 0.0f;
      }
    }
  }
  run_tiles<T>(g, begin, end, compressed, image, s, scratch, fresh);
}

void compress(const ShuffleUnitArgs& g, int64_t begin, int64_t end) {
  const Scratch s(g);
  const int64_t p0 = begin * g.compress_tile;
  const int64_t p1 = min_i(end * g.compress_tile, g.n * g.h * g.w);
  const float* x = static_cast<const float*>(g.x) + p0 * g.c;
  for_each_panel(g.compress, [&](int64_t group, int64_t column) {
    compress_columns(g.compress, group, column, p1 - p0, x, g.c, g.compressed + p0 * s.ldb, s.ldb);
  });
}

int64_t scratch_bytes(const ShuffleUnitArgs& args) {
  return Scratch(args).layout.bytes();
}

}  // namespace

const cpu::ShuffleUnitTable shuffle_unit_table = {
    scratch_bytes,
    compress,
    {run<float>, run<f16>, run<bf16>},
};

const cpu::ShuffleUnitTable shuffle_unit_float_table = {
    scratch_bytes,
    compress,
    {run<float>},
};

}  // namespace liteseg::LITESEG_ISA
