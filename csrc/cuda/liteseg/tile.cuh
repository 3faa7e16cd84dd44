// The parts that the fused convolutions are made of. A block owns a tile of up to 64 output pixels and walks over the
// input channels in chunks of 64 bytes: the slots (input pixels) that the tile's taps need and a block of the pointwise
// matrix are copied to shared memory while the chunks before are worked on; the depthwise convolution runs in registers
// and leaves one matrix operand [64 pixels][chunk]; tensor cores add its product to accumulators in registers.
//
// Rows of every tile in shared memory lie 80 bytes apart: the eight 16-byte rows of one ldmatrix touch all banks once.
#pragma once

#include <liteseg/launch.cuh>
#include <liteseg/ptx.cuh>

#include <cmath>
#include <cstdint>
#include <cstring>

#include "common/dispatch.h"

namespace liteseg {

constexpr int kTilePixels = 64;
constexpr int kVectorsOfChunk = 4;
// chunks in shared memory at a time: the one worked on and those that are on their way
constexpr int kMaxStages = 3;
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

template <typename T>
struct alignas(2 * sizeof(T)) Pair {
  T values[2];
};

template <typename T>
__device__ Pair<T> rounded(float first, float second) {
  Pair<T> pair;
  if constexpr (sizeof(T) == 2) {
    const uint32_t bits = round_pair(first, second, T(0.0f));
    memcpy(&pair, &bits, sizeof(pair));
  } else {
    pair = {first, second};
  }
  return pair;
}

// two values, rounded, into adjacent elements that are aligned like one of twice the size
template <typename T>
__device__ void store_pair(T* to, float first, float second) {
  *reinterpret_cast<Pair<T>*>(to) = rounded<T>(first, second);
}

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
  // a power of two, and its exponent
  int tile, shift;
  int slots, step, tap;
  bool packed;

  // input position of a slot, counted from the first output's first tap
  __host__ __device__ int position(int slot) const {
    return packed ? (slot & (tile - 1)) * stride + (slot >> shift) * dilation : slot;
  }
};

inline Axis make_axis(int kernel, int stride, int padding, int dilation, int tile) {
  const int64_t span = int64_t{tile - 1} * stride + int64_t{kernel - 1} * dilation + 1;
  const bool packed = span > int64_t{tile} * kernel;
  int shift = 0;
  while (1 << shift < tile) {
    ++shift;
  }
  return {kernel,
          stride,
          padding,
          dilation,
          tile,
          shift,
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

  struct Position {
    int y, x;
  };
  // row and column of a tile's pixel
  __host__ __device__ Position pixel(int index) const {
    return {index >> x.shift, index & (x.tile - 1)};
  }
  // row and column of a slot: a division that is exact for the few thousand slots that a tile can have
  __host__ __device__ Position slot(int index) const {
    constexpr int kBits = 20;
    const unsigned inverse = (1u << kBits) / static_cast<unsigned>(x.slots) + 1;
    const int row = static_cast<int>(static_cast<unsigned>(index) * inverse >> kBits);
    return {row, index - row * x.slots};
  }
};

struct Activation {
  // the index in _checks.ACTIVATIONS
  int kind;
  float slope;

  // All but the leaky one are a range: no branch, and one that is the same for all threads.
  __device__ float low() const {
    return kind == 1 || kind == 2 ? 0.0f : -INFINITY;
  }
  __device__ float high() const {
    return kind == 2 ? 6.0f : INFINITY;
  }
  __device__ bool leaks() const {
    return kind == 3;
  }
  __device__ float leak(float z) const {
    return z < 0.0f ? z * slope : z;
  }

  __device__ float operator()(float z) const {
    return clamp(leaks() ? leak(z) : z, low(), high());
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

__device__ inline Place place_of(unsigned tile, int height, int width, const Window& window) {
  const unsigned across = static_cast<unsigned>((width + window.x.tile - 1) >> window.x.shift);
  // tiles are numbered by the grid, so those of one image fit too
  const unsigned per_image = static_cast<unsigned>((height + window.y.tile - 1) >> window.y.shift) * across;
  const unsigned image = tile / per_image, within = tile - image * per_image, row = within / across;
  return {static_cast<int>(image), static_cast<int>(row) << window.y.shift,
          static_cast<int>(within - row * across) << window.x.shift};
}

// offset inside an image of each slot of a window, or -1 outside of it
template <int kThreads, typename T>
__device__ void locate_slots(int64_t* offsets, const Map<T>& map, const Window& window, const Place& place,
                             int thread) {
  const int top = place.y * window.y.stride - window.y.padding, left = place.x * window.x.stride - window.x.padding;
  for (int slot = thread; slot < window.slots(); slot += kThreads) {
    const Window::Position at = window.slot(slot);
    const int y = top + window.y.position(at.y), x = left + window.x.position(at.x);
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
    // a thread keeps its channels and walks over the slots
    const int part = thread % kVectorsOfChunk * S::kVector, c = first + part;
    T* to = tile + thread / kVectorsOfChunk * S::kPitch + part;
    constexpr int kStep = kThreads / kVectorsOfChunk;
    if (map.vector) {
      const bool inside = c < map.channels;
#pragma unroll 2
      for (int slot = thread / kVectorsOfChunk; slot < slots; slot += kStep, to += kStep * S::kPitch) {
        const int64_t offset = offsets[slot];
        const bool read = inside && offset >= 0;
        cp_async16(to, image + (read ? offset + c : 0), read);
      }
    } else {
#pragma unroll 1
      for (int slot = thread / kVectorsOfChunk; slot < slots; slot += kStep, to += kStep * S::kPitch) {
        const int64_t offset = offsets[slot];
        *reinterpret_cast<Vector<T>*>(to) = gather(image + offset, map.stride_c, c, offset >= 0 ? map.channels : 0);
      }
    }
  }
};

// rows [first_row, first_row + rows) and a chunk of columns of a matrix, zeros beyond its ends
template <int kThreads, typename T>
__device__ void fill_matrix(T* tile, const Matrix<T>& matrix, int first_row, int rows, int first_column, int thread) {
  using S = Shape<T>;
  // a thread keeps its columns and walks down the rows
  const int part = thread % kVectorsOfChunk * S::kVector, column = first_column + part;
  T* to = tile + thread / kVectorsOfChunk * S::kPitch + part;
  constexpr int kStep = kThreads / kVectorsOfChunk;
  if (matrix.vector) {
    const int last = column < matrix.columns ? matrix.rows - first_row : 0;
    const T* from = matrix.data + (first_row + thread / kVectorsOfChunk) * matrix.row_stride + column;
#pragma unroll 2
    for (int row = thread / kVectorsOfChunk; row < rows; row += kStep, to += kStep * S::kPitch) {
      cp_async16(to, row < last ? from : matrix.data, row < last);
      from += kStep * matrix.row_stride;
    }
  } else {
#pragma unroll 1
    for (int row = thread / kVectorsOfChunk; row < rows; row += kStep, to += kStep * S::kPitch) {
      *reinterpret_cast<Vector<T>*>(to) =
          gather(matrix.data + (first_row + row) * matrix.row_stride, matrix.column_stride, column,
                 first_row + row < matrix.rows ? matrix.columns : 0);
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
    } else if (stage == 1) {
      // the later ones follow at the same distance
      distance = static_cast<int>(array - first);
    }
  }
};

// f(stage), which takes the same arrays at every stage. The compiler sees that there is a first one: an array that may
// not exist is not known to be shared memory.
template <typename F>
__host__ __device__ void for_stages(int stages, const F& f) {
  f(0);
  for (int i = 1; i < stages; ++i) {
    f(i);
  }
}

// What happens to a depthwise value before it is multiplied: + bias [C] (or null), then an activation.
template <typename T>
struct Middle {
  const T* bias;
  Activation activation;
};

// The depthwise weight of a chunk of channels and biases of these channels: copied as they lie in memory along with the
// chunk, then turned into floats by the threads that have copied them, who need no barrier for it.
template <typename T>
struct Taps {
  Staged<T> raw;  // [chunk][taps], then [chunk] for each bias
  float* ready;   // [taps][chunk], then [chunk] for each bias; zeros beyond C
};

// floats of `ready`, elements of each stage of `raw`
template <typename T>
__host__ __device__ int64_t values_of_taps(int taps, int biases) {
  return int64_t{taps + biases} * Shape<T>::kChunk;
}

// 16 bytes, element by element, of `count` that there are; zeros beyond. Slow, and little code.
template <typename T>
__device__ void copy_scalars(T* to, const T* from, int64_t count) {
#pragma unroll 1
  for (int i = 0; i < Shape<T>::kVector; ++i) {
    to[i] = i < count ? from[i] : T(0.0f);
  }
}

// a chunk of `width` values a channel, contiguous; zeros beyond C
template <int kThreads, typename T>
__device__ void fill_channels(T* to, const T* from, int width, int channels, int first, int thread) {
  using S = Shape<T>;
  const int64_t begin = int64_t{first} * width, end = from == nullptr ? 0 : int64_t{channels} * width;
  const bool vector = from != nullptr && end % S::kVector == 0 && reinterpret_cast<uintptr_t>(from) % 16 == 0;
#pragma unroll 1
  for (int unit = thread * S::kVector; unit < width * S::kChunk; unit += kThreads * S::kVector) {
    if (vector) {
      cp_async16(to + unit, from + (begin + unit < end ? begin + unit : 0), begin + unit < end);
    } else {
      copy_scalars(to + unit, from + begin + unit, end - begin - unit);
    }
  }
}

template <int kThreads, typename T, typename... Biases>
__device__ void fill_taps(T* raw, const T* weight, int count, int channels, int first, int thread,
                          const Biases*... biases) {
  fill_channels<kThreads>(raw, weight, count, channels, first, thread);
  T* to = raw + count * Shape<T>::kChunk;
  ((fill_channels<kThreads>(to, biases, 1, channels, first, thread), to += Shape<T>::kChunk), ...);
}

// After the wait for this thread's copies, in front of a barrier that lies behind the last use of `ready`:
// [chunk][taps] as floats [taps][chunk], and the biases, each by the thread that has copied it.
template <int kThreads, typename T>
__device__ void land_taps(float* ready, const T* raw, int count, int biases, int thread) {
  using S = Shape<T>;
  // the units of a bias are those of its own copy
  const int unit = thread * S::kVector;
#pragma unroll 1
  for (int first = unit; first < count * S::kChunk; first += kThreads * S::kVector) {
    const Vector<T> values = *reinterpret_cast<const Vector<T>*>(raw + first);
    int c = first / count, tap = first - c * count;
#pragma unroll
    for (int i = 0; i < S::kVector; ++i) {
      ready[tap * S::kChunk + c] = static_cast<float>(values.values[i]);
      const bool next = ++tap == count;
      tap = next ? 0 : tap;
      c += next ? 1 : 0;
    }
  }
  if (unit < S::kChunk) {
#pragma unroll 1
    for (int i = count; i < count + biases; ++i) {
      const Vector<T> values = *reinterpret_cast<const Vector<T>*>(raw + i * S::kChunk + unit);
#pragma unroll
      for (int c = 0; c < S::kVector; ++c) {
        ready[i * S::kChunk + unit + c] = static_cast<float>(values.values[c]);
      }
    }
  }
}

// values [first, first + count) of a vector as floats; zeros beyond its end, or where there is none
template <int kThreads, typename T>
__device__ void fill_floats(float* to, const T* from, int first, int count, int end, int thread) {
  for (int i = thread; i < count; i += kThreads) {
    to[i] = from != nullptr && first + i < end ? static_cast<float>(from[first + i]) : 0.0f;
  }
}

// The depthwise convolution of one chunk: [slots][chunk] -> store(pixel, place in the chunk, 16 bytes), rounded to T,
// for 64 pixels. `taps`: as land_taps leaves them, with the bias behind the last tap. A kernel size other than 0 is
// known when compiled.
template <int kThreads, int kKernel, typename T, typename Store>
__device__ void depthwise_sized(const Store& store, const T* tile, const float* taps, const Window& window,
                                const Activation& activation, int thread) {
  using S = Shape<T>;
  constexpr int kUnits = kTilePixels * kVectorsOfChunk / kThreads;
  const int kernel_y = kKernel == 0 ? window.y.kernel : kKernel, kernel_x = kKernel == 0 ? window.x.kernel : kKernel;
  const int part = thread % kVectorsOfChunk * S::kVector;
  // rows of warps that multiply nothing
  if (thread / kVectorsOfChunk >= (window.pixels() + 15) / 16 * 16) {
    return;
  }
  int base[kUnits];
  float sum[kUnits][S::kVector];
#pragma unroll
  for (int i = 0; i < kUnits; ++i) {
    const int pixel = min(thread / kVectorsOfChunk + i * (kThreads / kVectorsOfChunk), window.pixels() - 1);
    const Window::Position at = window.pixel(pixel);
    base[i] = (at.y * window.y.step * window.x.slots + at.x * window.x.step) * S::kPitch + part;
#pragma unroll
    for (int c = 0; c < S::kVector; c += 4) {
      const Vector<float> bias =
          *reinterpret_cast<const Vector<float>*>(taps + kernel_y * kernel_x * S::kChunk + part + c);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        sum[i][c + j] = bias.values[j];
      }
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
  if (activation.leaks()) {
#pragma unroll
    for (int i = 0; i < kUnits; ++i) {
#pragma unroll
      for (int c = 0; c < S::kVector; ++c) {
        sum[i][c] = activation.leak(sum[i][c]);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < kUnits; ++i) {
    const int pixel = thread / kVectorsOfChunk + i * (kThreads / kVectorsOfChunk);
    // rows of no pixel are zero, so that no product sees what was there before
    const bool there = pixel < window.pixels();
    const float low = there ? activation.low() : 0.0f, high = there ? activation.high() : 0.0f;
    Vector<T> result;
#pragma unroll
    for (int c = 0; c < S::kVector; c += 2) {
      const Pair<T> pair = rounded<T>(clamp(sum[i][c], low, high), clamp(sum[i][c + 1], low, high));
      memcpy(result.values + c, &pair, sizeof(pair));
    }
    store(pixel, part, result);
  }
}

// ... into one operand [64 pixels][chunk]
template <int kThreads, typename T>
__device__ void depthwise(T* operand, const T* tile, const float* taps, const Window& window,
                          const Activation& activation, int thread) {
  const auto store = [operand](int pixel, int part, const Vector<T>& result) {
    *reinterpret_cast<Vector<T>*>(operand + pixel * Shape<T>::kPitch + part) = result;
  };
  if (window.y.kernel == 3 && window.x.kernel == 3) {
    depthwise_sized<kThreads, 3>(store, tile, taps, window, activation, thread);
  } else {
    depthwise_sized<kThreads, 0>(store, tile, taps, window, activation, thread);
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

// the same with a bias of each column, in shared memory
template <int kTiles>
__device__ void start(float (&acc)[kTiles][4], const float* bias, int lane) {
#pragma unroll
  for (int t = 0; t < kTiles; ++t) {
    const Pair<float> pair = *reinterpret_cast<const Pair<float>*>(bias + t * 8 + lane % 4 * 2);
    acc[t][0] = acc[t][2] = pair.values[0];
    acc[t][1] = acc[t][3] = pair.values[1];
  }
}

// adds a bias of each column, in shared memory
template <int kTiles>
__device__ void add(float (&acc)[kTiles][4], const float* bias, int lane) {
#pragma unroll
  for (int t = 0; t < kTiles; ++t) {
    const Pair<float> pair = *reinterpret_cast<const Pair<float>*>(bias + t * 8 + lane % 4 * 2);
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      acc[t][e] += pair.values[e % 2];
    }
  }
}

// zeros in place of columns from `count` on
template <int kTiles>
__device__ void drop_columns(float (&acc)[kTiles][4], int count, int lane) {
#pragma unroll
  for (int t = 0; t < kTiles; ++t) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      acc[t][e] = t * 8 + lane % 4 * 2 + e % 2 < count ? acc[t][e] : 0.0f;
    }
  }
}

// A warp's product as rows of a matrix operand, [chunks][rows][chunk] with chunks `distance` apart: activation,
// rounding and pairs of columns stored at once. Rows that are not `there` (lane / 4, and the one 8 below) and columns
// from `count` on become zeros, whatever they hold.
template <int kTiles, typename T>
__device__ void store_hidden(T* to, int distance, float (&acc)[kTiles][4], const Activation& activation,
                             const bool (&there)[2], int count, int lane) {
  using S = Shape<T>;
  if (activation.leaks()) {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        acc[t][e] = activation.leak(acc[t][e]);
      }
    }
  }
  if (count < kTiles * 8) {
    drop_columns(acc, count, lane);
  }
  T* row = to + lane / 4 * S::kPitch + lane % 4 * 2;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float low = there[half] ? activation.low() : 0.0f, high = there[half] ? activation.high() : 0.0f;
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      store_pair(row + half * 8 * S::kPitch + t * 8 / S::kChunk * distance + t * 8 % S::kChunk,
                 clamp(acc[t][2 * half], low, high), clamp(acc[t][2 * half + 1], low, high));
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

// the shared memory of `accumulate`
template <typename T>
struct Buffers {
  Staged<T> tile, matrix;
  Taps<T> taps;
  T* operand;
  int stages;
};

// `slots`, `taps`: the most that any window has; `columns`: rows of the pointwise matrix, the product's columns
template <typename T, typename Carver>
__host__ __device__ Buffers<T> carve_buffers(Carver& carver, int slots, int taps, int columns, int stages) {
  using S = Shape<T>;
  Buffers<T> buffers{};
  buffers.stages = stages;
  buffers.taps.ready = carver.template take<float>(values_of_taps<T>(taps, 1));
  for_stages(stages, [&](int i) {
    buffers.tile.place(i, carver.template take<T>(int64_t{slots} * S::kPitch));
    buffers.matrix.place(i, carver.template take<T>(int64_t{columns} * S::kPitch));
    buffers.taps.raw.place(i, carver.template take<T>(values_of_taps<T>(taps, 1)));
  });
  buffers.operand = carver.template take<T>(int64_t{kTilePixels} * S::kPitch);
  return buffers;
}

// Calls work(stage, first) for every chunk of [begin, end) once it is in shared memory: fill(stage, first) starts the
// copies, ahead of the work where there are several stages; land(stage) follows the thread's own copies, in front of
// the barrier. `work` ends with the chunk still in use.
template <int kChunk, typename Fill, typename Land, typename Work>
__device__ void for_chunks(int begin, int end, int stages, const Fill& fill, const Land& land, const Work& work) {
  const int ahead = stages - 1;
  int stage = 0, free = 0;
  // one loop for the copies in front of the first chunk too: code is read from memory as data is
#pragma unroll 1
  for (int first = begin - ahead * kChunk; first < end; first += kChunk) {
    const bool ready = first >= begin;
    if (ready) {
      if (ahead == 1) {
        cp_async_wait<0>();
      } else if (ahead == 2) {
        cp_async_wait<1>();
      }
      if (ahead > 0) {
        land(stage);
      }
      // the chunk is there, and nobody works on the one before it any more
      __syncthreads();
    }
    if (first + ahead * kChunk < end) {
      fill(free, first + ahead * kChunk);
    }
    cp_async_commit();
    free = free + 1 == stages ? 0 : free + 1;
    if (!ready) {
      continue;
    }
    if (ahead == 0) {
      cp_async_wait<0>();
      land(stage);
      __syncthreads();
    }
    work(stage, first);
    stage = stage + 1 == stages ? 0 : stage + 1;
  }
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
// 4n, 4n + 1, ..., each 16; blocks of 8 * kTiles columns to each four warps; a warp whose rows are no pixels leaves its
// part as it is. Ends with the buffers still in use: a barrier must come before they are written again.
template <typename M, int kTiles, int kThreads, typename Source>
__device__ void accumulate(float (&acc)[kTiles][4], const Buffers<typename M::Element>& buffers, const Source& source,
                           const Window& window, const typename M::Element* depthwise_weight,
                           const Middle<typename M::Element>& middle, const Matrix<typename M::Element>& matrix,
                           int first_row, int thread, const Part& part) {
  using T = typename M::Element;
  using S = Shape<T>;
  constexpr int kColumns = kTiles * 8 * (kThreads / 128);
  const int warp = thread / 32, lane = thread % 32, taps = window.taps();
  const auto fill = [&](int stage, int first) {
    source.fill(buffers.tile[stage], first, thread);
    fill_matrix<kThreads>(buffers.matrix[stage], matrix, first_row, kColumns, first, thread);
    if (depthwise_weight != nullptr) {
      fill_taps<kThreads>(buffers.taps.raw[stage], depthwise_weight, taps, part.end, first, thread, middle.bias);
    }
  };
  const auto land = [&](int stage) {
    if (depthwise_weight != nullptr) {
      land_taps<kThreads>(buffers.taps.ready, buffers.taps.raw[stage], taps, 1, thread);
    }
  };
  for_chunks<S::kChunk>(part.begin, part.end, buffers.stages, fill, land, [&](int stage, int first) {
    const T* operand = source.operand(buffers.tile[stage], first);
    if (depthwise_weight != nullptr) {
      depthwise<kThreads>(buffers.operand, buffers.tile[stage], buffers.taps.ready, window, middle.activation, thread);
      __syncthreads();
      operand = buffers.operand;
    }
    if (warp % 4 * 16 < window.pixels()) {
      multiply<M>(acc, operand + warp % 4 * 16 * S::kPitch, buffers.matrix[stage] + warp / 4 * kTiles * 8 * S::kPitch,
                  lane);
    }
  });
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
