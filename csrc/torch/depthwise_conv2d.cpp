// Registration of liteseg_cpu::depthwise_conv2d and its backward; the kernels are described in
// engine/kernels/depthwise_conv2d.cpp.
#include "engine/kernels/depthwise_conv2d.h"

#include "engine/geometry.h"
#include "engine/runtime/isa.h"
#include "torch/pack.h"

namespace liteseg::cpu {
namespace {

constexpr const char* kOp = "depthwise_conv2d";

using Sizes = std::vector<int64_t>;

const DepthwiseConvTable& table() {
  return LITESEG_CHOOSE(depthwise_conv2d_table);
}

DepthwiseConvArgs arguments(const Tensor& x, const Tensor& weight, const Sizes& stride, const Sizes& padding,
                            const Sizes& dilation) {
  check_4d(kOp, "x", x);
  check_4d(kOp, "weight", weight);
  DepthwiseConvArgs g{};
  g.n = x.size(0);
  g.c = x.size(1);
  g.h = x.size(2);
  g.w = x.size(3);
  g.kh = weight.size(2);
  g.kw = weight.size(3);
  check_shape(kOp, "weight", weight, {g.c, 1, g.kh, g.kw});
  check_same_dtype(kOp, "weight", weight, x);
  g.sh = stride[0];
  g.sw = stride[1];
  g.ph = padding[0];
  g.pw = padding[1];
  g.dh = dilation[0];
  g.dw = dilation[1];
  g.oh = output_size(kOp, "height", g.h, g.kh, g.sh, g.ph, g.dh);
  g.ow = output_size(kOp, "width", g.w, g.kw, g.sw, g.pw, g.dw);
  g.x = read_of(x);
  g.xs = strides_of(x);
  g.channel_stride = (g.c + table().width - 1) / table().width * table().width;
  return g;
}

Tensor depthwise_conv2d(Tensor x, Tensor weight, Sizes stride, Sizes padding, Sizes dilation) {
  DepthwiseConvArgs g = arguments(x, weight, stride, padding, dilation);
  Tensor out = empty_dense({g.n, g.c, g.oh, g.ow}, x.scalar_type(), is_channels_last(x));
  g.out = data_of(out);
  g.os = dense_strides(out);
  PackedWeights packed(weight.numel());
  g.weight = packed.depthwise(weight);
  const int64_t bytes = table().scratch_bytes(g);
  const auto kernel = table().forward_rows[dtype_of(kOp, "x", x)];
  parallel(g.n * g.oh, g.ow * g.c * g.kh * g.kw,
           [&](int64_t begin, int64_t end) { kernel(g, begin, end, thread_buffer(Slot::kScratch, bytes)); });
  return out;
}

std::tuple<Tensor, Tensor> depthwise_conv2d_backward(Tensor grad, Tensor x, Tensor weight, Sizes stride, Sizes padding,
                                                     Sizes dilation, std::vector<bool> output_mask) {
  DepthwiseConvArgs g = arguments(x, weight, stride, padding, dilation);
  check_shape(kOp, "grad", grad, {g.n, g.c, g.oh, g.ow});
  check_same_dtype(kOp, "grad", grad, x);
  g.grad = read_of(grad);
  g.gs = strides_of(grad);
  const ScalarType type = x.scalar_type();
  const DType dtype = dtype_of(kOp, "x", x);
  const auto none = [type] { return empty_dense({0}, type, false); };
  Tensor grad_x = output_mask[0] ? empty_dense({g.n, g.c, g.h, g.w}, type, is_channels_last(x)) : none();
  Tensor grad_weight = output_mask[1] ? empty_dense({g.c, 1, g.kh, g.kw}, type, false) : none();
  constexpr int64_t most_chunks = 32;
  g.chunks = std::min(most_chunks, g.n * g.oh);
  PackedWeights packed(2 * weight.numel());
  g.weight = packed.depthwise(weight);
  g.flipped = packed.depthwise(weight, true);
  Tensor sums = empty_dense({output_mask[1] ? std::max<int64_t>(g.chunks, 1) * g.kh * g.kw * g.channel_stride : 0},
                            ScalarType::Float, false);
  if (output_mask[0]) {
    g.out = data_of(grad_x);
    g.os = dense_strides(grad_x);
  }
  if (output_mask[1]) {
    g.sums = static_cast<float*>(data_of(sums));
    g.grad_weight = data_of(grad_weight);
  }
  const int64_t bytes = table().scratch_bytes(g);
  const int64_t work = 2 * (g.n * g.oh / std::max<int64_t>(g.chunks, 1)) * g.ow * g.c * g.kh * g.kw;
  parallel(g.chunks, work, [&](int64_t begin, int64_t end) {
    table().backward_chunks[dtype](g, begin, end, thread_buffer(Slot::kScratch, bytes));
  });
  if (output_mask[1]) {
    table().reduce_weight[dtype](g);
  }
  return {grad_x, grad_weight};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(liteseg_cpu, CPU, m) {
  m.impl("depthwise_conv2d", TORCH_BOX(&depthwise_conv2d));
  m.impl("depthwise_conv2d_backward", TORCH_BOX(&depthwise_conv2d_backward));
}

}  // namespace liteseg::cpu
