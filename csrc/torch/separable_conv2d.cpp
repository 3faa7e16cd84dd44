// Registration of liteseg_cpu::separable_conv2d; the kernel is described in engine/kernels/separable_conv2d.cpp.
#include "engine/kernels/separable_conv2d.h"

#include "engine/geometry.h"
#include "engine/runtime/isa.h"
#include "torch/pack.h"
#include "torch/tensors.h"

namespace liteseg::cpu {
namespace {

constexpr const char* kOp = "separable_conv2d";

Tensor separable_conv2d(Tensor x, Tensor depthwise_weight, Tensor pointwise_weight, std::optional<Tensor> bias,
                        std::optional<Tensor> residual, std::vector<int64_t> stride, std::vector<int64_t> padding,
                        std::vector<int64_t> dilation, int64_t activation, double negative_slope) {
  check_4d(kOp, "x", x);
  check_4d(kOp, "depthwise_weight", depthwise_weight);
  check_4d(kOp, "pointwise_weight", pointwise_weight);
  const DType dtype = dtype_of(kOp, "x", x);
  SeparableConvArgs g{};
  g.n = x.size(0);
  g.c = x.size(1);
  g.h = x.size(2);
  g.w = x.size(3);
  g.kh = depthwise_weight.size(2);
  g.kw = depthwise_weight.size(3);
  g.co = pointwise_weight.size(0);
  check_shape(kOp, "depthwise_weight", depthwise_weight, {g.c, 1, g.kh, g.kw});
  check_shape(kOp, "pointwise_weight", pointwise_weight, {g.co, g.c, 1, 1});
  check_same_dtype(kOp, "depthwise_weight", depthwise_weight, x);
  check_same_dtype(kOp, "pointwise_weight", pointwise_weight, x);
  LITESEG_CHECK(activation >= kNone && activation <= kLastOfOps, kOp, "activation", text("0 to ", kLastOfOps),
                activation);
  g.sh = stride[0];
  g.sw = stride[1];
  g.ph = padding[0];
  g.pw = padding[1];
  g.dh = dilation[0];
  g.dw = dilation[1];
  g.oh = output_size(kOp, "height", g.h, g.kh, g.sh, g.ph, g.dh);
  g.ow = output_size(kOp, "width", g.w, g.kw, g.sw, g.pw, g.dw);
  if (bias.has_value()) {
    check_shape(kOp, "bias", *bias, {g.co});
  }
  if (residual.has_value()) {
    check_shape(kOp, "residual", *residual, {g.n, g.co, g.oh, g.ow});
    check_same_dtype(kOp, "residual", *residual, x);
  }
  Tensor out = empty_dense({g.n, g.co, g.oh, g.ow}, x.scalar_type(), is_channels_last(x));
  if (out.numel() == 0) {
    return out;
  }

  const SeparableConvTable& table = LITESEG_CHOOSE(separable_conv2d_table);
  PackedWeights packed(pointwise_floats(g.co, g.c) + bias_floats(g.co) + depthwise_weight.numel());
  g.pointwise = packed.pointwise(pointwise_weight);
  g.bias = packed.bias(bias, g.co);
  g.depthwise = packed.depthwise(depthwise_weight);
  g.x = read_of(x);
  g.xs = strides_of(x);
  g.residual = residual.has_value() ? read_of(*residual) : nullptr;
  g.rs = residual.has_value() ? strides_of(*residual) : Strides4{};
  g.out = data_of(out);
  g.os = dense_strides(out);
  g.activation = static_cast<int>(activation);
  g.slope = static_cast<float>(negative_slope);
  const int64_t pixels = g.n * g.oh * g.ow;
  g.tile = tile_pixels(g.c, pixels, 24, num_threads());

  const int64_t scratch_bytes = table.scratch_bytes(g);
  parallel((pixels + g.tile - 1) / g.tile, g.tile * g.c * (g.co + g.kh * g.kw), [&](int64_t begin, int64_t end) {
    table.run[dtype](g, begin, end, thread_buffer(Slot::kScratch, scratch_bytes));
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(liteseg_cpu, CPU, m) {
  m.impl("separable_conv2d", TORCH_BOX(&separable_conv2d));
}

}  // namespace liteseg::cpu
