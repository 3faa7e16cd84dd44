// Registration of liteseg_cpu::inverted_residual; the kernel is described in engine/kernels/inverted_residual.cpp.
#include "engine/kernels/inverted_residual.h"

#include "engine/geometry.h"
#include "engine/runtime/isa.h"
#include "torch/pack.h"

namespace liteseg::cpu {
namespace {

constexpr const char* kOp = "inverted_residual";

Tensor inverted_residual(Tensor x, std::optional<Tensor> expand_weight, std::optional<Tensor> expand_bias,
                         Tensor depthwise_weight, std::optional<Tensor> depthwise_bias, Tensor project_weight,
                         std::optional<Tensor> project_bias, std::vector<int64_t> stride, std::vector<int64_t> dilation,
                         int64_t activation, double negative_slope, bool residual) {
  check_4d(kOp, "x", x);
  check_4d(kOp, "depthwise_weight", depthwise_weight);
  check_4d(kOp, "project_weight", project_weight);
  const DType dtype = dtype_of(kOp, "x", x);
  InvertedResidualArgs g{};
  g.n = x.size(0);
  g.c = x.size(1);
  g.h = x.size(2);
  g.w = x.size(3);
  g.hidden = depthwise_weight.size(0);
  g.kh = depthwise_weight.size(2);
  g.kw = depthwise_weight.size(3);
  g.co = project_weight.size(0);
  if (expand_weight.has_value()) {
    check_shape(kOp, "expand_weight", *expand_weight, {g.hidden, g.c, 1, 1});
    check_same_dtype(kOp, "expand_weight", *expand_weight, x);
  } else {
    LITESEG_CHECK(g.hidden == g.c, kOp, "depthwise_weight", text(g.c, " channels without expand_weight"), g.hidden);
    LITESEG_CHECK(!expand_bias.has_value(), kOp, "expand_bias", "none without expand_weight", "a tensor");
  }
  check_shape(kOp, "depthwise_weight", depthwise_weight, {g.hidden, 1, g.kh, g.kw});
  check_shape(kOp, "project_weight", project_weight, {g.co, g.hidden, 1, 1});
  check_same_dtype(kOp, "depthwise_weight", depthwise_weight, x);
  check_same_dtype(kOp, "project_weight", project_weight, x);
  if (expand_bias.has_value()) {
    check_shape(kOp, "expand_bias", *expand_bias, {g.hidden});
  }
  if (depthwise_bias.has_value()) {
    check_shape(kOp, "depthwise_bias", *depthwise_bias, {g.hidden});
  }
  if (project_bias.has_value()) {
    check_shape(kOp, "project_bias", *project_bias, {g.co});
  }
  LITESEG_CHECK(activation >= kNone && activation <= kLastOfOps, kOp, "activation", text("0 to ", kLastOfOps),
                activation);
  LITESEG_CHECK(g.kh % 2 == 1 && g.kw % 2 == 1, kOp, "depthwise_weight", "an odd kernel", shape_text(depthwise_weight));
  g.sh = stride[0];
  g.sw = stride[1];
  g.dh = dilation[0];
  g.dw = dilation[1];
  g.ph = g.dh * (g.kh - 1) / 2;
  g.pw = g.dw * (g.kw - 1) / 2;
  g.oh = output_size(kOp, "height", g.h, g.kh, g.sh, g.ph, g.dh);
  g.ow = output_size(kOp, "width", g.w, g.kw, g.sw, g.pw, g.dw);
  LITESEG_CHECK(!residual || (g.co == g.c && g.oh == g.h && g.ow == g.w), kOp, "residual",
                "stride 1 and as many output as input channels", text(g.c, " -> ", g.co, " channels"));
  Tensor out = empty_dense({g.n, g.co, g.oh, g.ow}, x.scalar_type(), is_channels_last(x));
  if (out.numel() == 0) {
    return out;
  }

  PackedWeights packed((expand_weight.has_value() ? pointwise_floats(g.hidden, g.c) : 0) +
                       pointwise_floats(g.co, g.hidden) + 2 * bias_floats(g.hidden) + bias_floats(g.co) +
                       depthwise_weight.numel());
  g.expand = expand_weight.has_value() ? packed.pointwise(*expand_weight) : nullptr;
  g.expand_bias = packed.bias(expand_bias, g.hidden);
  g.project = packed.pointwise(project_weight);
  g.project_bias = packed.bias(project_bias, g.co);
  g.depthwise_bias = packed.bias(depthwise_bias, g.hidden);
  g.depthwise = packed.depthwise(depthwise_weight);
  g.x = read_of(x);
  g.xs = strides_of(x);
  g.out = data_of(out);
  g.os = dense_strides(out);
  g.activation = static_cast<int>(activation);
  g.slope = static_cast<float>(negative_slope);
  g.residual = residual;
  const int64_t plane = g.oh * g.ow;
  g.tile = tile_pixels(g.hidden, g.n * plane, 48, num_threads());

  const InvertedResidualTable& table = LITESEG_CHOOSE(inverted_residual_table);
  const int64_t scratch_bytes = table.scratch_bytes(g);
  const int64_t work = g.tile * g.hidden * ((expand_weight.has_value() ? g.c * g.sh * g.sw : 0) + g.kh * g.kw + g.co);
  parallel(g.n * ((plane + g.tile - 1) / g.tile), work, [&](int64_t begin, int64_t end) {
    table.run[dtype](g, begin, end, thread_buffer(Slot::kScratch, scratch_bytes), true);
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(liteseg_cpu, CPU, m) {
  m.impl("inverted_residual", TORCH_BOX(&inverted_residual));
}

}  // namespace liteseg::cpu
