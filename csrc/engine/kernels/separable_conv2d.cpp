// separable_conv2d - depthwise k x k convolution, pointwise convolution, bias, residual and activation in one pass.
// Replaces: conv2d(groups=C), conv2d(1x1), add, activation (the depthwise map is never stored)
// Shapes:   x [N, C, H, W], depthwise [C, 1, kh, kw], pointwise [Co, C, 1, 1] -> out [N, Co, Ho, Wo]
// Traffic:  minimum (N*C*H*W + N*Co*Ho*Wo (twice with a residual)) * sizeof(T) + weights; eager adds
//           2*N*C*Ho*Wo*sizeof(T)
// Bound:    arithmetic for Co >= 32 or so (2*C*Co flops a pixel against kh*kw*2*C of the depthwise part)
// Layout:   the inner loops run over channels. x with dense channels (channels_last and its slices) is read in place;
//           any other x is transposed row by row into a ring of the rows that the taps reach. NCHW outputs are
//           transposed from a tile in cache
// Numerics: fp32 multiply-adds in one fixed order per output, whatever the tiling and the number of threads
// Limits:   float32, float16, bfloat16; half types are widened on load
#include "engine/kernels/separable_conv2d.h"

#include "engine/blocks/depthwise.h"
#include "engine/blocks/output.h"
#include "engine/blocks/rows.h"

namespace liteseg::LITESEG_ISA {
namespace {

using cpu::SeparableConvArgs;

Image image_of(const SeparableConvArgs& g) {
  return {g.x, g.xs, g.c, g.h, g.w};
}

struct Scratch {
  ScratchLayout layout;
  int64_t lda, slots;
  int64_t a, sums, rows, taps, tags, ring;

  explicit Scratch(const SeparableConvArgs& g) {
    lda = div_up(g.c, Vec::width) * Vec::width;
    // as many slots as rows are read together, so that none of them overwrites another
    slots = image_of(g).dense_channels() ? 0 : min_i(g.h, (g.kh - 1) * g.dh + 1);
    a = layout.take<float>(g.tile * lda);
    sums = layout.take<float>(g.tile * finish_stride(g.co));
    rows = layout.take<void*>(g.kh);
    taps = layout.take<int64_t>(g.kh);
    tags = layout.take<int64_t>(slots);
    ring = layout.take<float>(slots * g.w * g.c);
  }
};

template <typename T, typename Rows>
void run_tiles(const SeparableConvArgs& g, int64_t begin, int64_t end, Rows source, const Scratch& s, char* scratch) {
  using Element = typename Rows::Element;
  float* a = at_offset<float>(scratch, s.a);
  const Element** rows = at_offset<const Element*>(scratch, s.rows);
  int64_t* taps = at_offset<int64_t>(scratch, s.taps);
  const DepthwiseRow geometry{g.c, g.w, g.kh, g.kw, g.sw, g.pw, g.dw, source.pixel_stride(), nullptr, cpu::kNone, 0.0f};
  const Output<T> out{static_cast<T*>(g.out), g.os,   static_cast<const T*>(g.residual), g.rs, g.co, g.oh, g.ow,
                      g.activation,           g.slope};
  for (int64_t t = begin; t < end; ++t) {
    const int64_t p0 = t * g.tile;
    const int64_t p1 = min_i(p0 + g.tile, g.n * g.oh * g.ow);
    for_each_row(p0, p1, g.oh, g.ow, [&](int64_t n, int64_t oy, int64_t ox, int64_t count, int64_t offset) {
      int64_t row_count = 0;
      for (int64_t i = 0; i < g.kh; ++i) {
        const int64_t y = oy * g.sh - g.ph + i * g.dh;
        if (y >= 0 && y < g.h) {
          rows[row_count] = source.row(n, y);
          taps[row_count++] = i;
        }
      }
      depthwise_run(rows, taps, row_count, geometry, g.depthwise, ox, ox + count, a + offset * s.lda, s.lda);
    });
    project_tile(out, p0, p1, a, s.lda, g.c, g.pointwise, g.bias, at_offset<float>(scratch, s.sums));
  }
}

template <typename T>
void run(const SeparableConvArgs& g, int64_t begin, int64_t end, char* scratch) {
  const Scratch s(g);
  const Image image = image_of(g);
  if (image.dense_channels()) {
    run_tiles<T>(g, begin, end, DirectRows<T>{image}, s, scratch);
  } else {
    int64_t* tags = at_offset<int64_t>(scratch, s.tags);
    clear_tags(tags, s.slots);
    run_tiles<T>(g, begin, end, RingRows<T>{image, s.slots, tags, at_offset<float>(scratch, s.ring)}, s, scratch);
  }
}

int64_t scratch_bytes(const SeparableConvArgs& args) {
  return Scratch(args).layout.bytes();
}

}  // namespace

const cpu::SeparableConvTable separable_conv2d_table = {
    scratch_bytes,
    {run<float>, run<f16>, run<bf16>},
};

}  // namespace liteseg::LITESEG_ISA
