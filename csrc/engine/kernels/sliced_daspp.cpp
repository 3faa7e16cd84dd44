// DASPP or ASPP: the convolution in front, every branch, image pooling, second convolutions and projection.
// Replaces: conv2d(1x1), the branches of DASPP or ASPP, cat and conv2d(1x1); the wide map is never stored
// Shapes:   x [N, H, W, c] -> (channels) -> out [N, H, W, F]
// Traffic:  minimum (N*c + N*F)*H*W*4 + weights; the partial sums add 2 * N * groups * count * H*W*F*4, mostly in cache
// Bound:    arithmetic; the weights are half as large as all other data, so each is read once
// Layout:   the input channels are split over the threads. A slice of the convolution in front is computed, pooled and
//           sent through all branches while it is in cache; the branches' sums over slices are added at the end
// Numerics: fp32; the groups of channels depend on the channels alone, and their sums are added in one order
// Limits:   float32, at most kMaxBranches branches
#include "engine/kernels/sliced_daspp.h"

#include "engine/blocks/depthwise.h"
#include "engine/blocks/gemm.h"
#include "engine/blocks/rows.h"
#include "engine/kernels/sliced_daspp_parts.h"

namespace liteseg::LITESEG_ISA {
namespace {

using cpu::DasppBranch;
using cpu::SlicedDasppArgs;

int64_t whole_panels(int64_t channels) {
  return div_up(channels, kPanel) * kPanel;
}

struct Scratch {
  ScratchLayout layout;
  int64_t slice;  // channels worked on at a time
  int64_t tile;   // pixels whose depthwise values are kept
  int64_t ldf;
  int64_t x, a, b, mean, pool, taps, zeros;

  explicit Scratch(const SlicedDasppArgs& g) {
    // a part of the second level of cache for a slice of the wide map, whole panels of it
    const int64_t pixels = g.h * g.w;
    constexpr int64_t floats = 131072;
    slice = min_i(g.group_channels, max_i(kPanel, floats / pixels / kPanel * kPanel));
    tile = 4 * kRows;
    ldf = whole_panels(g.filters);
    x = layout.take<float>(g.last == nullptr ? 0 : pixels * slice);
    a = layout.take<float>(max_i(tile * slice, g.tile * ldf));
    b = layout.take<float>(g.tile * ldf);
    mean = layout.take<float>(slice);
    pool = layout.take<float>(ldf);
    taps = layout.take<float>(kTaps * kTaps * slice);
    zeros = layout.take<float>(ldf);
  }
};

// adds what the slice contributes to a branch; the first slice of a group starts the sum from `bias`
void branch_slice(const SlicedDasppArgs& g, const DasppBranch& branch, const Slice<float>& slice, const Scratch& s,
                  const float* bias, float* sum, bool first, char* scratch) {
  const int64_t pixels = g.h * g.w;
  if (branch.rate == 0) {
    gemm_part(pixels, g.filters, g.channels, slice.first, slice.count, slice.x, slice.ldx, branch.pointwise, bias, sum,
              g.filters, first ? nullptr : sum);
    return;
  }
  float* taps_weight = at_offset<float>(scratch, s.taps);
  for (int64_t t = 0; t < kTaps * kTaps; ++t) {
    for (int64_t c = 0; c < slice.count; ++c) {
      taps_weight[t * slice.count + c] = branch.depthwise[t * g.channels + slice.first + c];
    }
  }
  float* a = at_offset<float>(scratch, s.a);
  const DepthwiseRow geometry{slice.count, g.w,       kTaps,   kTaps,      1,   branch.rate,
                              branch.rate, slice.ldx, nullptr, cpu::kNone, 0.0f};
  for (int64_t p0 = 0; p0 < pixels; p0 += s.tile) {
    const int64_t p1 = min_i(pixels, p0 + s.tile);
    depthwise_tile(slice.x, g, geometry, taps_weight, p0, p1, a, slice.count);
    gemm_part(p1 - p0, g.filters, g.channels, slice.first, slice.count, a, slice.count, branch.pointwise, bias,
              sum + p0 * g.filters, g.filters, first ? nullptr : sum + p0 * g.filters);
  }
}

void sum(const SlicedDasppArgs& g, int64_t begin, int64_t end, char* scratch) {
  const Scratch s(g);
  const int64_t pixels = g.h * g.w;
  float* zeros = at_offset<float>(scratch, s.zeros);
  float* mean = at_offset<float>(scratch, s.mean);
  for (int64_t i = 0; i < s.ldf; ++i) {
    zeros[i] = 0.0f;
  }
  for (int64_t item = begin; item < end; ++item) {
    const int64_t n = item / g.groups;
    const int64_t group = item - n * g.groups;
    const float* image = g.x + n * pixels * g.c;
    float* pooled = g.pool_partial + item * s.ldf;
    const int64_t c0 = group * g.group_channels;
    const int64_t c1 = min_i(g.channels, c0 + g.group_channels);
    for (int64_t c = c0; c < c1; c += s.slice) {
      Slice<float> slice{image + c, g.c, c, min_i(s.slice, c1 - c)};
      if (g.last != nullptr) {
        float* x = at_offset<float>(scratch, s.x);
        gemm<float>(pixels, slice.count, g.c, image, g.c, g.last + c * g.c, g.last_bias + c, x, slice.count,
                    {nullptr, 0, g.last_activation, 0.0f});
        slice.x = x;
        slice.ldx = slice.count;
      }
      const bool first = c == c0;
      pool_slice(pixels, slice, mean);
      gemm_part(1, g.filters, g.channels, c, slice.count, mean, slice.count, g.pool, zeros, pooled, g.filters,
                first ? nullptr : pooled);
      for (int64_t b = 0; b < g.count; ++b) {
        // a branch's bias enters with the first slice of the first group only
        const bool biased = first && group == 0;
        branch_slice(g, g.branches[b], slice, s, biased ? g.branches[b].bias : zeros,
                     g.partial + (item * g.count + b) * pixels * g.filters, first, scratch);
      }
    }
  }
}

void reduce(const SlicedDasppArgs& g, int64_t begin, int64_t end, char* scratch) {
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
    add_up(g.pool_partial + n * g.groups * s.ldf, s.ldf, g.groups, g.pool_bias, cpu::kRelu, pool, g.filters);
    float* start = g.start + n * s.ldf;
    gemm<float>(1, g.filters, g.filters, pool, s.ldf, g.pool_project, g.project_bias, start, s.ldf,
                {nullptr, 0, cpu::kNone, 0.0f});
    for (int64_t i = g.filters; i < s.ldf; ++i) {
      start[i] = 0.0f;
    }
  }
}

void project(const SlicedDasppArgs& g, int64_t begin, int64_t end, char* scratch) {
  const Scratch s(g);
  const int64_t pixels = g.h * g.w;
  const int64_t tiles = div_up(pixels, g.tile);
  float* a = at_offset<float>(scratch, s.a);
  float* b = at_offset<float>(scratch, s.b);
  float* zeros = at_offset<float>(scratch, s.zeros);
  for (int64_t i = 0; i < s.ldf; ++i) {
    zeros[i] = 0.0f;
  }
  const DepthwiseRow geometry{g.filters, g.w, kTaps, kTaps, 1, 1, 1, g.filters, nullptr, cpu::kNone, 0.0f};
  for (int64_t item = begin; item < end; ++item) {
    const int64_t n = item / tiles;
    const int64_t p0 = (item - n * tiles) * g.tile;
    const int64_t p1 = min_i(pixels, p0 + g.tile);
    float* out = g.out + (n * pixels + p0) * g.filters;
    const float* bias = g.start + n * s.ldf;
    const float* map = g.reduced + n * g.count * pixels * g.filters;
    const float* residual = nullptr;
    int64_t at = 0;
    if (g.branches[0].project == nullptr) {
      residual = map + p0 * g.filters;
      at = 1;
    }
    for (; at < g.count; ++at) {
      const DasppBranch& branch = g.branches[at];
      const float* values = map + at * pixels * g.filters;
      const float* left = values + p0 * g.filters;
      if (branch.deep_pointwise != nullptr) {
        depthwise_tile(values, g, geometry, branch.deep_depthwise, p0, p1, a, g.filters);
        gemm<float>(p1 - p0, g.filters, g.filters, a, g.filters, branch.deep_pointwise, branch.deep_bias, b, g.filters,
                    {nullptr, 0, cpu::kRelu, 0.0f});
        left = b;
      }
      gemm<float>(p1 - p0, g.filters, g.filters, left, g.filters, branch.project, bias, out, g.filters,
                  {residual, g.filters, at + 1 == g.count ? cpu::kRelu : cpu::kNone, 0.0f});
      residual = out;
      bias = zeros;
    }
  }
}

int64_t scratch_bytes(const SlicedDasppArgs& args) {
  return Scratch(args).layout.bytes();
}

}  // namespace

const cpu::SlicedDasppTable sliced_daspp_table = {scratch_bytes, sum, reduce, project};

}  // namespace liteseg::LITESEG_ISA
