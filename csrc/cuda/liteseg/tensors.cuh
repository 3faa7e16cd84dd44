// Between torch's tensors and the arguments of the kernels: host code only.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/core/MemoryFormat.h>

#include <liteseg/tile.cuh>

#include <algorithm>
#include <limits>
#include <optional>
#include <vector>

#include "common/dispatch.h"
#include "common/tensors.h"

namespace liteseg {

inline bool aligned16(const Tensor& t) {
  return reinterpret_cast<uintptr_t>(t.const_data_ptr()) % 16 == 0;
}

template <typename T>
Map<T> map_of(const Tensor& t) {
  constexpr int64_t kVector = Shape<std::remove_const_t<T>>::kVector;
  bool vector = aligned16(t) && t.size(1) % kVector == 0 && t.stride(1) == 1;
  for (const int64_t d : {0, 2, 3}) {
    vector = vector && (t.size(d) == 1 || t.stride(d) % kVector == 0);
  }
  T* data = static_cast<T*>(t.mutable_data_ptr());
  return {data,
          t.stride(0),
          t.stride(1),
          t.stride(2),
          t.stride(3),
          static_cast<int>(t.size(1)),
          static_cast<int>(t.size(2)),
          static_cast<int>(t.size(3)),
          vector};
}

// columns [first, first + columns) of a pointwise weight [rows, C, 1, 1]
template <typename T>
Matrix<T> matrix_of(const Tensor& weight, int64_t first = 0, int64_t columns = -1) {
  constexpr int64_t kVector = Shape<T>::kVector;
  columns = columns < 0 ? weight.size(1) - first : columns;
  const T* data = static_cast<const T*>(weight.const_data_ptr()) + first * weight.stride(1);
  const bool vector = reinterpret_cast<uintptr_t>(data) % 16 == 0 && columns % kVector == 0 && weight.stride(1) == 1 &&
                      (weight.size(0) == 1 || weight.stride(0) % kVector == 0);
  return {data,  weight.stride(0), weight.stride(1), static_cast<int>(weight.size(0)), static_cast<int>(columns),
          vector};
}

template <typename T>
Matrix<T> transposed(const Matrix<T>& matrix) {
  return {matrix.data, matrix.column_stride, matrix.row_stride, matrix.columns, matrix.rows, false};
}

// the same values, contiguous
inline Tensor dense(const Tensor& t) {
  int64_t stride = 1;
  for (int64_t d = t.dim(); d-- > 0;) {
    if (t.size(d) > 1 && t.stride(d) != stride) {
      return torch::stable::contiguous(t);
    }
    stride *= t.size(d);
  }
  return t;
}

inline std::optional<Tensor> dense(const std::optional<Tensor>& t) {
  return t.has_value() ? std::optional<Tensor>(dense(*t)) : std::nullopt;
}

template <typename T>
const T* pointer(const std::optional<Tensor>& t) {
  return t.has_value() ? static_cast<const T*>(t->const_data_ptr()) : nullptr;
}

inline Tensor empty_map(const DeviceScope& scope, const std::vector<int64_t>& shape, ScalarType dtype,
                        bool channels_last) {
  using torch::headeronly::MemoryFormat;
  return torch::stable::empty({shape.data(), shape.size()}, dtype, std::nullopt, scope.device(), std::nullopt,
                              channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

inline Tensor empty_dense(const DeviceScope& scope, const std::vector<int64_t>& shape, ScalarType dtype) {
  return torch::stable::empty({shape.data(), shape.size()}, dtype, std::nullopt, scope.device());
}

// positions and channels are ints inside the kernels, offsets are not
inline void check_sizes(const char* op, const char* argument, const Tensor& t) {
  check_4d(op, argument, t);
  for (int64_t d = 0; d < 4; ++d) {
    LITESEG_CHECK(t.size(d) < std::numeric_limits<int32_t>::max() / 64, op, argument, "each size below 2^25",
                  shape_text(t));
  }
}

inline int64_t convolved(int64_t size, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation) {
  return (size + 2 * padding - dilation * (kernel - 1) - 1) / stride + 1;
}

// a tile of `pixels` outputs, square unless the map is flat
inline Window make_window(const Tensor& out, int pixels, const std::vector<int64_t>& kernel,
                          const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                          const std::vector<int64_t>& dilation) {
  int tile_height = pixels >= 64 ? 8 : pixels >= 16 ? 4 : pixels >= 4 ? 2 : 1;  // 32: 4 x 8
  while (tile_height > 1 && tile_height / 2 >= out.size(2)) {
    tile_height /= 2;
  }
  const auto axis = [&](size_t i, int tile) {
    return make_axis(static_cast<int>(kernel[i]), static_cast<int>(stride[i]), static_cast<int>(padding[i]),
                     static_cast<int>(dilation[i]), tile);
  };
  return {axis(0, tile_height), axis(1, pixels / tile_height)};
}

inline int64_t tiles_of(const Tensor& out, const Window& window) {
  const auto up = [](int64_t size, int64_t tile) { return (size + tile - 1) / tile; };
  return out.size(0) * up(out.size(2), window.y.tile) * up(out.size(3), window.x.tile);
}

template <typename F>
void dispatch_math(const char* op, const char* argument, ScalarType dtype, bool allow_tf32, const F& f) {
  dispatch_floating(op, argument, dtype, [&](auto element) {
    using T = decltype(element);
    if constexpr (std::is_same_v<T, Half>) {
      f(Fp16{});
    } else if constexpr (std::is_same_v<T, BFloat16>) {
      f(Bf16{});
    } else if (allow_tf32) {
      f(Tf32{});
    } else {
      f(Fp32{});
    }
  });
}

// One way to launch a kernel, as it is weighed against others: bytes of shared memory a block, blocks (before a cluster
// shares the work of each), and for one block the cycles that its warps need if they never wait for a scheduler, and
// those that the four schedulers are busy with it: of each chunk, and of everything around the chunks. They come from
// the machine code of sm_90 (tests/aot/sass.py), rounded; what matters is how they compare.
struct Attempt {
  int64_t bytes, blocks;
  double chunk_latency, chunk_issue, fixed_latency, fixed_issue;
};

struct Fit {
  int pixels, splits, stages;
  int64_t bytes;
};

// cycles from the issue of a copy to its arrival from L2, and of a cluster's two barriers with the sum between them
constexpr double kCopyLatency = 800, kClusterLatency = 2000;

inline double predicted_cycles(const Attempt& attempt, const DeviceScope& scope, int resident, int64_t chunks,
                               int splits, int stages) {
  const auto up = [](int64_t a, int64_t b) { return static_cast<double>((a + b - 1) / b); };
  const int64_t blocks = attempt.blocks * splits, multiprocessors = scope.multiprocessors();
  const int64_t together = std::clamp<int64_t>(scope.max_shared() / std::max<int64_t>(attempt.bytes, 1), 1, resident);
  const double of_block = up(chunks, splits);
  // a copy has the time of the chunks that are worked on before its own
  const double exposed = std::max(0.0, kCopyLatency - (stages - 1) * attempt.chunk_latency);
  const double latency = attempt.fixed_latency + kCopyLatency + of_block * (attempt.chunk_latency + exposed) +
                         (splits > 1 ? kClusterLatency : 0.0);
  const double issue = attempt.fixed_issue + of_block * attempt.chunk_issue;
  return std::max(up(blocks, multiprocessors * together) * latency, up(blocks, multiprocessors) * issue);
}

// Calls attempt(pixels, splits, stages) for tiles of 64 pixels and fewer, sums of `chunks` shared by up to
// `most_splits` blocks and one to `most_stages` chunks in shared memory, and once more for the fastest that fits.
// `resident`: blocks that a multiprocessor has registers for.
template <typename Kernel, typename F>
Fit fit_launch(const char* op, const DeviceScope& scope, Kernel* kernel, int threads, int resident, int64_t chunks,
               int most_splits, int most_stages, const F& attempt) {
  Fit best{0, 1, 1, 0};
  double least = std::numeric_limits<double>::infinity();
  for (const int pixels : {64, 32, 16, 4, 1}) {
    for (int splits = 1; splits <= most_splits && splits <= chunks; splits *= 2) {
      for (int stages = std::min<int>(most_stages, static_cast<int>((chunks + splits - 1) / splits)); stages >= 1;
           --stages) {
        const Attempt found = attempt(pixels, splits, stages);
        if (splits > 1 && found.blocks * splits > scope.multiprocessors()) {
          break;
        }
        if (found.bytes > scope.max_shared()) {
          continue;
        }
        const double cycles = predicted_cycles(found, scope, resident, chunks, splits, stages);
        if (cycles < least) {
          least = cycles;
          best = {pixels, splits, stages, found.bytes};
        }
      }
    }
  }
  LITESEG_CHECK(best.pixels > 0, op, "x",
                text("channels and a kernel that fit ", scope.max_shared(), " bytes of shared memory"), "more");
  // clusters that do not run at the same time, as on a part of a device, would follow each other
  while (best.splits > 1 && scope.active_clusters(kernel, threads, best.bytes, best.splits) <
                                attempt(best.pixels, best.splits, best.stages).blocks) {
    best.splits /= 2;
    best.bytes = attempt(best.pixels, best.splits, best.stages).bytes;
  }
  attempt(best.pixels, best.splits, best.stages);
  return best;
}

}  // namespace liteseg
