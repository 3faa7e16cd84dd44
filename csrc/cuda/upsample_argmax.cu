// upsample_argmax - bilinear upsampling of class scores and the argmax over the classes, in one pass.
// Replaces: F.interpolate(logits, size, mode="bilinear") + argmax(1) (writes and reads the full-size scores once each)
// Shapes:   logits [N, K, h, w], any strides, 1 <= K <= 256 -> labels [N, H, W] uint8, contiguous
// Traffic:  minimum N*K*h*w*sizeof(T) + N*H*W bytes; eager moves 2*N*K*H*W*sizeof(T) + 7*N*H*W more
// Bound:    instructions: an output pixel takes K weighted sums of two values. 11.1 us at 360 x 640 on an H200, alone.
// Launch:   one thread an output pixel, 32 x 8 tiles, a grid of at most 2^16 blocks that walks over the tiles of all
//           images. The source rows of a tile are first resized along x, once for its 8 rows, into 4 * 32 * K bytes of
//           shared memory a row (10 KB at K = 19 and 4 times the size): 12 loads of 2 bytes a pixel instead of 76.
//           Where they do not fit into 48 KB (many classes, or a smaller output) each thread reads its four neighbours
// Numerics: coordinates, weights and interpolation in float32 by PyTorch's rules for both align_corners; the scores are
//           not rounded to T after the interpolation. Equal scores: the lowest class. A NaN beats every number, and the
//           first NaN wins, as in torch.argmax. One thread owns a pixel: deterministic.
// Limits:   float32, float16, bfloat16; offsets are 64-bit where the tensors need it
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/HeaderOnlyArrayRef.h>

#include <liteseg/bilinear.cuh>
#include <liteseg/launch.cuh>
#include <liteseg/ptx.cuh>

#include <algorithm>
#include <cstdint>
#include <optional>

#include "common/check.h"
#include "common/dispatch.h"

namespace liteseg {
namespace {

using torch::stable::Tensor;

constexpr char kOp[] = "upsample_argmax";

struct Traits {
  static constexpr int kTileWidth = 32;
  static constexpr int kTileHeight = 8;
  static constexpr int64_t kMaxBlocks = int64_t{1} << 16;
};

template <typename Index>
struct Geometry {
  Index batch, classes, in_height, in_width, out_height, out_width;
  Index stride_n, stride_c, stride_h, stride_w;
  float scale_h, scale_w;
};

// the best class so far
struct Best {
  float score = 0.0f;
  int label = -1;

  __device__ void meet(float other, int k) {
    // true for a larger score and for the first NaN; nothing replaces a NaN
    if (label < 0 || (!(other <= score) && score == score)) {
      score = other;
      label = k;
    }
  }
};

// kStaged: `rows` source rows of a tile, resized along x, fit into shared memory. No pointer is __restrict__: a load
// through the read-only cache may see what was there before the kernel in front of an early launch has ended.
template <typename T, typename Index, bool kStaged>
__global__ void __launch_bounds__(Traits::kTileWidth* Traits::kTileHeight)
    upsample_argmax_kernel(const T* logits,  // [N, K, h, w], strides in geometry
                           uint8_t* labels,  // [N, H, W]
                           const __grid_constant__ Geometry<Index> g, bool align_corners, int rows) {
  SharedCarver carver;
  // [rows][K][tile width]
  float* resized = kStaged ? carver.take<float>(int64_t{rows} * g.classes * Traits::kTileWidth) : nullptr;
  const int thread_x = static_cast<int>(threadIdx.x), thread_y = static_cast<int>(threadIdx.y);
  const int classes = static_cast<int>(g.classes);
  wait_for_predecessor();
  release_successor();
  const Index tiles_x = (g.out_width + Traits::kTileWidth - 1) / Traits::kTileWidth;
  const Index tiles_y = (g.out_height + Traits::kTileHeight - 1) / Traits::kTileHeight;
  const int64_t tiles = static_cast<int64_t>(tiles_x) * tiles_y * g.batch;
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const Index tile_x = static_cast<Index>(tile % tiles_x);
    const Index tile_y = static_cast<Index>(tile / tiles_x % tiles_y);
    const Index n = static_cast<Index>(tile / tiles_x / tiles_y);
    const Index top = tile_y * Traits::kTileHeight, x = tile_x * Traits::kTileWidth + static_cast<Index>(thread_x);
    const Index y = top + static_cast<Index>(thread_y);
    const bool inside = x < g.out_width && y < g.out_height;
    // threads beyond the image help with its last column and row
    const Neighbours column = neighbours(min(x, g.out_width - 1), g.in_width, g.scale_w, align_corners);
    const Neighbours row = neighbours(min(y, g.out_height - 1), g.in_height, g.scale_h, align_corners);
    const T* image = logits + n * g.stride_n;
    const Index left = static_cast<Index>(column.first) * g.stride_w;
    const Index right = static_cast<Index>(column.second) * g.stride_w;
    const float below = row.weight, above = 1.0f - below;
    const float after = column.weight, before = 1.0f - after;
    const auto along_x = [&](const T* line) {
      return before * static_cast<float>(line[left]) + after * static_cast<float>(line[right]);
    };
    Best best;
    if constexpr (kStaged) {
      const Index first = static_cast<Index>(neighbours(top, g.in_height, g.scale_h, align_corners).first);
      const Index last = static_cast<Index>(
          neighbours(min(top + Traits::kTileHeight, g.out_height) - 1, g.in_height, g.scale_h, align_corners).second);
      for (Index line = first; line <= last; ++line) {
        float* to = resized + static_cast<int>(line - first) * classes * Traits::kTileWidth + thread_x;
        const T* from = image + line * g.stride_h;
#pragma unroll 4
        for (int k = thread_y; k < classes; k += Traits::kTileHeight) {
          to[k * Traits::kTileWidth] = along_x(from + static_cast<Index>(k) * g.stride_c);
        }
      }
      __syncthreads();
      const float* upper =
          resized + (static_cast<int>(row.first) - static_cast<int>(first)) * classes * Traits::kTileWidth + thread_x;
      const float* lower =
          resized + (static_cast<int>(row.second) - static_cast<int>(first)) * classes * Traits::kTileWidth + thread_x;
#pragma unroll 4
      for (int c = 0; c < classes; ++c) {
        best.meet(above * upper[c * Traits::kTileWidth] + below * lower[c * Traits::kTileWidth], c);
      }
      // the next tile writes where this one has just read
      __syncthreads();
    } else {
      const T *upper = image + static_cast<Index>(row.first) * g.stride_h,
              *lower = image + static_cast<Index>(row.second) * g.stride_h;
      for (int c = 0; c < classes; ++c, upper += g.stride_c, lower += g.stride_c) {
        best.meet(above * along_x(upper) + below * along_x(lower), c);
      }
    }
    if (inside) {
      labels[(static_cast<int64_t>(n) * g.out_height + y) * g.out_width + x] = static_cast<uint8_t>(best.label);
    }
  }
}

template <typename T, typename Index>
void launch_upsample_argmax(const Tensor& logits, const Tensor& labels, bool align_corners, const DeviceScope& scope) {
  Geometry<Index> g;
  g.batch = static_cast<Index>(logits.size(0));
  g.classes = static_cast<Index>(logits.size(1));
  g.in_height = static_cast<Index>(logits.size(2));
  g.in_width = static_cast<Index>(logits.size(3));
  g.out_height = static_cast<Index>(labels.size(1));
  g.out_width = static_cast<Index>(labels.size(2));
  g.stride_n = static_cast<Index>(logits.stride(0));
  g.stride_c = static_cast<Index>(logits.stride(1));
  g.stride_h = static_cast<Index>(logits.stride(2));
  g.stride_w = static_cast<Index>(logits.stride(3));
  g.scale_h = scale_of(logits.size(2), labels.size(1), align_corners);
  g.scale_w = scale_of(logits.size(3), labels.size(2), align_corners);
  const int64_t tiles_x = (labels.size(2) + Traits::kTileWidth - 1) / Traits::kTileWidth;
  const int64_t tiles_y = (labels.size(1) + Traits::kTileHeight - 1) / Traits::kTileHeight;
  const int64_t blocks = std::min(tiles_x * tiles_y * labels.size(0), Traits::kMaxBlocks);
  constexpr int64_t kLine = Traits::kTileWidth * sizeof(float);
  const auto run = [&](auto staged, int64_t rows) {
    constexpr bool kStaged = decltype(staged)::value;
    launch_early(upsample_argmax_kernel<T, Index, kStaged>, dim3(static_cast<unsigned>(blocks)),
                 dim3(Traits::kTileWidth, Traits::kTileHeight), rows * logits.size(1) * kLine, 1, scope,
                 logits.const_data_ptr<T>(), labels.mutable_data_ptr<uint8_t>(), g, align_corners,
                 static_cast<int>(rows));
  };
  // the span of a tile's rows in the source, and a row of rounding at either end
  const int64_t rows = std::min<int64_t>(
      static_cast<int64_t>(g.scale_h * static_cast<float>(Traits::kTileHeight - 1)) + 4, logits.size(2));
  if (rows * logits.size(1) * kLine <= kFreeShared) {
    run(std::true_type{}, rows);
  } else {
    run(std::false_type{}, 0);
  }
}

// the largest element offset that the kernel forms in a tensor, or its largest position where that is more
int64_t largest_offset(const Tensor& tensor) {
  int64_t offset = 0;
  for (int64_t i = 0; i < tensor.dim(); ++i) {
    offset += (tensor.size(i) - 1) * tensor.stride(i);
  }
  return offset;
}

Tensor upsample_argmax(const Tensor& logits, torch::headeronly::HeaderOnlyArrayRef<int64_t> size, bool align_corners) {
  LITESEG_CHECK(on_device(logits), kOp, "logits", "a tensor on the device of this library", "another device");
  LITESEG_CHECK(logits.dim() == 4, kOp, "logits", "4 dimensions [N, K, h, w]", shape_text(logits));
  LITESEG_CHECK(logits.size(1) >= 1 && logits.size(1) <= 256, kOp, "logits", "1 to 256 classes", logits.size(1));
  LITESEG_CHECK(logits.size(2) >= 1 && logits.size(3) >= 1, kOp, "logits", "h, w >= 1", shape_text(logits));
  LITESEG_CHECK(size.size() == 2, kOp, "size", "2 numbers", size.size());
  LITESEG_CHECK(size[0] >= 1 && size[1] >= 1, kOp, "size", "H, W >= 1", text(size[0], " x ", size[1]));

  const int64_t batch = logits.size(0);
  const Tensor labels =
      torch::stable::new_empty(logits, {batch, size[0], size[1]}, torch::headeronly::ScalarType::Byte);
  if (batch == 0) {
    return labels;
  }
  const DeviceScope scope(logits);
  dispatch_floating(kOp, "logits", logits.scalar_type(), [&](auto element) {
    // tile counts round up, so a tile's positions may pass the image by less than one tile
    const int64_t largest = std::max(largest_offset(logits), labels.numel()) + Traits::kTileWidth;
    dispatch_index(largest, [&](auto index) {
      launch_upsample_argmax<decltype(element), decltype(index)>(logits, labels, align_corners, scope);
    });
  });
  return labels;
}

STABLE_TORCH_LIBRARY_IMPL(liteseg_cuda, LITESEG_DEVICE_KEY, m) {
  m.impl("upsample_argmax", TORCH_BOX(&upsample_argmax));
}

}  // namespace
}  // namespace liteseg
