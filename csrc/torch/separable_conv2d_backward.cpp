// Registration of liteseg_cpu::separable_conv2d_backward; the kernels are described in
// engine/kernels/separable_conv2d_backward.cpp.
#include "engine/kernels/separable_conv2d_backward.h"

#include "engine/geometry.h"
#include "engine/runtime/isa.h"
#include "torch/pack.h"

namespace liteseg::cpu {
namespace {

constexpr const char* kOp = "separable_conv2d";

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

// Parts that are summed on their own. They depend on the shapes alone: results must not change with the number of
// threads.
void divide(SeparableConvBackwardArgs& g) {
  constexpr int64_t most_chunks = 32;
  constexpr int64_t most_floats = int64_t{8} << 20;
  constexpr int64_t cached_floats = 16384;
  constexpr int64_t least_tile = 48;
  constexpr int64_t most_tile = 240;
  g.tile = std::clamp(cached_floats / std::max(g.c, g.co) / 24 * 24, least_tile, most_tile);
  const int64_t tiles = (g.n * g.oh * g.ow + g.tile - 1) / g.tile;
  const int64_t affordable = std::max<int64_t>(1, most_floats / (g.co * g.channel_stride));
  const int64_t chunks = std::max<int64_t>(1, std::min({tiles, most_chunks, affordable}));
  g.chunk_tiles = (tiles + chunks - 1) / chunks;
  g.chunks = g.chunk_tiles == 0 ? 0 : (tiles + g.chunk_tiles - 1) / g.chunk_tiles;
}

Gradients separable_conv2d_backward(Tensor grad, Tensor x, Tensor depthwise_weight, Tensor pointwise_weight,
                                    Tensor output, std::vector<int64_t> stride, std::vector<int64_t> padding,
                                    std::vector<int64_t> dilation, int64_t activation, double negative_slope,
                                    std::vector<bool> output_mask) {
  check_4d(kOp, "x", x);
  check_4d(kOp, "depthwise_weight", depthwise_weight);
  check_4d(kOp, "pointwise_weight", pointwise_weight);
  const DType dtype = dtype_of(kOp, "x", x);
  SeparableConvBackwardArgs g{};
  g.n = x.size(0);
  g.c = x.size(1);
  g.h = x.size(2);
  g.w = x.size(3);
  g.kh = depthwise_weight.size(2);
  g.kw = depthwise_weight.size(3);
  g.co = pointwise_weight.size(0);
  check_shape(kOp, "depthwise_weight", depthwise_weight, {g.c, 1, g.kh, g.kw});
  check_shape(kOp, "pointwise_weight", pointwise_weight, {g.co, g.c, 1, 1});
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
  check_shape(kOp, "grad", grad, {g.n, g.co, g.oh, g.ow});
  check_shape(kOp, "output", output, {g.n, g.co, g.oh, g.ow});
  for (const auto& [name, t] : {std::pair<const char*, const Tensor&>{"grad", grad},
                                {"output", output},
                                {"depthwise_weight", depthwise_weight},
                                {"pointwise_weight", pointwise_weight}}) {
    check_same_dtype(kOp, name, t, x);
  }
  const bool of_x = output_mask[0];
  const bool of_depthwise = output_mask[1];
  const bool of_pointwise = output_mask[2];
  const bool of_bias = output_mask[3];
  const bool of_residual = output_mask[4];

  const ScalarType type = x.scalar_type();
  // one each: outputs of an op must not share storage
  const auto none = [type] { return empty_dense({0}, type, false); };
  Tensor grad_x = of_x ? empty_dense({g.n, g.c, g.h, g.w}, type, is_channels_last(x)) : none();
  Tensor grad_depthwise = of_depthwise ? empty_dense({g.c, 1, g.kh, g.kw}, type, false) : none();
  Tensor grad_pointwise = of_pointwise ? empty_dense({g.co, g.c, 1, 1}, type, false) : none();
  Tensor grad_bias = of_bias ? empty_dense({g.co}, type, false) : none();
  Tensor grad_residual = of_residual ? empty_dense({g.n, g.co, g.oh, g.ow}, type, is_channels_last(output)) : none();

  const SeparableConvBackwardTable& table = LITESEG_CHOOSE(separable_conv2d_backward_table);
  g.channel_stride = (g.c + table.width - 1) / table.width * table.width;
  g.out_stride = (g.co + table.width - 1) / table.width * table.width;
  divide(g);

  PackedWeights packed(pointwise_floats(g.c, g.co) + bias_floats(g.c) + 2 * depthwise_weight.numel());
  g.transposed = packed.pointwise_transposed(pointwise_weight);
  g.zeros = packed.bias(std::nullopt, g.c);
  g.depthwise = packed.depthwise(depthwise_weight);
  g.depthwise_flipped = packed.depthwise(depthwise_weight, true);
  g.grad = read_of(grad);
  g.gs = strides_of(grad);
  g.output = read_of(output);
  g.os = strides_of(output);
  g.x = read_of(x);
  g.xs = strides_of(x);
  g.activation = static_cast<int>(activation);
  g.slope = static_cast<float>(negative_slope);

  const int64_t pixels = g.n * g.oh * g.ow;
  const auto floats = [](int64_t count) { return empty_dense({count}, ScalarType::Float, false); };
  const auto data = [](const Tensor& t) { return static_cast<float*>(data_of(t)); };
  std::vector<Tensor> held;  // keeps the buffers until the end of the call
  const auto buffer = [&](bool wanted, int64_t count) {
    if (!wanted) {
      return static_cast<float*>(nullptr);
    }
    held.push_back(floats(std::max<int64_t>(count, 1)));
    return data(held.back());
  };
  g.between = buffer(of_x, pixels * g.channel_stride);
  g.pointwise_sum = buffer(of_pointwise, g.chunks * g.co * g.channel_stride);
  g.depthwise_sum = buffer(of_depthwise, g.chunks * g.kh * g.kw * g.channel_stride);
  g.bias_sum = buffer(of_bias, g.chunks * g.out_stride);
  g.grad_pointwise = of_pointwise ? data_of(grad_pointwise) : nullptr;
  g.grad_depthwise = of_depthwise ? data_of(grad_depthwise) : nullptr;
  g.grad_bias = of_bias ? data_of(grad_bias) : nullptr;
  if (of_residual) {
    g.grad_residual = data_of(grad_residual);
    g.rs = dense_strides(grad_residual);
  }

  const int64_t scratch_bytes = table.scratch_bytes(g);
  const int64_t pixel_work = g.c * (2 * g.co + 2 * g.kh * g.kw);
  parallel(g.chunks, g.chunk_tiles * g.tile * pixel_work, [&](int64_t begin, int64_t end) {
    table.sum_chunks[dtype](g, begin, end, thread_buffer(Slot::kScratch, scratch_bytes));
  });
  if (of_x && grad_x.numel() > 0) {
    g.grad_x = data_of(grad_x);
    g.dxs = dense_strides(grad_x);
    const int64_t input_bytes = table.input_scratch_bytes(g);
    parallel(g.n * g.h, 2 * g.w * g.c * g.kh * g.kw, [&](int64_t begin, int64_t end) {
      table.input_rows[dtype](g, begin, end, thread_buffer(Slot::kScratch, input_bytes));
    });
  }
  if (of_pointwise) {
    parallel(g.co, g.chunks * g.c, [&](int64_t begin, int64_t end) { table.reduce_pointwise[dtype](g, begin, end); });
  }
  if (of_depthwise || of_bias) {
    table.reduce_rest[dtype](g);
  }
  return {grad_x, grad_depthwise, grad_pointwise, grad_bias, grad_residual};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(liteseg_cpu, CPU, m) {
  m.impl("separable_conv2d_backward", TORCH_BOX(&separable_conv2d_backward));
}

}  // namespace liteseg::cpu
