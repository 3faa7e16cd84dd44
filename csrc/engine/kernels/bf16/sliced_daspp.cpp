// DASPP or ASPP in bfloat16: the convolution in front, all branches, image pooling, second convolutions, projection.
// Replaces: conv2d(1x1), the branches of DASPP or ASPP, cat and conv2d(1x1); the wide map is never stored
// Shapes:   x [N, H, W, c] -> (channels) -> out [N, H, W, F]
// Traffic:  minimum (N*c + N*F)*H*W*2 + weights; the partial sums add 2 * N * groups * count * H*W*F*4, mostly in cache
// Bound:    arithmetic
// Layout:   as kernels/sliced_daspp.cpp. A slice of the convolution in front is kept as float for the depthwise taps
//           and image pooling, and as bf16 for the product of the 1x1 branch
// Numerics: products of bf16, everything else fp32; the groups of channels depend on the channels alone, and their sums
//           are added in one order
// Limits:   bfloat16, at most kMaxBranches branches
#include "engine/kernels/bf16/tables.h"

#include "engine/blocks/pairs.h"
#include "engine/blocks/rows.h"
#include "engine/kernels/sliced_daspp_parts.h"

namespace liteseg::LITESEG_ISA {
namespace {

using cpu::DasppBranch;
using cpu::SlicedDasppArgs;
using Args = cpu::SlicedDasppBf16Args;

struct Scratch {
  ScratchLayout layout;
  int64_t slice;  // channels worked on at a time
  int64_t tile;   // pixels whose depthwise values are kept
  int64_t ldf;    // values of a pixel of all filters
  int64_t pool_floats;
  int64_t wide, half, a, b, sums, mean, pool, pooled, taps, zeros;

  explicit Scratch(const SlicedDasppArgs& g) {
    // a part of the second level of cache for a slice of the wide map, whole panels of it
    const int64_t pixels = g.h * g.w;
    constexpr int64_t floats = 98304;
    slice = min_i(g.group_channels, max_i(kPanel, floats / pixels / kPanel * kPanel));
    tile = 4 * kRows;
    ldf = padded(g.filters);
    pool_floats = div_up(g.filters, kPanel) * kPanel;
    wide = layout.take<float>(g.last == nullptr ? 0 : pixels * padded(slice));
    half = layout.take<bf16>(g.last == nullptr ? 0 : pixels * padded(slice));
    a = layout.take<bf16>(max_i(tile * padded(slice), g.tile * ldf));
    b = layout.take<bf16>(g.tile * ldf);
    sums = layout.take<float>(g.tile * g.filters);
    mean = layout.take<bf16>(padded(slice));
    pool = layout.take<float>(pool_floats);
    pooled = layout.take<bf16>(pool_floats);
    taps = layout.take<float>(kTaps * kTaps * slice);
    zeros = layout.take<float>(pool_floats);
  }
};

// a slice of the wide map as float and as bf16, pixels `ld` apart in both
struct StoreBoth {
  StoreFloat wide;
  StoreHalf half;

  template <int H, int V>
  LITESEG_INLINE void put(int64_t m0, Vec (&acc)[H][V]) const {
    wide.put<H, V>(m0, acc);
    half.put<H, V>(m0, acc);
  }
};

// products read whole words of two values, so the value behind an odd number of channels is set to zero
void close_odd(bf16* a, int64_t lda, int64_t pixels, int64_t channels) {
  for (int64_t p = 0; p < pixels && channels % 2 == 1; ++p) {
    a[p * lda + channels].bits = 0;
  }
}

// act(values) [pixels][channels] as bf16 pixels, zeros after the last channel
void to_half(const float* values, int64_t pixels, int64_t channels, int activation, bf16* out, int64_t ldo) {
  const Clamp clamp(activation);
  for (int64_t p = 0; p < pixels; ++p) {
    for (int64_t c = 0; c < channels; c += Vec::width) {
      // the lanes that are not loaded are zero, and no activation changes that
      store(out + p * ldo + c, clamp(load_partial(values + p * channels + c, channels - c)));
    }
  }
}

// adds what the slice contributes to a branch; the first slice of a group starts the sum from `bias`
template <typename T>
void branch_slice(const SlicedDasppArgs& g, const DasppBranch& branch, const Slice<T>& slice, const bf16* half,
                  const Scratch& s, const float* bias, float* sum, bool first, char* scratch) {
  const int64_t pixels = g.h * g.w;
  if (branch.rate == 0) {
    dot_to_float(pixels, g.filters, g.channels, slice.first, slice.count, half, slice.ldx, branch.pointwise, bias, sum,
                 g.filters, first ? nullptr : sum, cpu::kNone);
    return;
  }
  float* taps_weight = at_offset<float>(scratch, s.taps);
  for (int64_t t = 0; t < kTaps * kTaps; ++t) {
    for (int64_t c = 0; c < slice.count; ++c) {
      taps_weight[t * slice.count + c] = branch.depthwise[t * g.channels + slice.first + c];
    }
  }
  bf16* a = at_offset<bf16>(scratch, s.a);
  const int64_t lda = padded(slice.count);
  const DepthwiseRow geometry{slice.count, g.w,       kTaps,   kTaps,      1,   branch.rate,
                              branch.rate, slice.ldx, nullptr, cpu::kNone, 0.0f};
  for (int64_t p0 = 0; p0 < pixels; p0 += s.tile) {
    const int64_t p1 = min_i(pixels, p0 + s.tile);
    depthwise_tile(slice.x, g, geometry, taps_weight, p0, p1, a, lda);
    close_odd(a, lda, p1 - p0, slice.count);
    dot_to_float(p1 - p0, g.filters, g.channels, slice.first, slice.count, a, lda, branch.pointwise, bias,
                 sum + p0 * g.filters, g.filters, first ? nullptr : sum + p0 * g.filters, cpu::kNone);
  }
}

// item: of the flattened N x groups
template <typename T>
void add_slice(const SlicedDasppArgs& g, const Slice<T>& slice, const bf16* half, const Scratch& s, int64_t item,
               bool first, char* scratch) {
  const int64_t pixels = g.h * g.w;
  const float* zeros = at_offset<float>(scratch, s.zeros);
  float* pooled = g.pool_partial + item * s.pool_floats;
  bf16* mean = at_offset<bf16>(scratch, s.mean);
  pool_slice(pixels, slice, mean);
  close_odd(mean, 0, 1, slice.count);
  dot_to_float(1, g.filters, g.channels, slice.first, slice.count, mean, 0, g.pool, zeros, pooled, g.filters,
               first ? nullptr : pooled, cpu::kNone);
  for (int64_t b = 0; b < g.count; ++b) {
    // a branch's bias enters with the first slice of the first group only
    const bool biased = first && item % g.groups == 0;
    branch_slice(g, g.branches[b], slice, half, s, biased ? g.branches[b].bias : zeros,
                 g.partial + (item * g.count + b) * pixels * g.filters, first, scratch);
  }
}

void fill_zeros(const Scratch& s, char* scratch) {
  float* zeros = at_offset<float>(scratch, s.zeros);
  for (int64_t i = 0; i < s.pool_floats; ++i) {
    zeros[i] = 0.0f;
  }
}

void sum(const Args& args, int64_t begin, int64_t end, char* scratch) {
  const SlicedDasppArgs& g = args.sums;
  const Scratch s(g);
  const int64_t pixels = g.h * g.w;
  const int64_t ldx = padded(g.c);
  fill_zeros(s, scratch);
  for (int64_t item = begin; item < end; ++item) {
    const int64_t n = item / g.groups;
    const int64_t group = item - n * g.groups;
    const bf16* image = args.x + n * pixels * ldx;
    const int64_t c0 = group * g.group_channels;
    const int64_t c1 = min_i(g.channels, c0 + g.group_channels);
    for (int64_t c = c0; c < c1; c += s.slice) {
      const int64_t count = min_i(s.slice, c1 - c);
      if (g.last == nullptr) {
        add_slice(g, Slice<bf16>{image + c, ldx, c, count}, image + c, s, item, c == c0, scratch);
        continue;
      }
      const int64_t ld = padded(count);
      float* wide = at_offset<float>(scratch, s.wide);
      bf16* half = at_offset<bf16>(scratch, s.half);
      const Left left{&image, nullptr, 1, words_of(g.c), ldx};
      for (int64_t at = 0; at < count; at += kPanel) {
        dot_columns<false>(at, count, pixels, left, g.last + (c + at) * left.words, g.last_bias + c,
                           [&](int64_t to, int64_t cols) {
                             return StoreBoth{StoreFloat(wide + to, ld, nullptr, g.last_activation, cols),
                                              StoreHalf(half + to, ld, nullptr, 0, g.last_activation, cols)};
                           });
      }
      add_slice(g, Slice<float>{wide, ld, c, count}, half, s, item, c == c0, scratch);
    }
  }
}

void reduce(const Args& args, int64_t begin, int64_t end, char* scratch) {
  const SlicedDasppArgs& g = args.sums;
  const Scratch s(g);
  const int64_t floats = g.h * g.w * g.filters;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t n = item / (g.count + 1);
    const int64_t b = item - n * (g.count + 1);
    if (b < g.count) {
      add_up(g.partial + (n * g.groups * g.count + b) * floats, g.count * floats, g.groups, nullptr,
             g.branches[b].activation, g.reduced + (n * g.count + b) * floats, floats);
      continue;
    }
    float* pool = at_offset<float>(scratch, s.pool);
    bf16* pooled = at_offset<bf16>(scratch, s.pooled);
    add_up(g.pool_partial + n * g.groups * s.pool_floats, s.pool_floats, g.groups, g.pool_bias, cpu::kRelu, pool,
           g.filters);
    to_half(pool, 1, g.filters, cpu::kNone, pooled, 0);
    float* start = g.start + n * s.pool_floats;
    for (int64_t i = 0; i < s.pool_floats; ++i) {
      start[i] = 0.0f;
    }
    dot_to_float(1, g.filters, g.filters, 0, g.filters, pooled, 0, g.pool_project, g.project_bias, start, 0, nullptr,
                 cpu::kNone);
  }
}

void project(const Args& args, int64_t begin, int64_t end, char* scratch) {
  const SlicedDasppArgs& g = args.sums;
  const Scratch s(g);
  const int64_t pixels = g.h * g.w;
  const int64_t tiles = div_up(pixels, g.tile);
  const int64_t f = g.filters;
  bf16* a = at_offset<bf16>(scratch, s.a);
  bf16* b = at_offset<bf16>(scratch, s.b);
  float* sums = at_offset<float>(scratch, s.sums);
  fill_zeros(s, scratch);
  const DepthwiseRow geometry{f, g.w, kTaps, kTaps, 1, 1, 1, f, nullptr, cpu::kNone, 0.0f};
  for (int64_t item = begin; item < end; ++item) {
    const int64_t n = item / tiles;
    const int64_t p0 = (item - n * tiles) * g.tile;
    const int64_t count = min_i(pixels, p0 + g.tile) - p0;
    const float* bias = g.start + n * s.pool_floats;
    const float* map = g.reduced + n * g.count * pixels * f;
    const float* residual = nullptr;
    int64_t at = 0;
    if (g.branches[0].project == nullptr) {
      residual = map + p0 * f;
      at = 1;
    }
    for (; at < g.count; ++at) {
      const DasppBranch& branch = g.branches[at];
      const float* values = map + at * pixels * f;
      if (branch.deep_pointwise != nullptr) {
        depthwise_tile(values, g, geometry, branch.deep_depthwise, p0, p0 + count, a, s.ldf);
        close_odd(a, s.ldf, count, f);
        dot_to_half(count, f, f, a, s.ldf, branch.deep_pointwise, branch.deep_bias, b, s.ldf, nullptr, 0, cpu::kRelu);
      } else {
        to_half(values + p0 * f, count, f, cpu::kNone, b, s.ldf);
      }
      dot_to_float(count, f, f, 0, f, b, s.ldf, branch.project, bias, sums, f, residual, cpu::kNone);
      residual = sums;
      bias = at_offset<float>(scratch, s.zeros);
    }
    to_half(sums, count, f, cpu::kRelu, args.out + (n * pixels + p0) * s.ldf, s.ldf);
  }
}

int64_t scratch_bytes(const Args& args) {
  return Scratch(args.sums).layout.bytes();
}

}  // namespace

const cpu::SlicedDasppBf16Table sliced_daspp_bf16_table = {scratch_bytes, sum, reduce, project};

}  // namespace liteseg::LITESEG_ISA
