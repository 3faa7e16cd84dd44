// inverted_residual - MobileNetV2's block with folded weights: expand, depthwise and project in one pass over rows.
// Replaces: conv2d(1x1), activation, conv2d(groups), activation, conv2d(1x1), add (neither wide map is ever stored)
// Shapes:   x [N, C, H, W], expand [hidden, C, 1, 1] or none, depthwise [hidden, 1, kh, kw], project [Co, hidden, 1, 1]
//           -> out [N, Co, Ho, Wo], padding dilation * (k - 1) / 2
// Traffic:  minimum (N*C*H*W + N*Co*Ho*Wo) * sizeof(T) + weights; eager adds 2*N*hidden*(H*W + Ho*Wo)*sizeof(T) and
//           more for the activations
// Bound:    arithmetic, once the wide rows stay in the second level of cache
// Layout:   a ring keeps the rows of the expanded map that the taps of a tile of output pixels reach; each is computed
//           once, apart from the rows that two threads share. Full-width rows: strips lose more to their halo than they
//           gain. The missing rows of a tile are expanded together, so narrow maps read their weights once for several
//           rows. The ring's left and right columns stay zero, and rows outside of the image are left out, so the zero
//           padding comes after the biased expansion
// Numerics: fp32 multiply-adds in one fixed order per output, whatever the tiling and the number of threads
// Limits:   float32, float16, bfloat16; half types are widened on load, the hidden maps are fp32
#include "engine/kernels/inverted_residual.h"

#include "engine/blocks/depthwise.h"
#include "engine/blocks/output.h"
#include "engine/blocks/rows.h"
#include "engine/blocks/smooth.h"

namespace liteseg::LITESEG_ISA {
namespace {

using cpu::InvertedResidualArgs;

Image image_of(const InvertedResidualArgs& g) {
  return {g.x, g.xs, g.c, g.h, g.w};
}

struct Scratch {
  ScratchLayout layout;
  int64_t ldh;    // floats of one hidden pixel
  int64_t pad;    // zero columns on either side of a ring row
  int64_t slots;  // rows of the ring
  int64_t a, sums, rows, taps, tags, ring, source, missing;

  explicit Scratch(const InvertedResidualArgs& g) {
    ldh = div_up(g.hidden, Vec::width) * Vec::width;
    // with a wide dilation the zero columns would cost more than testing each tap's range, so there are none then
    pad = g.expand != nullptr && g.dw == 1 ? g.pw : 0;
    const int64_t span = min_i(g.oh, div_up(g.tile - 1, g.ow) + 1);
    slots = min_i(g.h, (span - 1) * g.sh + (g.kh - 1) * g.dh + 1);
    a = layout.take<float>(g.tile * ldh);
    sums = layout.take<float>(g.tile * finish_stride(g.co));
    rows = layout.take<void*>(g.kh);
    taps = layout.take<int64_t>(g.kh);
    tags = layout.take<int64_t>(slots);
    missing = layout.take<int64_t>(slots);
    if (g.expand != nullptr) {
      ring = layout.take<float>(slots * ring_row(g));
      source = layout.take<float>(slots * g.w * g.c);
    } else {
      ring = layout.take<float>(image_of(g).dense_channels() ? 0 : slots * g.w * g.c);
      source = 0;
    }
  }
  int64_t ring_row(const InvertedResidualArgs& g) const {
    return (g.w + 2 * pad) * ldh;
  }
};

// rows of the expanded map
template <typename T>
struct ExpandedRows {
  using Element = float;
  const InvertedResidualArgs& g;
  const Scratch& s;
  const Image& image;
  int64_t* tags;
  int64_t* missing;
  float* ring;
  float* converted;  // [slots][W][C], for inputs that the product cannot read in place

  int64_t pixel_stride() const {
    return s.ldh;
  }
  float* slot(int64_t y) const {
    return ring + (y % s.slots) * s.ring_row(g);
  }
  const float* row(int64_t, int64_t y) const {
    return slot(y);
  }
  // expands what the output rows [first, last] need and the ring does not hold
  void prepare(int64_t n, int64_t first, int64_t last) {
    int64_t count = 0;
    for (int64_t oy = first; oy <= last; ++oy) {
      for (int64_t i = 0; i < g.kh; ++i) {
        const int64_t y = oy * g.sh - g.ph + i * g.dh;
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
    const Epilogue<float> epilogue{nullptr, 0, plain_activation(g.activation), g.slope};
    for (int64_t column = 0; column < g.hidden; column += kPanel) {
      for (int64_t r = 0; r < count; ++r) {
        const float* a = in_place ? image.row<float>(n, missing[r]) : converted + r * g.w * g.c;
        float* wide = slot(missing[r]) + s.pad * s.ldh;
        gemm_columns<float>(column, g.w, g.hidden, g.c, a, lda, g.expand, g.expand_bias, wide, s.ldh, epilogue);
        smooth_pixels(wide + column, g.w, min_i(kPanel, g.hidden - column), s.ldh, g.activation);
      }
    }
  }
};

template <typename Rows>
void prepare(Rows&, int64_t, int64_t, int64_t) {}
template <typename T>
void prepare(ExpandedRows<T>& rows, int64_t n, int64_t first, int64_t last) {
  rows.prepare(n, first, last);
}

template <typename T, typename Rows>
void run_tiles(const InvertedResidualArgs& g, int64_t begin, int64_t end, Rows source, const Scratch& s,
               char* scratch) {
  using Element = typename Rows::Element;
  float* a = at_offset<float>(scratch, s.a);
  const Element** rows = at_offset<const Element*>(scratch, s.rows);
  int64_t* taps = at_offset<int64_t>(scratch, s.taps);
  const DepthwiseRow geometry{g.hidden,
                              g.w + 2 * s.pad,
                              g.kh,
                              g.kw,
                              g.sw,
                              g.pw - s.pad,
                              g.dw,
                              source.pixel_stride(),
                              g.depthwise_bias,
                              plain_activation(g.activation),
                              g.slope};
  const Output<T> out{static_cast<T*>(g.out),
                      g.os,
                      g.residual ? static_cast<const T*>(g.x) : nullptr,
                      g.xs,
                      g.co,
                      g.oh,
                      g.ow,
                      plain_activation(g.out_activation),
                      g.out_slope};
  const int64_t plane = g.oh * g.ow;
  const int64_t tiles = div_up(plane, g.tile);
  for (int64_t t = begin; t < end; ++t) {
    const int64_t image = t / tiles;
    const int64_t p0 = image * plane + (t - image * tiles) * g.tile;
    const int64_t p1 = min_i(p0 + g.tile, (image + 1) * plane);
    prepare(source, image, (p0 - image * plane) / g.ow, (p1 - 1 - image * plane) / g.ow);
    for_each_row(p0, p1, g.oh, g.ow, [&](int64_t n, int64_t oy, int64_t ox, int64_t count, int64_t offset) {
      int64_t row_count = 0;
      for (int64_t i = 0; i < g.kh; ++i) {
        const int64_t y = oy * g.sh - g.ph + i * g.dh;
        if (y >= 0 && y < g.h) {
          rows[row_count] = source.row(n, y);
          taps[row_count++] = i;
        }
      }
      depthwise_run(rows, taps, row_count, geometry, g.depthwise, ox, ox + count, a + offset * s.ldh, s.ldh);
      smooth_pixels(a + offset * s.ldh, count, g.hidden, s.ldh, g.activation);
    });
    project_tile(out, p0, p1, a, s.ldh, g.hidden, g.project, g.project_bias, at_offset<float>(scratch, s.sums));
    if constexpr (sizeof(T) == sizeof(float)) {
      smooth_pixels(out.data + p0 * g.os.w, p1 - p0, g.co, g.os.w, g.out_activation);
    }
  }
}

template <typename T>
void run(const InvertedResidualArgs& g, int64_t begin, int64_t end, char* scratch, bool fresh) {
  const Scratch s(g);
  const Image image = image_of(g);
  int64_t* tags = at_offset<int64_t>(scratch, s.tags);
  float* ring = at_offset<float>(scratch, s.ring);
  if (fresh) {
    clear_tags(tags, s.slots);
  }
  if (g.expand != nullptr) {
    for (int64_t r = 0; r < s.slots && fresh; ++r) {
      float* row = ring + r * s.ring_row(g);
      for (int64_t i = 0; i < s.pad * s.ldh; ++i) {
        row[i] = 0.0f;
        row[(s.pad + g.w) * s.ldh + i] = 0.0f;
      }
    }
    run_tiles<T>(g, begin, end,
                 ExpandedRows<T>{g, s, image, tags, at_offset<int64_t>(scratch, s.missing), ring,
                                 at_offset<float>(scratch, s.source)},
                 s, scratch);
  } else if (image.dense_channels()) {
    run_tiles<T>(g, begin, end, DirectRows<T>{image}, s, scratch);
  } else {
    run_tiles<T>(g, begin, end, RingRows<T>{image, s.slots, tags, ring}, s, scratch);
  }
}

int64_t scratch_bytes(const InvertedResidualArgs& args) {
  return Scratch(args).layout.bytes();
}

}  // namespace

const cpu::InvertedResidualTable inverted_residual_table = {
    scratch_bytes,
    {run<float>, run<f16>, run<bf16>},
};

const cpu::InvertedResidualTable inverted_residual_float_table = {
    scratch_bytes,
    {run<float>},
};

}  // namespace liteseg::LITESEG_ISA
