// The kernel of all separable convolutions: of one map or of several branches of it, each with a window, weights and an
// output of its own. `Input` says how the map's slots are read, see PlainInput.
#pragma once

#include <liteseg/tensors.cuh>
#include <liteseg/tile.cuh>

namespace liteseg {

constexpr int kSeparableThreads = 128;
constexpr int kMaxBranches = 4;
// narrow outputs come of few channels, and have no register to spare
template <int kTiles>
constexpr bool kSplits = kTiles > 4;

template <typename T>
struct PlainInput {
  Map<const T> map;

  template <typename Carver>
  static __host__ __device__ int64_t* carve(Carver& carver, int slots) {
    return carver.template take<int64_t>(slots);
  }

  template <int kThreads>
  __device__ MapSource<T, kThreads> source(int64_t* table, const Window& window, const Place& place, int thread) const {
    locate_slots<kThreads>(table, map, window, place, thread);
    return {map, map.data + place.image * map.stride_n, table, window.slots()};
  }
};

template <typename T>
struct SeparableBranch {
  const T* depthwise;    // [C, 1, KH, KW]; null: the slots are multiplied as they are, the window is 1 x 1
  const T* middle_bias;  // [C] or null
  Matrix<T> pointwise;   // [CO, C]
  const T* bias;         // [CO] or null
  Map<T> out;            // [N, CO, HO, WO]
  Window window;
};

// The sums over each image's pixels of 64-byte chunks of channels, already multiplied with the pooled branch's weight:
// what one chunk adds to weight * mean.
template <typename T>
struct PoolSums {
  Map<const T> x;    // [N, C, H, W]
  Matrix<T> weight;  // [F, C]
  float* parts;      // [N, chunks, F], null: no pooled branch
  int images;
};

template <typename T, typename Input>
struct SeparableArguments {
  Input input;
  SeparableBranch<T> branches[kMaxBranches];
  Map<const T> residual;  // of the first branch, data null: none
  PoolSums<T> pool;
  Activation middle, activation;
  int count, column_blocks;
  // the most that a branch has
  int slots, taps;
  int stages;
  // blocks of a cluster, each with a part of the channels
  int splits;
};

// the biases of a block's columns as floats in shared memory
struct StagedBias {
  const float* first;

  __device__ Pair<float> operator()(int column) const {
    return *reinterpret_cast<const Pair<float>*>(first + column);
  }
};

// the values of a map at two adjacent channels as floats, zeros from its last on
template <typename T>
__device__ Pair<float> pair_at(const T* pixel, int64_t stride, int channel, int channels, bool pairs) {
  if (pairs) {
    const Pair<T> pair = *reinterpret_cast<const Pair<T>*>(pixel + channel);
    return {static_cast<float>(pair.values[0]), static_cast<float>(pair.values[1])};
  }
  return {channel < channels ? static_cast<float>(pixel[channel * stride]) : 0.0f,
          channel + 1 < channels ? static_cast<float>(pixel[(channel + 1) * stride]) : 0.0f};
}

// + bias + residual, activation, rounding: one warp's part of a tile's product into the map `out`. `bias(column)`: of
// two of the product's columns, the first of which is channel `first_column`.
template <int kTiles, typename T, typename Bias>
__device__ void store_tile(const float (&acc)[kTiles][4], const Map<T>& out, const Window& window, const Place& place,
                           const Bias& bias, const Map<const T>& residual, const Activation& activation, int first_row,
                           int first_column, int lane) {
  const float low = activation.low(), high = activation.high();
  const bool adds = residual.data != nullptr, leaks = activation.leaks();
  // both the same for all threads
  const bool pairs = out.vector && out.channels % 2 == 0, added_pairs = residual.vector && pairs;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int pixel = first_row + lane / 4 + 8 * half;
    const Window::Position at = window.pixel(pixel);
    const int y = place.y + at.y, x = place.x + at.x;
    if (pixel >= window.pixels() || y >= out.height || x >= out.width) {
      continue;
    }
    const int lead = lane % 4 * 2;
    T* to = out.data + place.image * out.stride_n + y * out.stride_h + x * out.stride_w;
    const T* add =
        residual.data + (adds ? place.image * residual.stride_n + y * residual.stride_h + x * residual.stride_w : 0);
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      const int c = first_column + t * 8 + lead;
      if (c >= out.channels) {
        continue;
      }
      Pair<float> value = bias(t * 8 + lead);
      value.values[0] += acc[t][2 * half];
      value.values[1] += acc[t][2 * half + 1];
      if (adds) {
        const Pair<float> more = pair_at(add, residual.stride_c, c, out.channels, added_pairs);
        value.values[0] += more.values[0];
        value.values[1] += more.values[1];
      }
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        value.values[e] = clamp(leaks ? activation.leak(value.values[e]) : value.values[e], low, high);
      }
      if (pairs) {
        store_pair(to + c, value.values[0], value.values[1]);
      } else {
        to[c * out.stride_c] = T(value.values[0]);
        if (c + 1 < out.channels) {
          to[(c + 1) * out.stride_c] = T(value.values[1]);
        }
      }
    }
  }
}

// What the blocks of a cluster have summed, each over its part of the channels: [64 pixels][columns], rows 8 banks
// apart.
template <int kColumns>
struct Sums {
  static constexpr int kPitch = kColumns + 8;

  template <typename Carver>
  static __host__ __device__ float* carve(Carver& carver, int splits) {
    return splits > 1 ? carver.template take<float>(int64_t{kTilePixels} * kPitch) : nullptr;
  }
};

// Adds them up in the blocks' order, + bias + residual, activation, rounding; each block stores a part of the pixels.
// `acc` is a warp's part of this block's sums, `first_row` and `column` where it lies in the tile.
template <int kColumns, int kThreads, int kTiles, typename T, typename Bias>
__device__ void store_sums(const float (&acc)[kTiles][4], float* sums, int splits, const Map<T>& out,
                           const Window& window, const Place& place, const Bias& bias, const Map<const T>& residual,
                           const Activation& activation, int first_row, int column, int first_column, int thread) {
  constexpr int kPitch = Sums<kColumns>::kPitch;
  const int lane = thread % 32;
  if (first_row < window.pixels()) {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float* to = sums + (first_row + lane / 4 + 8 * half) * kPitch + column + t * 8 + lane % 4 * 2;
        *reinterpret_cast<Pair<float>*>(to) = {acc[t][2 * half], acc[t][2 * half + 1]};
      }
    }
  }
  sync_cluster();
  // no more than there are pixels, or a block without any would only wait
  const int pixels = (window.pixels() + splits - 1) / splits, begin = static_cast<int>(blockIdx.z) * pixels;
  const bool pairs = out.vector && out.channels % 2 == 0, added_pairs = residual.vector && pairs;
  for (int unit = thread; unit < pixels * (kColumns / 2); unit += kThreads) {
    const int pixel = begin + unit / (kColumns / 2), lead = unit % (kColumns / 2) * 2, c = first_column + lead;
    const Window::Position at = window.pixel(pixel);
    const int y = place.y + at.y, x = place.x + at.x;
    if (pixel >= window.pixels() || y >= out.height || x >= out.width || c >= out.channels) {
      continue;
    }
    Pair<float> value{};
#pragma unroll 4
    for (int rank = 0; rank < splits; ++rank) {
      const Pair<float> part = *reinterpret_cast<const Pair<float>*>(shared_of(rank, sums) + pixel * kPitch + lead);
      value.values[0] += part.values[0];
      value.values[1] += part.values[1];
    }
    const Pair<float> shift = bias(lead);
    T* to = out.data + place.image * out.stride_n + y * out.stride_h + x * out.stride_w;
    Pair<float> more{};
    if (residual.data != nullptr) {
      more = pair_at(residual.data + place.image * residual.stride_n + y * residual.stride_h + x * residual.stride_w,
                     residual.stride_c, c, out.channels, added_pairs);
    }
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      value.values[e] = activation(value.values[e] + shift.values[e] + more.values[e]);
    }
    if (pairs) {
      store_pair(to + c, value.values[0], value.values[1]);
    } else {
      to[c * out.stride_c] = T(value.values[0]);
      if (c + 1 < out.channels) {
        to[(c + 1) * out.stride_c] = T(value.values[1]);
      }
    }
  }
  // the others may still read this block's sums
  leave_cluster();
}

// a row of a matrix times `count` floats in shared memory, in order
template <typename T>
__device__ float row_times(const Matrix<T>& matrix, int row, const float* values, int count) {
  constexpr int kVector = Shape<T>::kVector;
  const T* from = matrix.data + row * matrix.row_stride;
  float sum = 0.0f;
#pragma unroll 2
  for (int first = 0; first < count; first += kVector) {
    const Vector<T> vector = matrix.vector ? *reinterpret_cast<const Vector<T>*>(from + first)
                                           : gather(from, matrix.column_stride, first, count);
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      sum += first + i < count ? static_cast<float>(vector.values[i]) * values[first + i] : 0.0f;
    }
  }
  return sum;
}

// job: one image and one chunk of channels, summed over the pixels in a fixed order
template <typename T>
__device__ void pool_sums(const PoolSums<T>& pool, float* scratch, int64_t job, int thread) {
  using S = Shape<T>;
  constexpr int kGroups = kSeparableThreads / kVectorsOfChunk;
  const Map<const T>& x = pool.x;
  const int chunks = (x.channels + S::kChunk - 1) / S::kChunk;
  const int image = static_cast<int>(job / chunks), chunk = static_cast<int>(job % chunks);
  const int part = thread % kVectorsOfChunk * S::kVector, c = chunk * S::kChunk + part;
  const T* data = x.data + image * x.stride_n;
  float sum[S::kVector] = {};
  const int pixels = x.height * x.width;
  for (int pixel = thread / kVectorsOfChunk; pixel < pixels; pixel += kGroups) {
    const T* from = data + pixel / x.width * x.stride_h + pixel % x.width * x.stride_w;
    if (x.vector && c < x.channels) {
      const Vector<T> vector = *reinterpret_cast<const Vector<T>*>(from + c);
#pragma unroll
      for (int i = 0; i < S::kVector; ++i) {
        sum[i] += static_cast<float>(vector.values[i]);
      }
    } else {
#pragma unroll
      for (int i = 0; i < S::kVector; ++i) {
        sum[i] += c + i < x.channels ? static_cast<float>(from[(c + i) * x.stride_c]) : 0.0f;
      }
    }
  }
#pragma unroll
  for (int i = 0; i < S::kVector; ++i) {
    scratch[thread / kVectorsOfChunk * S::kChunk + part + i] = sum[i];
  }
  __syncthreads();
  if (thread < S::kChunk) {
    float total = 0.0f;
    for (int group = 0; group < kGroups; ++group) {
      total += scratch[group * S::kChunk + thread];
    }
    // group 0's sum of this channel has been read by this thread alone
    scratch[thread] = total / static_cast<float>(pixels);
  }
  __syncthreads();
  for (int row = thread; row < pool.weight.rows; row += kSeparableThreads) {
    Matrix<T> weight = pool.weight;
    weight.data += int64_t{chunk} * S::kChunk * weight.column_stride;
    pool.parts[job * weight.rows + row] =
        row_times(weight, row, scratch, min(S::kChunk, x.channels - chunk * S::kChunk));
  }
  // the next job writes where this one has just read
  __syncthreads();
}

template <typename M, int kTiles, typename Input>
__global__ void __launch_bounds__(kSeparableThreads, kTiles > 4 ? 2 : 3)
    separable_conv2d_kernel(const __grid_constant__ SeparableArguments<typename M::Element, Input> g) {
  using T = typename M::Element;
  SharedCarver carver;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  // allocated first: a constant address frees a register in the main loop
  const int splits = kSplits<kTiles> ? g.splits : 1;
  float* sums = Sums<kTiles * 8>::carve(carver, splits);
  float* bias = carver.template take<float>(kTiles * 8);
  const auto table = Input::carve(carver, g.slots);
  const Buffers<T> buffers = carve_buffers<T>(carver, max(g.slots, kTilePixels), g.taps, kTiles * 8, g.stages);
  const int index = static_cast<int>(blockIdx.y) / g.column_blocks;
  if (index < g.count) {
    prefetch_matrix<kSeparableThreads>(g.branches[index].pointwise, thread);
  }
  wait_for_predecessor();
  release_successor();
  if (index == g.count) {
    float* scratch = carver.template take<float>(kSeparableThreads / kVectorsOfChunk * Shape<T>::kChunk);
    const int chunks = (g.pool.x.channels + Shape<T>::kChunk - 1) / Shape<T>::kChunk;
    const int64_t first = blockIdx.x + int64_t{gridDim.x} * blockIdx.z, blocks = int64_t{gridDim.x} * gridDim.z;
    for (int64_t job = first; job < int64_t{g.pool.images} * chunks; job += blocks) {
      pool_sums(g.pool, scratch, job, thread);
    }
    return;
  }
  const SeparableBranch<T>& branch = g.branches[index];
  const int first_column = static_cast<int>(blockIdx.y) % g.column_blocks * kTiles * 8;
  const Place place = place_of(blockIdx.x, branch.out.height, branch.out.width, branch.window);
  fill_floats<kSeparableThreads>(bias, branch.bias, first_column, kTiles * 8, branch.out.channels, thread);
  const auto source = g.input.template source<kSeparableThreads>(table, branch.window, place, thread);
  __syncthreads();
  float acc[kTiles][4];
  clear(acc);
  accumulate<M, kTiles, kSeparableThreads>(acc, buffers, source, branch.window, branch.depthwise,
                                           Middle<T>{branch.middle_bias, g.middle}, branch.pointwise, first_column,
                                           thread, part_of<T>(branch.pointwise.columns, splits));
  if (splits == 1) {
    store_tile(acc, branch.out, branch.window, place, StagedBias{bias}, g.residual, g.activation, warp * 16,
               first_column, lane);
  } else {
    store_sums<kTiles * 8, kSeparableThreads>(acc, sums, splits, branch.out, branch.window, place, StagedBias{bias},
                                              g.residual, g.activation, warp * 16, 0, first_column, thread);
  }
}

template <typename M, int kTiles, typename Input>
int64_t separable_shared_bytes(int slots, int taps, int stages, int splits, bool pool) {
  using T = typename M::Element;
  SharedMeter meter;
  meter.take<float>(kTiles * 8);
  Input::carve(meter, slots);
  carve_buffers<T>(meter, std::max(slots, kTilePixels), taps, kTiles * 8, stages);
  Sums<kTiles * 8>::carve(meter, splits);
  if (pool) {
    meter.take<float>(kSeparableThreads / kVectorsOfChunk * Shape<T>::kChunk);
  }
  return meter.bytes();
}

// what a block of separable_conv2d's kind costs, see Attempt
inline Attempt separable_attempt(int64_t bytes, int64_t blocks, int pixels, int slots, int tiles) {
  // 16-byte copies that a thread makes of a chunk
  const double copies = (slots + 31) / 32;
  return {bytes,
          blocks,
          900.0 + 20.0 * copies + 20.0 * tiles,
          300.0 + 10.0 * copies + pixels * (10.0 + tiles),
          1500.0,
          500.0 + 5.0 * pixels * tiles};
}

// one branch as the host has it
struct BranchTensors {
  std::optional<Tensor> depthwise, middle_bias;
  Tensor pointwise;
  std::optional<Tensor> bias;
  std::vector<int64_t> padding, dilation;
  Tensor out;

  std::vector<int64_t> kernel() const {
    return depthwise.has_value() ? std::vector<int64_t>{depthwise->size(2), depthwise->size(3)}
                                 : std::vector<int64_t>{1, 1};
  }
};

struct SeparableCall {
  const char* op;
  std::vector<BranchTensors> branches;
  std::vector<int64_t> stride;
  std::optional<Tensor> residual;
  Activation middle{0, 0.0f}, activation{0, 0.0f};
};

// Launches `call` for the map(s) behind `input`; the weights must be contiguous where they are depthwise or biases.
template <typename M, typename Input>
void launch_separable(const SeparableCall& call, const Input& input, const PoolSums<typename M::Element>& pool,
                      const DeviceScope& scope) {
  using T = typename M::Element;
  int64_t columns = 0;
  for (const BranchTensors& branch : call.branches) {
    columns = std::max(columns, branch.pointwise.size(0));
  }
  const auto run = [&](auto tiles) {
    constexpr int kTiles = decltype(tiles)::value;
    SeparableArguments<T, Input> g{};
    g.input = input;
    g.pool = pool;
    g.middle = call.middle;
    g.activation = call.activation;
    g.count = static_cast<int>(call.branches.size());
    g.column_blocks = static_cast<int>((columns + kTiles * 8 - 1) / (kTiles * 8));
    if (call.residual.has_value()) {
      g.residual = map_of<const T>(*call.residual);
    }
    const bool pools = pool.parts != nullptr;
    const int rows = g.count * g.column_blocks + pools;
    constexpr int kChunk = Shape<T>::kChunk;
    const auto kernel = separable_conv2d_kernel<M, kTiles, Input>;
    const auto attempt = [&](int pixels, int splits, int stages) {
      g.splits = splits;
      g.stages = stages;
      g.slots = g.taps = 0;
      for (size_t i = 0; i < call.branches.size(); ++i) {
        const BranchTensors& branch = call.branches[i];
        g.branches[i].window =
            make_window(branch.out, pixels, branch.kernel(), call.stride, branch.padding, branch.dilation);
        g.slots = std::max(g.slots, g.branches[i].window.slots());
        g.taps = std::max(g.taps, g.branches[i].window.taps());
      }
      return separable_attempt(separable_shared_bytes<M, kTiles, Input>(g.slots, g.taps, stages, splits, pools),
                               tiles_of(call.branches[0].out, g.branches[0].window) * rows, pixels, g.slots, kTiles);
    };
    const Fit fit = fit_launch(call.op, scope, kernel, kSeparableThreads, kTiles > 4 ? 2 : 3,
                               (call.branches[0].pointwise.size(1) + kChunk - 1) / kChunk,
                               kSplits<kTiles> ? most_splits(scope) : 1, kMaxStages, attempt);
    for (size_t i = 0; i < call.branches.size(); ++i) {
      const BranchTensors& branch = call.branches[i];
      SeparableBranch<T>& b = g.branches[i];
      b.depthwise = pointer<T>(branch.depthwise);
      b.middle_bias = pointer<T>(branch.middle_bias);
      b.pointwise = matrix_of<T>(branch.pointwise);
      b.bias = pointer<T>(branch.bias);
      b.out = map_of<T>(branch.out);
    }
    const int64_t tiles_in_all = tiles_of(call.branches[0].out, g.branches[0].window);
    launch_early(
        kernel, dim3(static_cast<unsigned>(tiles_in_all), static_cast<unsigned>(rows), static_cast<unsigned>(g.splits)),
        dim3(kSeparableThreads), fit.bytes, g.splits, scope, g);
  };
  if (columns <= 32) {
    run(std::integral_constant<int, 4>{});
  } else {
    run(std::integral_constant<int, 12>{});
  }
}

// the same for a plain map, compiled once in separable_conv2d.cu; `parts`, `pool_weight`: see PoolSums
void separable_conv2d_of_map(const SeparableCall& call, const Tensor& x, const std::optional<Tensor>& pool_weight,
                             const std::optional<Tensor>& parts, bool allow_tf32, const DeviceScope& scope);

}  // namespace liteseg
