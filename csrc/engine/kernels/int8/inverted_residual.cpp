// MobileNetV2's block in int8: expand, depthwise and project in one pass over rows.
// Replaces: conv2d(1x1), activation, conv2d(groups), activation, conv2d(1x1), add (neither wide map is ever stored)
// Shapes:   x [N, H, W, C] -> out [N, Ho, Wo, Co], 3x3, padding = dilation
// Traffic:  minimum N*C*H*W + N*Co*Ho*Wo + weights
// Bound:    arithmetic, once the wide rows stay in the second level of cache
// Layout:   as the float kernel: a ring of each thread keeps the rows of the expanded map that the taps of a tile of
//           output pixels reach. The ring's left and right columns and one row for all those outside of the image stay
//           zero, which is the zero point of the hidden maps
// Numerics: exact int32 sums; what each of the three products gives is scaled in fp32, rounded to the nearest (ties to
//           even) and saturated to uint8, which is also the activation: the integers are the same on every instruction
//           set, for any tiling and any number of threads
// Limits:   3x3, one stride and one dilation for both axes, with an expansion
#include "engine/kernels/int8/tables.h"

#include "engine/blocks/depthwise_int8.h"
#include "engine/blocks/output.h"
#include "engine/blocks/rows.h"

namespace liteseg::LITESEG_ISA {
namespace {

using Args = cpu::Int8InvertedResidualArgs;

int64_t pixel(int64_t channels) {
  return div_up(channels, cpu::kBytePixel) * cpu::kBytePixel;
}

struct Scratch {
  ScratchLayout layout;
  int64_t ldh;
  int64_t pad;    // zero columns on either side of a ring row
  int64_t slots;  // rows of the ring
  int64_t row;    // bytes of one of them
  int64_t a, ring, zeros, tags, missing;

  explicit Scratch(const Args& g) {
    ldh = pixel(g.hidden);
    // a dilation beyond the width only ever reads zeros, so this many zero columns are enough
    pad = min_i(g.dilation, g.w);
    const int64_t span = min_i(g.oh, div_up(g.tile - 1, g.ow) + 1);
    slots = min_i(g.h, (span - 1) * g.stride + 2 * g.dilation + 1);
    row = (g.w + 2 * pad) * ldh;
    a = layout.take<uint8_t>(g.tile * ldh);
    ring = layout.take<uint8_t>(slots * row);
    zeros = layout.take<uint8_t>(row);
    tags = layout.take<int64_t>(slots);
    missing = layout.take<int64_t>(slots);
  }
};

void run(const Args& g, int64_t begin, int64_t end, char* scratch, bool fresh) {
  const Scratch s(g);
  const int64_t ldx = pixel(g.c);
  const int64_t ldo = pixel(g.co);
  uint8_t* a = at_offset<uint8_t>(scratch, s.a);
  uint8_t* ring = at_offset<uint8_t>(scratch, s.ring);
  uint8_t* zeros = at_offset<uint8_t>(scratch, s.zeros);
  int64_t* tags = at_offset<int64_t>(scratch, s.tags);
  int64_t* missing = at_offset<int64_t>(scratch, s.missing);
  if (fresh) {
    clear_tags(tags, s.slots);
    __builtin_memset(zeros, 0, static_cast<size_t>(s.row));
    for (int64_t r = 0; r < s.slots; ++r) {
      __builtin_memset(ring + r * s.row, 0, static_cast<size_t>(s.pad * s.ldh));
      __builtin_memset(ring + (r + 1) * s.row - s.pad * s.ldh, 0, static_cast<size_t>(s.pad * s.ldh));
    }
  }
  // expands what the output rows [first, last] need and the ring does not hold
  const auto prepare = [&](int64_t n, int64_t first, int64_t last) {
    int64_t count = 0;
    for (int64_t oy = first; oy <= last; ++oy) {
      for (int64_t i = -1; i <= 1; ++i) {
        const int64_t y = oy * g.stride + i * g.dilation;
        if (y >= 0 && y < g.h && tags[y % s.slots] != n * g.h + y) {
          tags[y % s.slots] = n * g.h + y;
          missing[count++] = y;
        }
      }
    }
    for (int64_t column = 0; column < g.hidden; column += kPanel) {
      for (int64_t r = 0; r < count; ++r) {
        uint8_t* to = ring + missing[r] % s.slots * s.row + s.pad * s.ldh;
        const StoreBytes store{to, s.ldh, g.expand_scale, 0, nullptr, 0, 0.0f, 0};
        byte_columns(column, g.hidden, g.w, g.c, g.x + (n * g.h + missing[r]) * g.w * ldx, ldx, g.expand, g.expand_bias,
                     store);
      }
    }
  };
  const ByteRow geometry{g.hidden, s.ldh, g.stride, s.pad, s.ldh, g.depthwise, g.depthwise_bias, g.depthwise_scale};
  const int64_t plane = g.oh * g.ow;
  const int64_t tiles = div_up(plane, g.tile);
  for (int64_t t = begin; t < end; ++t) {
    const int64_t image = t / tiles;
    const int64_t p0 = image * plane + (t - image * tiles) * g.tile;
    const int64_t p1 = min_i(p0 + g.tile, (image + 1) * plane);
    prepare(image, (p0 - image * plane) / g.ow, (p1 - 1 - image * plane) / g.ow);
    for_each_row(p0, p1, g.oh, g.ow, [&](int64_t, int64_t oy, int64_t ox, int64_t count, int64_t offset) {
      const uint8_t* rows[3];
      for (int64_t i = 0; i < 3; ++i) {
        const int64_t y = oy * g.stride + (i - 1) * g.dilation;
        rows[i] = y >= 0 && y < g.h ? ring + y % s.slots * s.row : zeros;
      }
      depthwise_bytes(rows, geometry, ox * g.stride, count, a + offset * s.ldh, s.ldh);
    });
    const StoreBytes store{
        g.out + p0 * ldo, ldo,      g.project_scale, g.out_zero, g.residual ? g.x + p0 * ldx : nullptr, ldx,
        g.residual_scale, g.in_zero};
    for (int64_t column = 0; column < g.co; column += kPanel) {
      byte_columns(column, g.co, p1 - p0, g.hidden, a, s.ldh, g.project, g.project_bias, store);
    }
  }
}

int64_t scratch_bytes(const Args& args) {
  return Scratch(args).layout.bytes();
}

}  // namespace

const cpu::Int8InvertedResidualTable int8_inverted_residual_table = {scratch_bytes, run};

}  // namespace liteseg::LITESEG_ISA
