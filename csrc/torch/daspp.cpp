// Registration of liteseg_cpu::daspp; the kernels are described in engine/kernels/daspp.cpp and separable_conv2d.cpp.
#include "engine/kernels/daspp.h"

#include "engine/geometry.h"
#include "engine/kernels/separable_conv2d.h"
#include "engine/runtime/isa.h"
#include "torch/pack.h"

namespace liteseg::cpu {
namespace {

constexpr const char* kOp = "daspp";

void check_weight(const char* argument, const Tensor& weight, const Tensor& x, const std::vector<int64_t>& shape) {
  check_shape(kOp, argument, weight, shape);
  check_same_dtype(kOp, argument, weight, x);
}

// what one of the lists of separable convolutions packs to
int64_t separable_floats(int64_t count, int64_t channels, int64_t filters) {
  return count * (pointwise_floats(filters, channels) + bias_floats(filters) + 9 * channels);
}

// a separable 3x3 convolution between fp32 maps [N * H * W][channels] that keeps the size
void separable(PackedWeights& packed, const float* x, const DasppArgs& size, int64_t channels, const Tensor& depthwise,
               const Tensor& pointwise, const Tensor& bias, int64_t rate, Activation activation, float* out) {
  SeparableConvArgs g{};
  g.x = x;
  g.xs = {size.h * size.w * channels, 1, size.w * channels, channels};
  g.pointwise = packed.pointwise(pointwise);
  g.bias = packed.bias(bias, size.filters);
  g.depthwise = packed.depthwise(depthwise);
  g.out = out;
  g.os = {size.h * size.w * size.filters, 1, size.w * size.filters, size.filters};
  g.n = size.n;
  g.c = channels;
  g.h = g.oh = size.h;
  g.w = g.ow = size.w;
  g.co = size.filters;
  g.kh = g.kw = 3;
  g.sh = g.sw = 1;
  g.ph = g.pw = g.dh = g.dw = rate;
  g.activation = activation;
  const int64_t pixels = g.n * g.h * g.w;
  g.tile = tile_pixels(channels, pixels, 24, num_threads());
  const SeparableConvTable& table = LITESEG_CHOOSE(separable_conv2d_table);
  const int64_t scratch_bytes = table.scratch_bytes(g);
  parallel((pixels + g.tile - 1) / g.tile, g.tile * channels * (g.co + 9), [&](int64_t begin, int64_t end) {
    table.run[kFloat](g, begin, end, thread_buffer(Slot::kScratch, scratch_bytes));
  });
}

Tensor daspp(Tensor x, std::optional<Tensor> direct_weight, std::optional<Tensor> point_weight,
             std::optional<Tensor> point_bias, std::vector<Tensor> atrous_depthwise,
             std::vector<Tensor> atrous_pointwise, std::vector<Tensor> atrous_bias, std::vector<Tensor> deep_depthwise,
             std::vector<Tensor> deep_pointwise, std::vector<Tensor> deep_bias, Tensor pool_weight, Tensor pool_bias,
             Tensor project_weight, Tensor project_bias, std::vector<int64_t> rates) {
  check_4d(kOp, "x", x);
  check_4d(kOp, "pool_weight", pool_weight);
  check_4d(kOp, "project_weight", project_weight);
  const DType dtype = dtype_of(kOp, "x", x);
  DasppArgs g{};
  g.n = x.size(0);
  g.c = x.size(1);
  g.h = x.size(2);
  g.w = x.size(3);
  g.filters = pool_weight.size(0);
  g.co = project_weight.size(0);
  const size_t count = rates.size();
  const bool deeper = !deep_depthwise.empty();
  const bool point = point_weight.has_value();
  LITESEG_CHECK(count > 0 && *std::min_element(rates.begin(), rates.end()) > 0, kOp, "rates",
                "one or more rates of at least 1", count);
  LITESEG_CHECK(atrous_depthwise.size() == count && atrous_pointwise.size() == count && atrous_bias.size() == count,
                kOp, "atrous", text(count, " weights of each kind"), atrous_depthwise.size());
  const size_t deep_count = deeper ? count : 0;
  LITESEG_CHECK(
      deep_depthwise.size() == deep_count && deep_pointwise.size() == deep_count && deep_bias.size() == deep_count, kOp,
      "deep", text(count, " weights of each kind, or none"), deep_depthwise.size());
  LITESEG_CHECK(point == point_bias.has_value(), kOp, "point_bias", "a tensor just where point_weight is one",
                point ? "none" : "a tensor");
  for (size_t i = 0; i < count; ++i) {
    check_weight("atrous_depthwise", atrous_depthwise[i], x, {g.c, 1, 3, 3});
    check_weight("atrous_pointwise", atrous_pointwise[i], x, {g.filters, g.c, 1, 1});
    check_shape(kOp, "atrous_bias", atrous_bias[i], {g.filters});
  }
  for (size_t i = 0; i < deep_count; ++i) {
    check_weight("deep_depthwise", deep_depthwise[i], x, {g.filters, 1, 3, 3});
    check_weight("deep_pointwise", deep_pointwise[i], x, {g.filters, g.filters, 1, 1});
    check_shape(kOp, "deep_bias", deep_bias[i], {g.filters});
  }
  if (direct_weight.has_value()) {
    check_weight("direct_weight", *direct_weight, x, {g.co, g.c, 1, 1});
  }
  if (point) {
    check_weight("point_weight", *point_weight, x, {g.filters, g.c, 1, 1});
    check_shape(kOp, "point_bias", *point_bias, {g.filters});
  }
  const int64_t maps = static_cast<int64_t>(count) + 1 + (point ? 1 : 0);
  check_weight("pool_weight", pool_weight, x, {g.filters, g.c, 1, 1});
  check_shape(kOp, "pool_bias", pool_bias, {g.filters});
  check_weight("project_weight", project_weight, x, {g.co, maps * g.filters, 1, 1});
  check_shape(kOp, "project_bias", project_bias, {g.co});
  Tensor out = empty_dense({g.n, g.co, g.h, g.w}, x.scalar_type(), is_channels_last(x));
  if (out.numel() == 0) {
    return out;
  }

  const int64_t rate_count = static_cast<int64_t>(count);
  PackedWeights packed(separable_floats(rate_count, g.c, g.filters) +
                       separable_floats(deeper ? rate_count : 0, g.filters, g.filters) +
                       2 * pointwise_floats(g.filters, g.c) + pointwise_floats(g.co, g.c) +
                       maps * pointwise_floats(g.co, g.filters) + 2 * bias_floats(g.filters) + 2 * bias_floats(g.co));
  const Tensor source =
      torch::stable::contiguous(torch::stable::to(x, ScalarType::Float), torch::headeronly::MemoryFormat::ChannelsLast);
  g.x = static_cast<const float*>(read_of(source));

  const int64_t plane = g.h * g.w;
  std::vector<Tensor> held;  // keeps the maps until the end of the call
  const auto map = [&] {
    held.push_back(empty_dense({g.n, plane, g.filters, 1}, ScalarType::Float, false));
    return static_cast<float*>(data_of(held.back()));
  };
  const auto projection = [&](int64_t i) {
    return packed.pointwise(torch::stable::narrow(project_weight, 1, i * g.filters, g.filters));
  };
  std::vector<Projected> summands;
  if (direct_weight.has_value()) {
    summands.push_back({g.x, g.c, packed.pointwise(*direct_weight)});
  }
  for (int64_t i = 0; i < rate_count; ++i) {
    float* branch = map();
    separable(packed, g.x, g, g.c, atrous_depthwise[i], atrous_pointwise[i], atrous_bias[i], rates[i],
              deeper ? kNone : kRelu, branch);
    if (deeper) {
      float* deep = map();
      separable(packed, branch, g, g.filters, deep_depthwise[i], deep_pointwise[i], deep_bias[i], 1, kRelu, deep);
      branch = deep;
    }
    summands.push_back({branch, g.filters, projection(i + (point ? 1 : 0))});
  }
  g.summands = summands.data();
  g.count = static_cast<int64_t>(summands.size());
  if (point) {
    g.point = packed.pointwise(*point_weight);
    g.point_bias = packed.bias(point_bias, g.filters);
    g.point_project = projection(0);
  }
  g.pool = packed.pointwise(pool_weight);
  g.pool_bias = packed.bias(pool_bias, g.filters);
  g.pool_project = projection(maps - 1);
  g.project_bias = packed.bias(project_bias, g.co);
  g.zeros = packed.bias(std::nullopt, g.co);
  g.start_stride = bias_floats(g.co);
  std::vector<float> mean(g.n * g.c);
  std::vector<float> start(g.n * g.start_stride);
  g.mean = mean.data();
  g.start = start.data();
  g.out = data_of(out);
  g.os = dense_strides(out);
  g.pool_channels = 64;
  const int64_t depth = (direct_weight.has_value() ? g.c : 0) + (maps - 1) * g.filters;
  g.tile = tile_pixels(std::max(g.filters, g.co), g.n * plane, 48, num_threads());

  const DasppTable& table = LITESEG_CHOOSE(daspp_table);
  const int64_t scratch_bytes = table.scratch_bytes(g);
  parallel(g.n * ((g.c + g.pool_channels - 1) / g.pool_channels), plane * g.pool_channels,
           [&](int64_t begin, int64_t end) { table.pool(g, begin, end); });
  parallel(g.n, g.filters * (g.c + g.co), [&](int64_t begin, int64_t end) {
    table.start(g, begin, end, thread_buffer(Slot::kScratch, scratch_bytes));
  });
  const int64_t work = g.tile * (g.co * depth + (point ? g.c * g.filters : 0));
  parallel(g.n * ((plane + g.tile - 1) / g.tile), work, [&](int64_t begin, int64_t end) {
    table.project[dtype](g, begin, end, thread_buffer(Slot::kScratch, scratch_bytes));
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(liteseg_cpu, CPU, m) {
  m.impl("daspp", TORCH_BOX(&daspp));
}

}  // namespace liteseg::cpu
