// preprocess - uint8 picture -> bilinear resize (half-pixel centres) -> / 255, - mean, / std, in one launch.
// Replaces: permute, cast, F.interpolate, three elementwise operations and a cast; the float picture is never stored
// Shapes:   image [N, H, W, C] uint8, any strides -> out [N, C, HO, WO], NCHW or channels_last
// Traffic:  minimum N*C*H*W + N*C*HO*WO * sizeof(T); eager moves about 10 * N*C*HO*WO floats more
// Bound:    the launch itself at batch 1, then memory
// Launch:   grid (blocks of 128 columns, rows, images), 128 threads, a thread an output pixel; up to 8 channels a launch
// Numerics: float32 coordinates by PyTorch's rules and float32 values, rounded once; mean and std become a factor and an
//           offset in double precision on the host. Deterministic
// Limits:   to float32, float16, bfloat16
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <liteseg/bilinear.cuh>
#include <liteseg/launch.cuh>
#include <liteseg/ptx.cuh>
#include <liteseg/tensors.cuh>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "common/check.h"
#include "common/dispatch.h"

namespace liteseg {
namespace {

constexpr char kOp[] = "preprocess";
constexpr int kThreads = 128;
constexpr int kChannels = 8;
// of a grid along y and z
constexpr int64_t kMostBlocks = 65535;

template <typename T>
struct Arguments {
  Map<const uint8_t> image;  // [N, C, H, W]
  Map<T> out;                // [N, C, HO, WO]
  int images;
  float scale_h, scale_w;
  bool resizes;
  float factor[kChannels], offset[kChannels];
};

// No pointer is __restrict__: see upsample_argmax.cu.
template <typename T>
__global__ void __launch_bounds__(kThreads) preprocess_kernel(const __grid_constant__ Arguments<T> g) {
  wait_for_predecessor();
  release_successor();
  const int x = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  if (x >= g.out.width) {
    return;
  }
  const Neighbours column = neighbours(x, g.image.width, g.scale_w, false);
  const int64_t left = column.first * g.image.stride_w, right = column.second * g.image.stride_w;
  for (int n = static_cast<int>(blockIdx.z); n < g.images; n += static_cast<int>(gridDim.z)) {
    for (int y = static_cast<int>(blockIdx.y); y < g.out.height; y += static_cast<int>(gridDim.y)) {
      const Neighbours row = neighbours(y, g.image.height, g.scale_h, false);
      const uint8_t* upper = g.image.data + n * g.image.stride_n + row.first * g.image.stride_h;
      const uint8_t* lower = g.image.data + n * g.image.stride_n + row.second * g.image.stride_h;
      T* to = g.out.data + n * g.out.stride_n + y * g.out.stride_h + x * g.out.stride_w;
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        if (c < g.out.channels) {
          float value = static_cast<float>(upper[left]);
          if (g.resizes) {
            const float above = value + column.weight * (static_cast<float>(upper[right]) - value);
            value = static_cast<float>(lower[left]);
            const float below = value + column.weight * (static_cast<float>(lower[right]) - value);
            value = above + row.weight * (below - above);
          }
          *to = T(fmaf(value, g.factor[c], g.offset[c]));
          upper += g.image.stride_c;
          lower += g.image.stride_c;
          to += g.out.stride_c;
        }
      }
    }
  }
}

Tensor preprocess(Tensor image, std::vector<int64_t> size, std::vector<double> mean, std::vector<double> std,
                  torch::headeronly::ScalarType dtype, bool channels_last) {
  LITESEG_CHECK(on_device(image), kOp, "image", "a tensor on the device of this library", "another device");
  check_4d(kOp, "image", image);
  LITESEG_CHECK(image.scalar_type() == ScalarType::Byte, kOp, "image", "uint8", dtype_text(image.scalar_type()));
  LITESEG_CHECK(image.size(1) >= 1 && image.size(2) >= 1, kOp, "image", "H, W >= 1", shape_text(image));
  LITESEG_CHECK(size.size() == 2 && size[0] >= 1 && size[1] >= 1, kOp, "size", "2 numbers of at least 1", size.size());
  const int64_t channels = image.size(3);
  for (const std::vector<double>* values : {&mean, &std}) {
    LITESEG_CHECK(static_cast<int64_t>(values->size()) == channels, kOp, "mean and std", text(channels, " numbers"),
                  values->size());
  }
  for (const int64_t side : {image.size(0), image.size(1), image.size(2), size[0], size[1]}) {
    LITESEG_CHECK(side < int64_t{1} << 31, kOp, "image and size", "less than 2^31 along each side", side);
  }
  const DeviceScope scope(image);
  const Tensor out = empty_map(scope, {image.size(0), channels, size[0], size[1]}, dtype, channels_last);
  if (out.numel() == 0) {
    return out;
  }
  dispatch_floating(kOp, "dtype", dtype, [&](auto element) {
    using T = decltype(element);
    Arguments<T> g{};
    g.image.data = image.const_data_ptr<uint8_t>();
    g.image.height = static_cast<int>(image.size(1));
    g.image.width = static_cast<int>(image.size(2));
    g.image.stride_n = image.stride(0);
    g.image.stride_h = image.stride(1);
    g.image.stride_w = image.stride(2);
    g.image.stride_c = image.stride(3);
    g.out = map_of<T>(out);
    g.images = static_cast<int>(image.size(0));
    g.scale_h = scale_of(image.size(1), size[0], false);
    g.scale_w = scale_of(image.size(2), size[1], false);
    g.resizes = image.size(1) != size[0] || image.size(2) != size[1];
    const dim3 grid(static_cast<unsigned>((size[1] + kThreads - 1) / kThreads),
                    static_cast<unsigned>(std::min(size[0], kMostBlocks)),
                    static_cast<unsigned>(std::min(image.size(0), kMostBlocks)));
    for (int64_t first = 0; first < channels; first += kChannels) {
      g.out.channels = static_cast<int>(std::min<int64_t>(kChannels, channels - first));
      for (int c = 0; c < g.out.channels; ++c) {
        g.factor[c] = static_cast<float>(1.0 / (255.0 * std[first + c]));
        g.offset[c] = static_cast<float>(-mean[first + c] / std[first + c]);
      }
      launch_early(preprocess_kernel<T>, grid, dim3(kThreads), 0, 1, scope, g);
      g.image.data += kChannels * g.image.stride_c;
      g.out.data += kChannels * g.out.stride_c;
    }
  });
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(liteseg_cuda, LITESEG_DEVICE_KEY, m) {
  m.impl("preprocess", TORCH_BOX(&preprocess));
}

}  // namespace
}  // namespace liteseg
