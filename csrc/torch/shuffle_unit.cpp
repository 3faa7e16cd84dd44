// Registration of liteseg_cpu::shuffle_unit; the kernel is described in engine/kernels/shuffle_unit.cpp.
#include "engine/kernels/shuffle_unit.h"

#include "engine/geometry.h"
#include "engine/kernels/pack.h"
#include "engine/runtime/isa.h"
#include "torch/tensors.h"

namespace liteseg::cpu {
namespace {

constexpr const char* kOp = "shuffle_unit";

// weight [Co, C / groups, 1, 1], bias [Co]; the packed values are kept in `memory`
GroupedPointwise grouped(const Tensor& weight, const Tensor& bias, int64_t groups, std::vector<float>* memory) {
  const int64_t width = LITESEG_CHOOSE(pack_table).panel / 2;
  GroupedPointwise p{};
  p.groups = groups;
  p.in = weight.size(1);
  p.out = weight.size(0) / groups;
  const int64_t columns = (p.out + width - 1) / width * width;
  p.weight_stride = columns * p.in;
  p.bias_stride = columns;
  memory->assign(static_cast<size_t>(groups * (p.weight_stride + p.bias_stride)), 0.0f);
  float* weights = memory->data();
  float* biases = weights + groups * p.weight_stride;
  const std::vector<float> values = to_floats(weight);
  const std::vector<float> starts = to_floats(bias);
  for (int64_t group = 0; group < groups; ++group) {
    for (int64_t column = 0; column < p.out; ++column) {
      const int64_t first = column - column % (kGroupedVectors * width);
      const int64_t panel = std::min(kGroupedVectors * width, columns - first);
      float* to = weights + group * p.weight_stride + first * p.in + (column - first);
      for (int64_t k = 0; k < p.in; ++k) {
        to[k * panel] = values[(group * p.out + column) * p.in + k];
      }
      biases[group * p.bias_stride + column] = starts[group * p.out + column];
    }
  }
  p.weight = weights;
  p.bias = biases;
  return p;
}

Tensor shuffle_unit(Tensor x, Tensor compress_weight, Tensor compress_bias, Tensor depthwise_weight,
                    Tensor depthwise_bias, Tensor expand_weight, Tensor expand_bias, int64_t groups,
                    std::vector<int64_t> stride, std::vector<int64_t> dilation, bool concat) {
  check_4d(kOp, "x", x);
  check_4d(kOp, "compress_weight", compress_weight);
  check_4d(kOp, "expand_weight", expand_weight);
  const DType dtype = dtype_of(kOp, "x", x);
  ShuffleUnitArgs g{};
  g.n = x.size(0);
  g.c = x.size(1);
  g.h = x.size(2);
  g.w = x.size(3);
  g.bottleneck = compress_weight.size(0);
  g.branch = expand_weight.size(0);
  const int64_t width = compress_weight.size(1);
  const int64_t first_groups = width > 0 && g.c % width == 0 ? g.c / width : 0;
  LITESEG_CHECK(first_groups > 0 && g.bottleneck % first_groups == 0, kOp, "compress_weight",
                text("groups that divide the ", g.c, " channels and the bottleneck"), shape_text(compress_weight));
  LITESEG_CHECK(groups > 0 && g.bottleneck % groups == 0, kOp, "groups",
                text("a divisor of the bottleneck ", g.bottleneck), groups);
  LITESEG_CHECK(g.branch % groups == 0, kOp, "expand_weight", text("output channels divisible by ", groups), g.branch);
  check_shape(kOp, "compress_weight", compress_weight, {g.bottleneck, width, 1, 1});
  check_shape(kOp, "compress_bias", compress_bias, {g.bottleneck});
  check_shape(kOp, "depthwise_weight", depthwise_weight, {g.bottleneck, 1, 3, 3});
  check_shape(kOp, "depthwise_bias", depthwise_bias, {g.bottleneck});
  check_shape(kOp, "expand_weight", expand_weight, {g.branch, g.bottleneck / groups, 1, 1});
  check_shape(kOp, "expand_bias", expand_bias, {g.branch});
  check_same_dtype(kOp, "compress_weight", compress_weight, x);
  check_same_dtype(kOp, "depthwise_weight", depthwise_weight, x);
  check_same_dtype(kOp, "expand_weight", expand_weight, x);
  g.sh = stride[0];
  g.sw = stride[1];
  g.dh = dilation[0];
  g.dw = dilation[1];
  g.oh = output_size(kOp, "height", g.h, 3, g.sh, g.dh, g.dh);
  g.ow = output_size(kOp, "width", g.w, 3, g.sw, g.dw, g.dw);
  LITESEG_CHECK(concat || (g.branch == g.c && g.sh == 1 && g.sw == 1), kOp, "concat",
                "true unless the stride is 1 and the branch has the input's channels",
                text("false with stride ", g.sh, ", ", g.sw, " and ", g.c, " -> ", g.branch, " channels"));
  Tensor out = empty_dense({g.n, concat ? g.c + g.branch : g.branch, g.oh, g.ow}, x.scalar_type(), is_channels_last(x));
  if (out.numel() == 0) {
    return out;
  }

  // computed place i of group j is shuffled place i * groups + j
  const int64_t group_width = g.bottleneck / groups;
  std::vector<int32_t> shuffle(g.bottleneck);
  std::vector<float> depthwise(9 * g.bottleneck);
  std::vector<float> depthwise_start(g.bottleneck);
  const std::vector<float> filters = to_floats(depthwise_weight);
  const std::vector<float> start = to_floats(depthwise_bias);
  for (int64_t place = 0; place < g.bottleneck; ++place) {
    const int64_t computed = place % groups * group_width + place / groups;
    shuffle[place] = static_cast<int32_t>(computed);
    depthwise_start[computed] = start[place];
    for (int64_t tap = 0; tap < 9; ++tap) {
      depthwise[tap * g.bottleneck + computed] = filters[place * 9 + tap];
    }
  }
  const std::vector<float> average(concat ? 9 * g.c : 0, 1.0f / 9.0f);
  std::vector<float> compress_memory;
  std::vector<float> expand_memory;
  g.compress = grouped(compress_weight, compress_bias, first_groups, &compress_memory);
  g.expand = grouped(expand_weight, expand_bias, groups, &expand_memory);
  g.depthwise = depthwise.data();
  g.depthwise_bias = depthwise_start.data();
  g.shuffle = shuffle.data();
  g.average = concat ? average.data() : nullptr;
  g.x = read_of(x);
  g.xs = strides_of(x);
  g.out = data_of(out);
  g.os = dense_strides(out);
  const int64_t plane = g.oh * g.ow;
  g.tile = tile_pixels(g.bottleneck, g.n * plane, 48, num_threads());

  const ShuffleUnitTable& table = LITESEG_CHOOSE(shuffle_unit_table);
  const int64_t scratch_bytes = table.scratch_bytes(g);
  const int64_t work = g.tile * (g.bottleneck * (width * g.sh * g.sw + 9) + g.branch * group_width + g.c);
  parallel(g.n * ((plane + g.tile - 1) / g.tile), work, [&](int64_t begin, int64_t end) {
    table.run[dtype](g, begin, end, thread_buffer(Slot::kScratch, scratch_bytes), true);
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(liteseg_cpu, CPU, m) {
  m.impl("shuffle_unit", TORCH_BOX(&shuffle_unit));
}

}  // namespace liteseg::cpu
