// The decoder with its second convolution in bytes, which is most of its work; reads maps of bytes.
// Replaces: interpolate, cat, 2 x (conv2d(groups), conv2d(1x1), activation), conv2d(1x1); only the logits are stored
// Shapes:   x [N, h, w, c1], skip [N, oh, ow, c2] -> out [N, k, oh, ow]; padding 1, stride 1
// Traffic:  minimum N*c1*h*w*4 + N*c2*oh*ow + N*k*oh*ow*4
// Bound:    arithmetic
// Layout:   as kernels/decoder.cpp, lifting included, up to the first convolution's output; that is kept as bytes in a
//           ring of its own, for the second one
// Numerics: fp32, but for the second convolution: exact int32 sums, each scaled, rounded to uint8 and saturated
// Limits:   a second convolution with ReLU or ReLU6, behind one with an activation that is none below zero
#include "engine/kernels/int8/tables.h"

#include "engine/blocks/depthwise_int8.h"
#include "engine/kernels/decoder_parts.h"

namespace liteseg::LITESEG_ISA {
namespace {

struct ByteProducts {
  using Value = float;
  using Args = cpu::Int8DecoderArgs;
  static constexpr int64_t kTile = 8 * kProductRows;

  static LITESEG_INLINE const cpu::DecoderArgs& sums(const Args& args) {
    return args.sums;
  }
  static LITESEG_INLINE const float* x(const Args& args) {
    return args.sums.x;
  }
  static LITESEG_INLINE const uint8_t* skip(const Args& args) {
    return args.skip;
  }
  static LITESEG_INLINE int64_t pixel(int64_t c) {
    return c;
  }
  static LITESEG_INLINE int64_t skip_pixel(int64_t c) {
    return div_up(c, cpu::kBytePixel) * cpu::kBytePixel;
  }
  static LITESEG_INLINE int64_t rows(int64_t k) {
    return k;
  }
  static LITESEG_INLINE Vec load(const Args& args, const uint8_t* p, int64_t) {
    return mul(LITESEG_ISA::to_floats(add(widen_bytes(p), set1_int(-args.skip_grid.zero))), set1(args.skip_grid.scale));
  }
  static LITESEG_INLINE void to_floats(int64_t pixels, int64_t n, int64_t k, const float* a, int64_t lda,
                                       const float* panels, const float* bias, float* out, int64_t ldo,
                                       const float* residual, int activation) {
    gemm<float>(pixels, n, k, a, lda, panels, bias, out, ldo, {residual, ldo, activation, 0.0f});
  }
};

struct ByteScratch {
  Scratch<ByteProducts> floats;
  ScratchLayout layout;
  int64_t ldm, ldo;  // bytes of a pixel of the two convolutions' outputs
  int64_t row;
  int64_t ring, border, tags, a, b, values;

  explicit ByteScratch(const cpu::DecoderArgs& g) : floats(g) {
    layout = floats.layout;
    ldm = ByteProducts::skip_pixel(g.f1);
    ldo = ByteProducts::skip_pixel(g.f2);
    row = (g.ow + 2) * ldm;
    ring = layout.take<uint8_t>(kTaps * row);
    border = layout.take<uint8_t>(row);
    tags = layout.take<int64_t>(kTaps);
    a = layout.take<uint8_t>(ByteProducts::kTile * ldm);
    b = layout.take<uint8_t>(ByteProducts::kTile * ldo);
    values = layout.take<float>(ByteProducts::kTile * ldo);
  }
};

// pixels of numbers that are nowhere below zero
void to_bytes(const float* from, int64_t ldf, int64_t pixels, int64_t c, float scale, uint8_t* to, int64_t ldt) {
  const Vec inverse = set1(1.0f / scale);
  const Vec most = set1(255.0f);
  for (int64_t p = 0; p < pixels; ++p) {
    for (int64_t at = 0; at < c; at += kBytes) {
      Ints parts[4];
#pragma GCC unroll 4
      for (int64_t v = 0; v < 4; ++v) {
        const int64_t i = at + v * Vec::width;
        const Vec x = i < c ? load_partial(from + p * ldf + i, c - i) : zero();
        parts[v] = to_ints(minimum(maximum(mul(x, inverse), zero()), most));
      }
      store_bytes(to + p * ldt + at, in_order(pack(parts[0], parts[1], parts[2], parts[3])));
    }
  }
}

void run(const cpu::Int8DecoderArgs& args, int64_t begin, int64_t end, char* scratch, bool fresh) {
  const cpu::DecoderArgs& g = args.sums;
  const ByteScratch s(g);
  Rows<ByteProducts> source(args, s.floats, scratch, fresh);
  uint8_t* ring = at_offset<uint8_t>(scratch, s.ring);
  uint8_t* border = at_offset<uint8_t>(scratch, s.border);
  int64_t* tags = at_offset<int64_t>(scratch, s.tags);
  uint8_t* a = at_offset<uint8_t>(scratch, s.a);
  uint8_t* b = at_offset<uint8_t>(scratch, s.b);
  float* values = at_offset<float>(scratch, s.values);
  float* sums = at_offset<float>(scratch, s.floats.sums);
  if (fresh) {
    clear_tags(tags, kTaps);
    __builtin_memset(ring, 0, static_cast<size_t>(kTaps * s.row));
    __builtin_memset(border, 0, static_cast<size_t>(s.row));
  }
  const auto middle = [&](int64_t n, int64_t y) {
    uint8_t* row = ring + y % kTaps * s.row;
    if (tags[y % kTaps] != n * g.oh + y) {
      tags[y % kTaps] = n * g.oh + y;
      to_bytes(source.row2(n, y) + s.floats.ld2, s.floats.ld2, g.ow, g.f1, args.middle_scale, row + s.ldm, s.ldm);
    }
    return row;
  };
  const ByteRow geometry{g.f1, s.ldm, 1, 1, s.ldm, args.depthwise, args.depthwise_bias, args.depthwise_scale};
  const Output<float> scores{args.scores, g.os, nullptr, {}, g.k, g.oh, g.ow, cpu::kNone, 0.0f};
  const Output<bf16> logits{args.logits, g.os, nullptr, {}, g.k, g.oh, g.ow, cpu::kNone, 0.0f};
  for (int64_t at = begin; at < end; ++at) {
    const int64_t n = at / g.oh;
    const int64_t y = at - n * g.oh;
    const uint8_t* rows[kTaps];
    for (int64_t i = 0; i < kTaps; ++i) {
      const int64_t row = y - 1 + i;
      rows[i] = row >= 0 && row < g.oh ? middle(n, row) : border;
    }
    for (int64_t x = 0; x < g.ow; x += ByteProducts::kTile) {
      const int64_t pixels = min_i(ByteProducts::kTile, g.ow - x);
      depthwise_bytes(rows, geometry, x, pixels, a, s.ldm);
      const StoreBytes store{b, s.ldo, args.scale, 0, nullptr, 0, 0.0f, 0};
      for (int64_t column = 0; column < g.f2; column += kPanel) {
        byte_columns(column, g.f2, pixels, g.f1, a, s.ldm, args.pointwise, args.bias, store);
      }
      for (int64_t p = 0; p < pixels; ++p) {
        for (int64_t c = 0; c < g.f2; c += Vec::width) {
          LITESEG_ISA::store(values + p * s.ldo + c, LITESEG_ISA::to_floats(widen_bytes(b + p * s.ldo + c)));
        }
      }
      const int64_t p0 = at * g.ow + x;
      if (args.logits != nullptr) {
        // rounded from float: a product that does it itself would be as much code again
        const int64_t lds = finish_stride(g.k);
        ByteProducts::to_floats(pixels, g.k, g.f2, values, s.ldo, g.classifier, g.classifier_bias, sums, lds, nullptr,
                                cpu::kNone);
        finish_row(logits, sums, lds, n, y, x, pixels);
      } else {
        project_tile(scores, p0, p0 + pixels, values, s.ldo, g.f2, g.classifier, g.classifier_bias, sums);
      }
    }
  }
}

int64_t scratch_bytes(const cpu::Int8DecoderArgs& args) {
  return ByteScratch(args.sums).layout.bytes();
}

}  // namespace

const cpu::Int8DecoderTable int8_decoder_table = {scratch_bytes, lift<ByteProducts>, run};

}  // namespace liteseg::LITESEG_ISA
