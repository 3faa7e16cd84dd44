// The parts that the fused convolutions are made of. A block owns a tile of up to 64 output pixels and walks over the
// input channels in chunks of 64 bytes: the slots (input pixels) that the tile's taps need and a block of the pointwise
// matrix are copied to shared memory while the chunk before is worked on; the depthwise convolution runs in registers
// and leaves one matrix operand [64 pixels][chunk]; tensor cores add its product to accumulators in registers.
//
// Rows of every tile in shared memory lie 80 bytes apart: the eight 16-byte rows of one ldmatrix touch all banks once.
#pragma once

#include <liteseg/launch.cuh>
#include <liteseg/ptx.cuh>

#include <cstdint>

#include "common/dispatch.h"

namespace liteseg {

constexpr int kTilePixels = 64;
constexpr int kVectorsOfChunk = 4;
constexpr int kStages = 2;
constexpr int kMaxKernel = 5;

// how values are stored and multiplied; sums are float32 always
struct Fp16 {
  using Element = Half;
  static constexpr bool kTensorCores = true;
};
struct Bf16 {
  using Element = BFloat16;
  static constexpr bool kTensorCores = true;
};
struct Fp32 {
  using Element = float;
  static constexpr bool kTensorCores = false;
};
struct Tf32 {
  using Element = float;
  static constexpr bool kTensorCores = true;
};

template <typename T>
struct Shape {
  static constexpr int kVector = 16 / static_cast<int>(sizeof(T));
  static constexpr int kChunk = kVectorsOfChunk * kVector;
  static constexpr int kPitch = kChunk + kVector;
};

template <typename T>
struct alignas(16) Vector {
  T values[16 / sizeof(T)];
};

// the host's side of SharedCarver
class SharedMeter {
 public:
  template <typename T>
  __host__ __device__ T* take(int64_t count) {
    bytes_ += (count * static_cast<int64_t>(sizeof(T)) + 15) / 16 * 16;
    return nullptr;
  }

  int64_t bytes() const {
    return bytes_;
  }

 private:
  int64_t bytes_ = 0;
};

// an image batch [N, C, H, W] of any strides; `vector`: channels are adjacent, in aligned groups of 16 bytes
template <typename T>
struct Map {
  T* data;
  int64_t stride_n, stride_c, stride_h, stride_w;
  int channels, height, width;
  bool vector;
};

// [rows, columns] of any strides; `vector`: columns are adjacent, in aligned groups of 16 bytes
template <typename T>
struct Matrix {
  const T* data;
  int64_t row_stride, column_stride;
  int rows, columns;
  bool vector;
};

// One axis of a window: the taps of a tile's outputs need `slots` input positions. Where the span of the tile has more
// positions than outputs times taps (a large dilation or stride), only the ones needed are kept: `packed`.
struct Axis {
  int kernel, stride, padding, dilation;
  int tile;
  int slots, step, tap;
  bool packed;

  // input position of a slot, counted from the first output's first tap
  __host__ __device__ int position(int slot) const {
    return packed ? slot % tile * stride + slot / tile * dilation : slot;
  }
};

inline Axis make_axis(int kernel, int stride, int padding, int dilation, int tile) {
  const int64_t span = int64_t{tile - 1} * stride + int64_t{kernel - 1} * dilation + 1;
  const bool packed = span > int64_t{tile} * kernel;
  return {kernel,
          stride,
          padding,
          dilation,
          tile,
          packed ? tile * kernel : static_cast<int>(span),
          packed ? 1 : stride,
          packed ? tile : dilation,
          packed};
}

struct Window {
  Axis y, x;

  __host__ __device__ int slots() const {
    return y.slots * x.slots;
  }
  __host__ __device__ int taps() const {
    return y.kernel * x.kernel;
  }
  __host__ __device__ int pixels() const {
    return y.tile * x.tile;
  }
};

struct Activation {
  // the index in _checks.ACTIVATIONS
  int kind;
  float slope;

  __device__ float operator()(float z) const {
    // comparisons that leave a NaN as it is
    if (kind == 1) {
      return z < 0.0f ? 0.0f : z;
    }
    if (kind == 2) {
      return z < 0.0f ? 0.0f : (z > 6.0f ? 6.0f : z);
    }
    if (kind == 3) {
      return z < 0.0f ? z * slope : z;
    }
    return z;
  }

  // the gradient before the activation from its output; zero at the kinks, as torch has it
  __device__ float gradient(float grad, float output) const {
    if (kind == 1) {
      return output > 0.0f ? grad : 0.0f;
    }
    if (kind == 2) {
      return output > 0.0f && output < 6.0f ? grad : 0.0f;
    }
    if (kind == 3) {
      return output > 0.0f ? grad : grad * slope;
    }
    return grad;
  }
};

// where a tile lies in the output
struct Place {
  int image, y, x;
};

__device__ inline Place place_of(int64_t tile, int height, int width, int tile_height, int tile_width) {
  const int across = (width + tile_width - 1) / tile_width;
  const int64_t per_image = static_cast<int64_t>((height + tile_height - 1) / tile_height) * across;
  const int within = static_cast<int>(tile % per_image);
  return {static_cast<int>(tile / per_image), within / across * tile_height, within % across * tile_width};
}

// offset inside an image of each slot of a window, or -1 outside of it
template <int kThreads, typename T>
__device__ void locate_slots(int64_t* offsets, const Map<T>& map, const Window& window, const Place& place,
                             int thread) {
  const int top = place.y * window.y.stride - window.y.padding, left = place.x * window.x.stride - window.x.padding;
  for (int slot = thread; slot < window.slots(); slot += kThreads) {
    const int y = top + window.y.position(slot / window.x.slots), x = left + window.x.position(slot % window.x.slots);
    const bool inside = y >= 0 && y < map.height && x >= 0 && x < map.width;
    offsets[slot] = inside ? y * map.stride_h + x * map.stride_w : -1;
  }
}

// 16 bytes of a row, element by element: [first, ...), zeros from `count` on
template <typename T>
__device__ Vector<T> gather(const T* row, int64_t stride, int first, int count) {
  Vector<T> vector;
#pragma unroll
  for (int i = 0; i < Shape<T>::kVector; ++i) {
    vector.values[i] = first + i < count ? row[(first + i) * stride] : T(0.0f);
  }
  return vector;
}

// A chunk of channels of all slots of one image, as it is in memory.
template <typename T, int kThreads>
struct MapSource {
  Map<const T> map;
  const T* image;
  // [slots], in shared memory
  const int64_t* offsets;
  int slots;

  // the matrix operand of a chunk where no depthwise convolution lies before it
  __device__ const T* operand(const T* tile, int) const {
    return tile;
  }

  __device__ void fill(T* tile, int first, int thread) const {
    using S = Shape<T>;
    for (int unit = thread; unit < slots * kVectorsOfChunk; unit += kThreads) {
      const int slot = unit / kVectorsOfChunk, c = first + unit % kVectorsOfChunk * S::kVector;
      T* to = tile + slot * S::kPitch + unit % kVectorsOfChunk * S::kVector;
      const int64_t offset = offsets[slot];
      if (map.vector) {
        const bool read = offset >= 0 && c < map.channels;
        cp_async16(to, read ? image + offset + c : image, read);
      } else {
        *reinterpret_cast<Vector<T>*>(to) = gather(image + offset, map.stride_c, c, offset >= 0 ? map.channels : 0);
      }
    }
  }
};

// rows [first_row, first_row + rows) and a chunk of columns of a matrix, zeros beyond its ends
template <int kThreads, typename T>
__device__ void fill_matrix(T* tile, const Matrix<T>& matrix, int first_row, int rows, int first_column, int thread) {
  using S = Shape<T>;
  for (int unit = thread; unit < rows * kVectorsOfChunk; unit += kThreads) {
    const int row = first_row + unit / kVectorsOfChunk;
    const int column = first_column + unit % kVectorsOfChunk * S::kVector;
    T* to = tile + unit / kVectorsOfChunk * S::kPitch + unit % kVectorsOfChunk * S::kVector;
    const T* from = matrix.data + row * matrix.row_stride;
    if (matrix.vector) {
      const bool read = row < matrix.rows && column < matrix.columns;
      cp_async16(to, read ? from + column : matrix.data, read);
    } else {
      *reinterpret_cast<Vector<T>*>(to) =
          gather(from, matrix.column_stride, column, row < matrix.rows ? matrix.columns : 0);
    }
  }
}

// Brings a contiguous matrix into L2, each block of the grid a part: for the time before wait_for_predecessor.
template <int kThreads, typename T>
__device__ void prefetch_matrix(const Matrix<T>& matrix, int thread) {
  if (matrix.column_stride != 1 || matrix.row_stride != matrix.columns) {
    return;
  }
  constexpr int64_t kLine = 128 / static_cast<int64_t>(sizeof(T));
  const int64_t count = int64_t{matrix.rows} * matrix.columns;
  const int64_t blocks = int64_t{gridDim.x} * gridDim.y * gridDim.z;
  const int64_t block = blockIdx.x + gridDim.x * (blockIdx.y + int64_t{gridDim.y} * blockIdx.z);
  for (int64_t i = (block * kThreads + thread) * kLine; i < count; i += blocks * kThreads * kLine) {
    prefetch_l2(matrix.data + i);
  }
}

// a chunk of the depthwise weight [C, 1, KH, KW], contiguous, as floats [tap][chunk]; zeros beyond C
template <int kThreads, typename T>
__device__ void fill_taps(float* taps, const T* weight, int count, int channels, int first, int thread) {
  constexpr int kChunk = Shape<T>::kChunk;
  for (int unit = thread; unit < count * kChunk; unit += kThreads) {
    const int c = first + unit % kChunk;
    taps[unit] = c < channels ? static_cast<float>(weight[static_cast<int64_t>(c) * count + unit / kChunk]) : 0.0f;
  }
}

// What happens to a depthwise value before it is multiplied: + bias [C] (or null), then an activation.
template <typename T>
struct Middle {
  const T* bias;
  Activation activation;
};

// The depthwise convolution of one chunk: [slots][chunk] -> store(pixel, place in the chunk, 16 bytes), rounded to T,
// for 64 pixels. A kernel size other than 0 is known when compiled.
template <int kThreads, int kKernel, typename T, typename Store>
__device__ void depthwise_sized(const Store& store, const T* tile, const float* taps, const Window& window,
                                const Middle<T>& middle, int channels, int first, int thread) {
  using S = Shape<T>;
  constexpr int kUnits = kTilePixels * kVectorsOfChunk / kThreads;
  const int kernel_y = kKernel == 0 ? window.y.kernel : kKernel, kernel_x = kKernel == 0 ? window.x.kernel : kKernel;
  const int part = thread % kVectorsOfChunk * S::kVector;
  int base[kUnits];
  float sum[kUnits][S::kVector];
#pragma unroll
  for (int i = 0; i < kUnits; ++i) {
    const int pixel = min(thread / kVectorsOfChunk + i * (kThreads / kVectorsOfChunk), window.pixels() - 1);
    const int y = pixel / window.x.tile, x = pixel % window.x.tile;
    base[i] = (y * window.y.step * window.x.slots + x * window.x.step) * S::kPitch + part;
#pragma unroll
    for (int c = 0; c < S::kVector; ++c) {
      sum[i][c] = 0.0f;
    }
  }
// one row of taps at a time: all nine loads in flight cost more registers than they hide latency
#pragma unroll 1
  for (int ky = 0; ky < kernel_y; ++ky) {
#pragma unroll
    for (int kx = 0; kx < kernel_x; ++kx) {
      const float* weight = taps + (ky * kernel_x + kx) * S::kChunk + part;
      const int shift = (ky * window.y.tap * window.x.slots + kx * window.x.tap) * S::kPitch;
      Vector<float> w[S::kVector / 4];
#pragma unroll
      for (int c = 0; c < S::kVector / 4; ++c) {
        w[c] = *reinterpret_cast<const Vector<float>*>(weight + 4 * c);
      }
#pragma unroll
      for (int i = 0; i < kUnits; ++i) {
        const Vector<T> x = *reinterpret_cast<const Vector<T>*>(tile + base[i] + shift);
#pragma unroll
        for (int c = 0; c < S::kVector; ++c) {
          sum[i][c] = fmaf(static_cast<float>(x.values[c]), w[c / 4].values[c % 4], sum[i][c]);
        }
      }
    }
  }
#pragma unroll
  for (int i = 0; i < kUnits; ++i) {
    const int pixel = thread / kVectorsOfChunk + i * (kThreads / kVectorsOfChunk);
    Vector<T> result;
#pragma unroll
    for (int c = 0; c < S::kVector; ++c) {
      const bool biased = middle.bias != nullptr && first + part + c < channels;
      const float bias = biased ? static_cast<float>(middle.bias[first + part + c]) : 0.0f;
      // rows of no pixel are zero, so that no product sees what was there before
      result.values[c] = T(pixel < window.pixels() ? middle.activation(sum[i][c] + bias) : 0.0f);
    }
    store(pixel, part, result);
  }
}

// ... into one operand [64 pixels][chunk]
template <int kThreads, typename T>
__device__ void depthwise(T* operand, const T* tile, const float* taps, const Window& window, const Middle<T>& middle,
                          int channels, int first, int thread) {
  const auto store = [operand](int pixel, int part, const Vector<T>& result) {
    *reinterpret_cast<Vector<T>*>(operand + pixel * Shape<T>::kPitch + part) = result;
  };
  if (window.y.kernel == 3 && window.x.kernel == 3) {
    depthwise_sized<kThreads, 3>(store, tile, taps, window, middle, channels, first, thread);
  } else {
    depthwise_sized<kThreads, 0>(store, tile, taps, window, middle, channels, first, thread);
  }
}

// acc[16 rows x 8 * kTiles columns] += a[16 rows][chunk] * b[columns][chunk]^T for one warp. The lane holds, of the
// 16 x 8 tile t, the elements (row lane / 4 + 8 * (e / 2), column lane % 4 * 2 + e % 2) in acc[t][e].
template <typename M, int kTiles>
__device__ void multiply(float (&acc)[kTiles][4], const typename M::Element* a, const typename M::Element* b,
                         int lane) {
  using T = typename M::Element;
  using S = Shape<T>;
  static_assert(kTiles % 2 == 0);
  if constexpr (M::kTensorCores) {
#pragma unroll
    for (int step = 0; step < 2; ++step) {
      const int k = step * 2 * S::kVector;
      uint32_t left[4];
      ldmatrix(left, a + (lane % 16) * S::kPitch + k + lane / 16 * S::kVector);
      if constexpr (sizeof(T) == 4) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          left[i] = to_tf32(left[i]);
        }
      }
#pragma unroll
      for (int t = 0; t < kTiles; t += 2) {
        uint32_t right[4];
        const int column = t * 8 + lane % 8 + lane / 16 * 8;
        ldmatrix(right, b + column * S::kPitch + k + lane / 8 % 2 * S::kVector);
        if constexpr (sizeof(T) == 4) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            right[i] = to_tf32(right[i]);
          }
        }
        mma(acc[t], left, right[0], right[1], T(0.0f));
        mma(acc[t + 1], left, right[2], right[3], T(0.0f));
      }
    }
  } else {
    const T* upper = a + lane / 4 * S::kPitch;
    const T* lower = upper + 8 * S::kPitch;
#pragma unroll 1
    for (int k = 0; k < S::kChunk; k += S::kVector) {
      const Vector<T> above = *reinterpret_cast<const Vector<T>*>(upper + k);
      const Vector<T> below = *reinterpret_cast<const Vector<T>*>(lower + k);
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        const T* column = b + (t * 8 + lane % 4 * 2) * S::kPitch + k;
        const Vector<T> first = *reinterpret_cast<const Vector<T>*>(column);
        const Vector<T> second = *reinterpret_cast<const Vector<T>*>(column + S::kPitch);
#pragma unroll
        for (int i = 0; i < S::kVector; ++i) {
          acc[t][0] = fmaf(above.values[i], first.values[i], acc[t][0]);
          acc[t][1] = fmaf(above.values[i], second.values[i], acc[t][1]);
          acc[t][2] = fmaf(below.values[i], first.values[i], acc[t][2]);
          acc[t][3] = fmaf(below.values[i], second.values[i], acc[t][3]);
        }
      }
    }
  }
}

template <int kTiles>
__device__ void clear(float (&acc)[kTiles][4]) {
#pragma unroll
  for (int t = 0; t < kTiles; ++t) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      acc[t][e] = 0.0f;
    }
  }
}

// f(row, column, value) for each of a lane's accumulators, two adjacent columns after each other
template <int kTiles, typename F>
__device__ void for_each(const float (&acc)[kTiles][4], int lane, const F& f) {
#pragma unroll
  for (int t = 0; t < kTiles; ++t) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      f(lane / 4 + 8 * (e / 2), t * 8 + lane % 4 * 2 + e % 2, acc[t][e]);
    }
  }
}

// the copies of one shared array for each stage of a pipeline; a distance, for an array of pointers would be indexed in
// local memory
template <typename T>
struct Staged {
  T* first;
  int distance;

  __device__ T* operator[](int stage) const {
    return first + stage * distance;
  }
  __host__ __device__ void place(int stage, T* array) {
    if (stage == 0) {
      first = array;
    } else {
      distance = static_cast<int>(array - first);
    }
  }
};

// the shared memory of `accumulate`
template <typename T>
struct Buffers {
  Staged<T> tile, matrix;
  Staged<float> taps;
  T* operand;
  int stages;
};

// `slots`, `taps`: the most that any window has; `columns`: rows of the pointwise matrix, the product's columns
template <typename T, typename Carver>
__host__ __device__ Buffers<T> carve_buffers(Carver& carver, int slots, int taps, int columns, int stages) {
  using S = Shape<T>;
  Buffers<T> buffers{};
  buffers.stages = stages;
  for (int i = 0; i < stages; ++i) {
    buffers.tile.place(i, carver.template take<T>(int64_t{slots} * S::kPitch));
    buffers.matrix.place(i, carver.template take<T>(int64_t{columns} * S::kPitch));
    buffers.taps.place(i, carver.template take<float>(int64_t{taps} * S::kChunk));
  }
  buffers.operand = carver.template take<T>(int64_t{kTilePixels} * S::kPitch);
  return buffers;
}

// Channels [begin, end), not empty, begin a multiple of the chunk.
struct Part {
  int begin, end;
};

// the channels of this block where the blocks of a cluster, along z, share them
template <typename T>
__device__ Part part_of(int channels, int splits) {
  constexpr int kChunk = Shape<T>::kChunk;
  const int chunks = (channels + kChunk - 1) / kChunk, rank = static_cast<int>(blockIdx.z);
  return {chunks * rank / splits * kChunk, min(channels, chunks * (rank + 1) / splits * kChunk)};
}

// One separable convolution of a tile: acc += middle(depthwise(source)) * matrix^T over a part of the channels. Without
// a depthwise weight the window must be 1 x 1 and the slots are multiplied as they are. Rows of the product go to warps
// 4n, 4n + 1, ..., each 16; blocks of 8 * kTiles columns to each four warps. Ends with the buffers still in use: a
// barrier must come before they are written again.
template <typename M, int kTiles, int kThreads, typename Source>
__device__ void accumulate(float (&acc)[kTiles][4], const Buffers<typename M::Element>& buffers, const Source& source,
                           const Window& window, const typename M::Element* depthwise_weight,
                           const Middle<typename M::Element>& middle, const Matrix<typename M::Element>& matrix,
                           int first_row, int thread, const Part& part) {
  using T = typename M::Element;
  using S = Shape<T>;
  constexpr int kColumns = kTiles * 8 * (kThreads / 128);
  const int warp = thread / 32, lane = thread % 32;
  const int channels = part.end;
  const auto fill = [&](int stage, int first) {
    source.fill(buffers.tile[stage], first, thread);
    fill_matrix<kThreads>(buffers.matrix[stage], matrix, first_row, kColumns, first, thread);
    if (depthwise_weight != nullptr) {
      fill_taps<kThreads>(buffers.taps[stage], depthwise_weight, window.taps(), channels, first, thread);
    }
    cp_async_commit();
  };
  if (buffers.stages > 1) {
    fill(0, part.begin);
  }
  int stage = 0;
  for (int first = part.begin; first < channels; first += S::kChunk) {
    if (buffers.stages > 1) {
      cp_async_wait<0>();
      // the chunk is there, and nobody works on the one before it any more
      __syncthreads();
      if (first + S::kChunk < channels) {
        fill(stage ^ 1, first + S::kChunk);
      }
    } else {
      __syncthreads();
      fill(0, first);
      cp_async_wait<0>();
      __syncthreads();
    }
    const T* operand = source.operand(buffers.tile[stage], first);
    if (depthwise_weight != nullptr) {
      depthwise<kThreads>(buffers.operand, buffers.tile[stage], buffers.taps[stage], window, middle, channels, first,
                          thread);
      __syncthreads();
      operand = buffers.operand;
    }
    multiply<M>(acc, operand + warp % 4 * 16 * S::kPitch, buffers.matrix[stage] + warp / 4 * kTiles * 8 * S::kPitch,
                lane);
    stage ^= buffers.stages - 1;
  }
}

template <typename M, int kTiles, int kThreads, typename Source>
__device__ void accumulate(float (&acc)[kTiles][4], const Buffers<typename M::Element>& buffers, const Source& source,
                           const Window& window, const typename M::Element* depthwise_weight,
                           const Middle<typename M::Element>& middle, const Matrix<typename M::Element>& matrix,
                           int first_row, int thread) {
  accumulate<M, kTiles, kThreads>(acc, buffers, source, window, depthwise_weight, middle, matrix, first_row, thread,
                                  {0, matrix.columns});
}

}  // namespace liteseg
