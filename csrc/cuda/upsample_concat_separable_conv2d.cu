// upsample_concat_separable_conv2d - the decoder's first layer in one launch: x resized to skip's size, concatenated
//           with skip, depthwise k x k, pointwise, + bias, activation.
// Replaces: F.interpolate, torch.cat, two F.conv2d and an activation; neither the resized map nor the concatenation
//           exists
// Shapes:   x [N, C1, h, w], skip [N, C2, H, W], depthwise [C1 + C2, 1, KH, KW], pointwise [CO, C1 + C2, 1, 1]
//           -> out [N, CO, HO, WO], in skip's memory format; any strides in
// Traffic:  minimum (N*C1*h*w + N*C2*H*W + N*CO*HO*WO + weights) * sizeof(T); eager moves 2*N*(2*C1 + C2)*H*W*sizeof(T)
//           and the depthwise map more. A slot's resized value is computed once a tile, 1.6 times at 3 x 3
// Bound:    memory, in float16. Not timed yet.
// Launch:   as separable_conv2d; a chunk of x is sampled by the threads, a chunk of skip copied by cp.async
// Numerics: resized in float32 by PyTorch's rules and rounded to T, then as separable_conv2d. Deterministic
// Limits:   float32, float16, bfloat16; kernels up to 5 x 5
#include <liteseg/bilinear.cuh>
#include <liteseg/separable.cuh>

namespace liteseg {
namespace {

constexpr char kOp[] = "upsample_concat_separable_conv2d";

template <typename T>
struct UpsampledInput {
  Map<const T> x;     // [N, C1, h, w]
  Map<const T> skip;  // [N, C2, H, W]
  float scale_h, scale_w;
  bool align_corners;

  template <int kThreads>
  struct Source {
    const UpsampledInput& input;
    // [slots][2]: row and column in skip, or -1
    const int* table;
    int slots, image;

    __device__ const T* operand(const T* tile, int) const {
      return tile;
    }

    __device__ void fill(T* tile, int first, int thread) const {
      using S = Shape<T>;
      const Map<const T>&x = input.x, &skip = input.skip;
      const T* low = x.data + image * x.stride_n;
      const T* beside = skip.data + image * skip.stride_n;
      const bool vector = x.vector && skip.vector;
      for (int unit = thread; unit < slots * kVectorsOfChunk; unit += kThreads) {
        const int slot = unit / kVectorsOfChunk, c = first + unit % kVectorsOfChunk * S::kVector;
        T* to = tile + slot * S::kPitch + unit % kVectorsOfChunk * S::kVector;
        const int row = table[2 * slot], column = table[2 * slot + 1];
        if (vector && (row < 0 || c >= x.channels)) {
          const bool read = row >= 0 && c < x.channels + skip.channels;
          const int64_t offset = row * skip.stride_h + column * skip.stride_w + c - x.channels;
          cp_async16(to, read ? beside + offset : skip.data, read);
          continue;
        }
        Vector<T> result;
#pragma unroll
        for (int i = 0; i < S::kVector; ++i) {
          result.values[i] = T(0.0f);
        }
        if (row >= 0 && c < x.channels) {
          const Neighbours y = neighbours(row, x.height, input.scale_h, input.align_corners);
          const Neighbours z = neighbours(column, x.width, input.scale_w, input.align_corners);
          const T* corners[4] = {
              low + y.first * x.stride_h + z.first * x.stride_w, low + y.first * x.stride_h + z.second * x.stride_w,
              low + y.second * x.stride_h + z.first * x.stride_w, low + y.second * x.stride_h + z.second * x.stride_w};
          Vector<T> at[4];
#pragma unroll
          for (int corner = 0; corner < 4; ++corner) {
            if (vector) {
              at[corner] = *reinterpret_cast<const Vector<T>*>(corners[corner] + c);
            } else {
#pragma unroll
              for (int i = 0; i < S::kVector; ++i) {
                at[corner].values[i] = c + i < x.channels ? corners[corner][(c + i) * x.stride_c] : T(0.0f);
              }
            }
          }
#pragma unroll
          for (int i = 0; i < S::kVector; ++i) {
            const float upper = (1.0f - z.weight) * static_cast<float>(at[0].values[i]) +
                                z.weight * static_cast<float>(at[1].values[i]);
            const float lower = (1.0f - z.weight) * static_cast<float>(at[2].values[i]) +
                                z.weight * static_cast<float>(at[3].values[i]);
            result.values[i] = T((1.0f - y.weight) * upper + y.weight * lower);
          }
        }
        if (!vector && row >= 0) {
#pragma unroll
          for (int i = 0; i < S::kVector; ++i) {
            const int s = c + i - x.channels;
            if (s >= 0 && s < skip.channels) {
              result.values[i] = beside[row * skip.stride_h + column * skip.stride_w + s * skip.stride_c];
            }
          }
        }
        *reinterpret_cast<Vector<T>*>(to) = result;
      }
    }
  };

  template <typename Carver>
  static __host__ __device__ int* carve(Carver& carver, int slots) {
    return carver.template take<int>(int64_t{slots} * 2);
  }

  template <int kThreads>
  __device__ Source<kThreads> source(int* table, const Window& window, const Place& place, int thread) const {
    const int top = place.y * window.y.stride - window.y.padding, left = place.x * window.x.stride - window.x.padding;
    for (int slot = thread; slot < window.slots(); slot += kThreads) {
      const Window::Position at = window.slot(slot);
      const int y = top + window.y.position(at.y), z = left + window.x.position(at.x);
      const bool inside = y >= 0 && y < skip.height && z >= 0 && z < skip.width;
      table[2 * slot] = inside ? y : -1;
      table[2 * slot + 1] = z;
    }
    return {*this, table, window.slots(), place.image};
  }
};

Tensor upsample_concat_separable_conv2d(const Tensor& x, const Tensor& skip, const Tensor& depthwise_weight,
                                        const Tensor& pointwise_weight, const std::optional<Tensor>& bias,
                                        std::vector<int64_t> stride, std::vector<int64_t> padding,
                                        std::vector<int64_t> dilation, int64_t activation, double negative_slope,
                                        bool align_corners, bool allow_tf32) {
  LITESEG_CHECK(on_device(x), kOp, "x", "a tensor on the device of this library", "another device");
  check_sizes(kOp, "x", x);
  check_sizes(kOp, "skip", skip);
  check_4d(kOp, "depthwise_weight", depthwise_weight);
  check_sizes(kOp, "pointwise_weight", pointwise_weight);
  const int64_t channels = x.size(1) + skip.size(1), co = pointwise_weight.size(0);
  const int64_t kh = depthwise_weight.size(2), kw = depthwise_weight.size(3);
  check_shape(kOp, "skip", skip, {x.size(0), skip.size(1), skip.size(2), skip.size(3)});
  check_shape(kOp, "depthwise_weight", depthwise_weight, {channels, 1, kh, kw});
  check_shape(kOp, "pointwise_weight", pointwise_weight, {co, channels, 1, 1});
  for (const auto& other : {skip, depthwise_weight, pointwise_weight}) {
    check_same_dtype(kOp, "skip and weights", other, x);
  }
  LITESEG_CHECK(kh <= kMaxKernel && kw <= kMaxKernel, kOp, "depthwise_weight", "a kernel of at most 5 x 5",
                shape_text(depthwise_weight));
  if (bias.has_value()) {
    check_shape(kOp, "bias", *bias, {co});
    check_same_dtype(kOp, "bias", *bias, x);
  }
  const int64_t ho = convolved(skip.size(2), kh, stride[0], padding[0], dilation[0]);
  const int64_t wo = convolved(skip.size(3), kw, stride[1], padding[1], dilation[1]);
  const DeviceScope scope(x);
  const Tensor out = empty_map(scope, {x.size(0), co, ho, wo}, x.scalar_type(), is_channels_last(skip));
  if (out.numel() == 0) {
    return out;
  }
  SeparableCall call{kOp,          {}, stride,
                     std::nullopt, {}, {static_cast<int>(activation), static_cast<float>(negative_slope)}};
  call.branches.push_back(
      {dense(depthwise_weight), std::nullopt, pointwise_weight, dense(bias), padding, dilation, out});
  dispatch_math(kOp, "x", x.scalar_type(), allow_tf32, [&](auto math) {
    using T = typename decltype(math)::Element;
    UpsampledInput<T> input{map_of<const T>(x), map_of<const T>(skip), scale_of(x.size(2), skip.size(2), align_corners),
                            scale_of(x.size(3), skip.size(3), align_corners), align_corners};
    launch_separable<decltype(math)>(call, input, {}, scope);
  });
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(liteseg_cuda, LITESEG_DEVICE_KEY, m) {
  m.impl("upsample_concat_separable_conv2d", TORCH_BOX(&upsample_concat_separable_conv2d));
}

}  // namespace
}  // namespace liteseg
