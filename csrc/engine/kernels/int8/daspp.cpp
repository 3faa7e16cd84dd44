// The branches of DASPP in bytes, up to their sums over the input channels; sliced_daspp does what follows in float.
// Replaces: the 1x1 branch, conv2d(groups) and conv2d(1x1) of the atrous ones, mean and conv2d(1x1) of the pooled one
// Shapes:   x [N, H, W, C] -> partial sums [N][groups][count][H * W][F] and [N][groups][F up to whole panels]
// Traffic:  minimum N*H*W*C + weights; the sums add 4*N*groups*count*H*W*F, mostly in cache
// Bound:    arithmetic
// Layout:   the input channels are split over the threads. A slice of them is copied between zero borders that the
//           widest dilation needs, then goes through all branches while it is in cache
// Numerics: exact int32 sums over the channels of a group, each scaled once in fp32; the groups depend on the channels
//           alone. What the depthwise parts give is rounded to uint8, its zero point being part of their biases
// Limits:   at most kMaxBranches branches; x with the zero point 0
#include "engine/kernels/int8/tables.h"

#include "engine/blocks/depthwise_int8.h"
#include "engine/blocks/rows.h"
#include "engine/kernels/sliced_daspp_parts.h"

namespace liteseg::LITESEG_ISA {
namespace {

using Args = cpu::Int8DasppArgs;

int64_t pixel(int64_t channels) {
  return div_up(channels, cpu::kBytePixel) * cpu::kBytePixel;
}

struct Scratch {
  ScratchLayout layout;
  int64_t slice;  // channels worked on at a time, whole vectors
  int64_t pad;    // zero columns on either side
  int64_t row;    // bytes of a padded row
  int64_t tile;   // pixels whose depthwise values are kept
  int64_t ldf;
  int64_t x, border, a, sums, mean, zeros;

  explicit Scratch(const Args& args) {
    const cpu::SlicedDasppArgs& g = args.sums;
    pad = 0;
    for (int64_t b = 0; b < g.count; ++b) {
      pad = max_i(pad, min_i(g.branches[b].rate, g.w));
    }
    // a part of the second level of cache
    constexpr int64_t bytes = 1 << 19;
    const int64_t width = g.w + 2 * pad;
    slice = min_i(pixel(g.group_channels),
                  max_i(cpu::kBytePixel, bytes / (g.h * width) / cpu::kBytePixel * cpu::kBytePixel));
    row = width * slice;
    tile = 96;
    ldf = div_up(g.filters, kPanel) * kPanel;
    x = layout.take<uint8_t>(g.h * row);
    border = layout.take<uint8_t>(row);
    a = layout.take<uint8_t>(tile * slice);
    sums = layout.take<int32_t>(g.count * g.h * g.w * ldf);
    mean = layout.take<float>(slice);
    zeros = layout.take<uint32_t>(ldf);
  }
};

// means of `count` channels over the pixels
void pool_bytes(const uint8_t* x, int64_t ldx, int64_t pixels, int64_t count, float scale, float* mean) {
  const Vec share = set1(scale / static_cast<float>(pixels));
  for (int64_t c = 0; c < count; c += Vec::width) {
    Ints sum = set1_int(0);
    for (int64_t p = 0; p < pixels; ++p) {
      sum = add(sum, widen_bytes(x + p * ldx + c));
    }
    store(mean + c, mul(to_floats(sum), share));
  }
}

void sum(const Args& args, int64_t begin, int64_t end, char* scratch) {
  const cpu::SlicedDasppArgs& g = args.sums;
  const Scratch s(args);
  const int64_t pixels = g.h * g.w;
  const int64_t ldx = pixel(g.channels);
  uint8_t* copy = at_offset<uint8_t>(scratch, s.x);
  uint8_t* border = at_offset<uint8_t>(scratch, s.border);
  uint8_t* a = at_offset<uint8_t>(scratch, s.a);
  float* mean = at_offset<float>(scratch, s.mean);
  uint32_t* zeros = at_offset<uint32_t>(scratch, s.zeros);
  __builtin_memset(zeros, 0, static_cast<size_t>(s.ldf) * sizeof(uint32_t));
  __builtin_memset(border, 0, static_cast<size_t>(s.row));
  __builtin_memset(copy, 0, static_cast<size_t>(g.h * s.row));
  for (int64_t item = begin; item < end; ++item) {
    const int64_t n = item / g.groups;
    const int64_t group = item - n * g.groups;
    float* pooled = g.pool_partial + item * s.ldf;
    const int64_t c0 = group * g.group_channels;
    const int64_t c1 = min_i(g.channels, c0 + g.group_channels);
    for (int64_t c = c0; c < c1; c += s.slice) {
      const int64_t count = min_i(s.slice, c1 - c);
      const bool first = c == c0;
      const uint8_t* x = args.x + n * pixels * ldx + c;
      pool_bytes(x, ldx, pixels, count, args.scale, mean);
      gemm_part(1, g.filters, g.channels, c, count, mean, count, g.pool, reinterpret_cast<const float*>(zeros), pooled,
                g.filters, first ? nullptr : pooled);
      for (int64_t y = 0; y < g.h; ++y) {
        for (int64_t column = 0; column < g.w; ++column) {
          // whole vectors: what lies behind the last channel has weights of zero
          __builtin_memcpy(copy + y * s.row + (s.pad + column) * s.slice, x + (y * g.w + column) * ldx,
                           static_cast<size_t>(pixel(count)));
        }
      }
      for (int64_t b = 0; b < g.count; ++b) {
        const cpu::Int8DasppBranch& branch = args.branches[b];
        // a branch's bias enters with the first slice of the first group only
        const uint32_t* bias = first && group == 0 ? branch.bias : zeros;
        int32_t* sums = at_offset<int32_t>(scratch, s.sums) + b * pixels * s.ldf;
        const int64_t rate = g.branches[b].rate;
        const int64_t dilation = min_i(rate, s.pad);
        const ByteRow geometry{count,
                               s.slice,
                               1,
                               dilation,
                               ldx,
                               branch.depthwise + c,
                               branch.depthwise_bias + c,
                               branch.depthwise_scale + c};
        for (int64_t p0 = 0; p0 < pixels; p0 += s.tile) {
          const int64_t p1 = min_i(pixels, p0 + s.tile);
          const uint8_t* left = x + p0 * ldx;
          int64_t lda = ldx;
          if (rate > 0) {
            left = a;
            lda = s.slice;
            for (int64_t p = p0; p < p1;) {
              const int64_t y = p / g.w;
              const int64_t x0 = p - y * g.w;
              const int64_t outputs = min_i(g.w - x0, p1 - p);
              const uint8_t* rows[3];
              for (int64_t i = 0; i < 3; ++i) {
                const int64_t at = y + (i - 1) * rate;
                rows[i] = at >= 0 && at < g.h ? copy + at * s.row : border;
              }
              depthwise_bytes(rows, geometry, s.pad - dilation + x0, outputs, a + (p - p0) * s.slice, s.slice);
              p += outputs;
            }
          }
          for (int64_t column = 0; column < g.filters; column += kPanel) {
            byte_part(column, g.filters, p1 - p0, g.channels, c, count, left, lda, branch.pointwise, bias,
                      StoreSums{sums + p0 * s.ldf, s.ldf, !first});
          }
        }
      }
    }
    for (int64_t b = 0; b < g.count; ++b) {
      const int32_t* sums = at_offset<int32_t>(scratch, s.sums) + b * pixels * s.ldf;
      float* out = g.partial + (item * g.count + b) * pixels * g.filters;
      for (int64_t p = 0; p < pixels; ++p) {
        for (int64_t column = 0; column < g.filters; column += Vec::width) {
          const Vec value = mul(to_floats(load_ints(sums + p * s.ldf + column)), load(args.branches[b].scale + column));
          store_partial(out + p * g.filters + column, value, g.filters - column);
        }
      }
    }
  }
}

int64_t scratch_bytes(const Args& args) {
  return Scratch(args).layout.bytes();
}

}  // namespace

const cpu::Int8DasppTable int8_daspp_table = {scratch_bytes, sum};

}  // namespace liteseg::LITESEG_ISA
