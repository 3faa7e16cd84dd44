// Registration of the ops of batch normalisation in training; the kernels are described in
// engine/kernels/batch_norm_activation.cpp.
#include "engine/kernels/batch_norm_activation.h"

#include <string>

#include "engine/runtime/isa.h"
#include "torch/tensors.h"

namespace liteseg::cpu {
namespace {

constexpr const char* kOp = "batch_norm_activation";

using Pair = std::tuple<Tensor, Tensor>;
using OptionalTensor = std::optional<Tensor>;

// values by channel that live until the end of the call
struct Channels {
  std::vector<float> mean, scale, shift, offset, factor;
};

const BatchNormTable& table() {
  return LITESEG_CHOOSE(batch_norm_activation_table);
}

BatchNormArgs arguments(const Tensor& x) {
  check_4d(kOp, "x", x);
  BatchNormArgs g{};
  g.n = x.size(0);
  g.c = x.size(1);
  g.h = x.size(2);
  g.w = x.size(3);
  g.x = read_of(x);
  g.xs = strides_of(x);
  constexpr int64_t block_floats = 32768;  // half of a small second-level cache
  g.block_rows = std::max<int64_t>(1, block_floats / (g.w * g.c));
  g.blocks = (g.n * g.h + g.block_rows - 1) / g.block_rows;
  g.channel_stride = (g.c + table().width - 1) / table().width * table().width;
  return g;
}

void read_channel(const char* name, const Tensor& t, int64_t c, std::vector<float>& out) {
  check_shape(kOp, name, t, {c});
  LITESEG_CHECK(t.scalar_type() == ScalarType::Float, kOp, name, "float32", dtype_text(t.scalar_type()));
  out = to_floats(t);
}

void normaliser(BatchNormArgs& g, Channels& channels, const Tensor& x, const Tensor& mean, const Tensor& invstd,
                const OptionalTensor& weight, const OptionalTensor& bias, const OptionalTensor& residual,
                int64_t activation, double slope) {
  LITESEG_CHECK(activation >= kNone && activation <= kLastOfOps, kOp, "activation", text("0 to ", kLastOfOps),
                activation);
  g.activation = static_cast<int>(activation);
  g.slope = static_cast<float>(slope);
  read_channel("mean", mean, g.c, channels.mean);
  read_channel("invstd", invstd, g.c, channels.scale);
  if (weight.has_value()) {
    std::vector<float> values;
    read_channel("weight", *weight, g.c, values);
    for (int64_t c = 0; c < g.c; ++c) {
      channels.scale[c] *= values[c];
    }
  }
  channels.shift.assign(g.c, 0.0f);
  if (bias.has_value()) {
    read_channel("bias", *bias, g.c, channels.shift);
  }
  if (residual.has_value()) {
    check_shape(kOp, "residual", *residual, {g.n, g.c, g.h, g.w});
    check_same_dtype(kOp, "residual", *residual, x);
    g.residual = read_of(*residual);
    g.rs = strides_of(*residual);
  }
  g.mean = channels.mean.data();
  g.scale = channels.scale.data();
  g.shift = channels.shift.data();
}

void take_gradient(BatchNormArgs& g, const Tensor& grad, const Tensor& x) {
  check_shape(kOp, "grad", grad, {g.n, g.c, g.h, g.w});
  check_same_dtype(kOp, "grad", grad, x);
  g.grad = read_of(grad);
  g.gs = strides_of(grad);
}

using BlockKernel = void (*)(const BatchNormArgs&, int64_t, int64_t);

Pair sums(BatchNormArgs& g, BlockKernel kernel, void (*combine)(const BatchNormArgs&)) {
  Tensor first = empty_dense({g.c}, ScalarType::Float, false);
  Tensor second = empty_dense({g.c}, ScalarType::Float, false);
  g.first = static_cast<float*>(data_of(first));
  g.second = static_cast<float*>(data_of(second));
  const int64_t floats = 3 * g.blocks * g.channel_stride;
  g.sums = reinterpret_cast<float*>(thread_buffer(Slot::kScratch, floats * static_cast<int64_t>(sizeof(float))));
  g.rest = g.sums + 2 * g.blocks * g.channel_stride;
  parallel(g.blocks, 4 * g.block_rows * g.w * g.c, [&](int64_t begin, int64_t end) { kernel(g, begin, end); });
  combine(g);
  return {first, second};
}

Pair batch_norm_statistics(Tensor x) {
  BatchNormArgs g = arguments(x);
  return sums(g, table().block_statistics[dtype_of(kOp, "x", x)], table().combine_statistics);
}

Tensor batch_norm_activation(Tensor x, Tensor mean, Tensor invstd, OptionalTensor weight, OptionalTensor bias,
                             OptionalTensor residual, int64_t activation, double negative_slope, std::string) {
  BatchNormArgs g = arguments(x);
  Channels channels;
  normaliser(g, channels, x, mean, invstd, weight, bias, residual, activation, negative_slope);
  Tensor out = empty_dense({g.n, g.c, g.h, g.w}, x.scalar_type(), is_channels_last(x));
  g.out = data_of(out);
  g.os = dense_strides(out);
  const auto kernel = table().apply_rows[dtype_of(kOp, "x", x)];
  parallel(g.n * g.h, 4 * g.w * g.c, [&](int64_t begin, int64_t end) { kernel(g, begin, end); });
  return out;
}

Pair batch_norm_activation_backward_reduce(Tensor grad, Tensor x, Tensor mean, Tensor invstd, OptionalTensor weight,
                                           OptionalTensor bias, OptionalTensor residual, int64_t activation,
                                           double negative_slope) {
  BatchNormArgs g = arguments(x);
  Channels channels;
  normaliser(g, channels, x, mean, invstd, weight, bias, residual, activation, negative_slope);
  take_gradient(g, grad, x);
  Pair result = sums(g, table().block_gradients[dtype_of(kOp, "x", x)], table().combine_gradients);
  const std::vector<float> inverse = to_floats(invstd);
  for (int64_t c = 0; c < g.c; ++c) {
    g.second[c] *= inverse[c];
  }
  return result;
}

Pair batch_norm_activation_backward(Tensor grad, Tensor x, Tensor mean, Tensor invstd, OptionalTensor weight,
                                    OptionalTensor bias, OptionalTensor residual, Tensor mean_grad, Tensor mean_dot,
                                    int64_t activation, double negative_slope, std::vector<bool> output_mask) {
  BatchNormArgs g = arguments(x);
  Channels channels;
  normaliser(g, channels, x, mean, invstd, weight, bias, residual, activation, negative_slope);
  take_gradient(g, grad, x);
  read_channel("mean_grad", mean_grad, g.c, channels.offset);
  read_channel("mean_dot", mean_dot, g.c, channels.factor);
  const std::vector<float> inverse = to_floats(invstd);
  for (int64_t c = 0; c < g.c; ++c) {
    channels.offset[c] *= channels.scale[c];
    channels.factor[c] *= channels.scale[c] * inverse[c];
  }
  g.offset = channels.offset.data();
  g.factor = channels.factor.data();
  const auto output = [&](bool wanted, void** data, Strides4* strides) {
    Tensor t = wanted ? empty_dense({g.n, g.c, g.h, g.w}, x.scalar_type(), is_channels_last(x))
                      : empty_dense({0}, x.scalar_type(), false);
    if (wanted) {
      *data = data_of(t);
      *strides = dense_strides(t);
    }
    return t;
  };
  Tensor grad_x = output(output_mask[0], &g.out, &g.os);
  Tensor grad_residual = output(output_mask[1], &g.grad_residual, &g.drs);
  const auto kernel = table().gradient_rows[dtype_of(kOp, "x", x)];
  parallel(output_mask[0] || output_mask[1] ? g.n * g.h : 0, 8 * g.w * g.c,
           [&](int64_t begin, int64_t end) { kernel(g, begin, end); });
  return {grad_x, grad_residual};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(liteseg_cpu, CPU, m) {
  m.impl("batch_norm_statistics", TORCH_BOX(&batch_norm_statistics));
  m.impl("batch_norm_activation", TORCH_BOX(&batch_norm_activation));
  m.impl("batch_norm_activation_backward_reduce", TORCH_BOX(&batch_norm_activation_backward_reduce));
  m.impl("batch_norm_activation_backward", TORCH_BOX(&batch_norm_activation_backward));
}

}  // namespace liteseg::cpu
