// separable_conv2d - depthwise k x k -> pointwise -> + bias -> + residual -> activation, in one launch.
// Replaces: two F.conv2d, an add and an activation; the depthwise map is never stored
// Shapes:   x [N, C, H, W], depthwise [C, 1, KH, KW], pointwise [CO, C, 1, 1] -> out [N, CO, HO, WO], in x's memory
//           format; any strides in
// Traffic:  minimum (N*C*H*W + N*CO*HO*WO [+ residual] + C*KH*KW + C*CO) * sizeof(T); a tile of 8 x 8 reads 1.6 pixels
//           an output at 3 x 3 and dilation 1, and nine (through L2) from dilation 8 on
// Bound:    memory, in float16, up to C = CO = 96. Not timed on its own yet.
// Launch:   grid (tiles of up to 64 pixels over all images, blocks of 32 or 96 output channels, splits), 128 threads;
//           up to three stages of cp.async. On sm_90 up to 8 blocks of a cluster share the channels of a tile with more
//           than 32 outputs where multiprocessors would be idle. Tile, stages and splits are the fastest by Attempt
// Numerics: float32 taps and accumulation; the depthwise value is rounded to T for the product, as eager stores it.
//           float32 products are exact unless tf32 is allowed. One block, or one cluster in a fixed order, owns a tile:
//           deterministic.
// Limits:   float32, float16, bfloat16; kernels up to 5 x 5. 16-byte copies need channels that are adjacent, aligned
//           and a multiple of 16 bytes; everything else (NCHW, views, odd channel counts) is read element by element
#include <liteseg/separable.cuh>

namespace liteseg {

void separable_conv2d_of_map(const SeparableCall& call, const Tensor& x, const std::optional<Tensor>& pool_weight,
                             const std::optional<Tensor>& parts, bool allow_tf32, const DeviceScope& scope) {
  dispatch_math(call.op, "x", x.scalar_type(), allow_tf32, [&](auto math) {
    using T = typename decltype(math)::Element;
    const PlainInput<T> input{map_of<const T>(x)};
    PoolSums<T> pool{};
    if (parts.has_value()) {
      pool = {input.map, matrix_of<T>(*pool_weight), static_cast<float*>(parts->mutable_data_ptr()),
              static_cast<int>(x.size(0))};
    }
    launch_separable<decltype(math)>(call, input, pool, scope);
  });
}

namespace {

constexpr char kOp[] = "separable_conv2d";

Tensor separable_conv2d(const Tensor& x, const Tensor& depthwise_weight, const Tensor& pointwise_weight,
                        const std::optional<Tensor>& bias, const std::optional<Tensor>& residual,
                        std::vector<int64_t> stride, std::vector<int64_t> padding, std::vector<int64_t> dilation,
                        int64_t activation, double negative_slope, bool allow_tf32) {
  LITESEG_CHECK(on_device(x), kOp, "x", "a tensor on the device of this library", "another device");
  check_sizes(kOp, "x", x);
  check_4d(kOp, "depthwise_weight", depthwise_weight);
  check_sizes(kOp, "pointwise_weight", pointwise_weight);
  const int64_t kh = depthwise_weight.size(2), kw = depthwise_weight.size(3), co = pointwise_weight.size(0);
  check_shape(kOp, "depthwise_weight", depthwise_weight, {x.size(1), 1, kh, kw});
  check_shape(kOp, "pointwise_weight", pointwise_weight, {co, x.size(1), 1, 1});
  check_same_dtype(kOp, "depthwise_weight", depthwise_weight, x);
  check_same_dtype(kOp, "pointwise_weight", pointwise_weight, x);
  LITESEG_CHECK(kh <= kMaxKernel && kw <= kMaxKernel, kOp, "depthwise_weight", "a kernel of at most 5 x 5",
                shape_text(depthwise_weight));
  const int64_t ho = convolved(x.size(2), kh, stride[0], padding[0], dilation[0]);
  const int64_t wo = convolved(x.size(3), kw, stride[1], padding[1], dilation[1]);
  if (bias.has_value()) {
    check_shape(kOp, "bias", *bias, {co});
    check_same_dtype(kOp, "bias", *bias, x);
  }
  if (residual.has_value()) {
    check_shape(kOp, "residual", *residual, {x.size(0), co, ho, wo});
    check_same_dtype(kOp, "residual", *residual, x);
  }
  const DeviceScope scope(x);
  const Tensor out = empty_map(scope, {x.size(0), co, ho, wo}, x.scalar_type(), is_channels_last(x));
  if (out.numel() == 0) {
    return out;
  }
  SeparableCall call{kOp, {}, stride, residual, {}, {static_cast<int>(activation), static_cast<float>(negative_slope)}};
  call.branches.push_back(
      {dense(depthwise_weight), std::nullopt, pointwise_weight, dense(bias), padding, dilation, out});
  separable_conv2d_of_map(call, x, std::nullopt, std::nullopt, allow_tf32, scope);
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(liteseg_cuda, LITESEG_DEVICE_KEY, m) {
  m.impl("separable_conv2d", TORCH_BOX(&separable_conv2d));
}

}  // namespace
}  // namespace liteseg
