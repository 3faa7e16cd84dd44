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

// + bias + residual, activation, rounding: one warp's part of a tile's product into the map `out`
template <int kTiles, typename T>
__device__ void store_tile(const float (&acc)[kTiles][4], const Map<T>& out, const Window& window, const Place& place,
                           const T* bias, const Map<const T>& residual, const Activation& activation, int first_row,
                           int first_column, int lane) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int pixel = first_row + lane / 4 + 8 * half;
    const int y = place.y + pixel / window.x.tile, x = place.x + pixel % window.x.tile;
    if (pixel >= window.pixels() || y >= out.height || x >= out.width) {
      continue;
    }
    T* to = out.data + place.image * out.stride_n + y * out.stride_h + x * out.stride_w;
    const T* add = residual.data == nullptr ? nullptr
                                            : residual.data + place.image * residual.stride_n + y * residual.stride_h +
                                                  x * residual.stride_w;
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      const int column = first_column + t * 8 + lane % 4 * 2;
      struct alignas(2 * sizeof(T)) Pair {
        T values[2];
      } pair;
      const bool both = column + 1 < out.channels;
      Pair added{};
      if (add != nullptr && residual.vector && both) {
        added = *reinterpret_cast<const Pair*>(add + column);
      } else if (add != nullptr) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          added.values[e] = column + e < out.channels ? add[(column + e) * residual.stride_c] : T(0.0f);
        }
      }
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int c = column + e;
        float value = acc[t][2 * half + e];
        if (c < out.channels) {
          value += bias == nullptr ? 0.0f : static_cast<float>(bias[c]);
        }
        pair.values[e] = T(activation(value + static_cast<float>(added.values[e])));
      }
      if (out.vector && both) {
        *reinterpret_cast<Pair*>(to + column) = pair;
      } else {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          if (column + e < out.channels) {
            to[(column + e) * out.stride_c] = pair.values[e];
          }
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
template <int kColumns, int kThreads, int kTiles, typename T>
__device__ void store_sums(const float (&acc)[kTiles][4], float* sums, int splits, const Map<T>& out,
                           const Window& window, const Place& place, const T* bias, const Map<const T>& residual,
                           const Activation& activation, int first_row, int column, int first_column, int thread) {
  constexpr int kPitch = Sums<kColumns>::kPitch;
  for_each(acc, thread % 32,
           [&](int row, int c, float value) { sums[(first_row + row) * kPitch + column + c] = value; });
  sync_cluster();
  const int pixels = kTilePixels / splits;
  for (int unit = thread; unit < pixels * kColumns; unit += kThreads) {
    const int pixel = static_cast<int>(blockIdx.z) * pixels + unit / kColumns, c = first_column + unit % kColumns;
    const int y = place.y + pixel / window.x.tile, x = place.x + pixel % window.x.tile;
    if (pixel >= window.pixels() || y >= out.height || x >= out.width || c >= out.channels) {
      continue;
    }
    float value = 0.0f;
    for (int rank = 0; rank < splits; ++rank) {
      value += shared_of(rank, sums)[pixel * kPitch + unit % kColumns];
    }
    value += bias == nullptr ? 0.0f : static_cast<float>(bias[c]);
    if (residual.data != nullptr) {
      value += static_cast<float>(residual.data[place.image * residual.stride_n + y * residual.stride_h +
                                                x * residual.stride_w + c * residual.stride_c]);
    }
    out.data[place.image * out.stride_n + y * out.stride_h + x * out.stride_w + c * out.stride_c] =
        T(activation(value));
  }
  // the others may still read this block's sums
  sync_cluster();
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
    float product = 0.0f;
    const T* weight = pool.weight.data + row * pool.weight.row_stride;
    for (int i = 0; i < S::kChunk && chunk * S::kChunk + i < x.channels; ++i) {
      product += static_cast<float>(weight[(chunk * S::kChunk + i) * pool.weight.column_stride]) * scratch[i];
    }
    pool.parts[job * pool.weight.rows + row] = product;
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
  // first, so that its address is no register that the product misses
  const int splits = kSplits<kTiles> ? g.splits : 1;
  float* sums = Sums<kTiles * 8>::carve(carver, splits);
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
  const Place place =
      place_of(blockIdx.x, branch.out.height, branch.out.width, branch.window.y.tile, branch.window.x.tile);
  const auto source = g.input.template source<kSeparableThreads>(table, branch.window, place, thread);
  __syncthreads();
  float acc[kTiles][4];
  clear(acc);
  accumulate<M, kTiles, kSeparableThreads>(acc, buffers, source, branch.window, branch.depthwise,
                                           Middle<T>{branch.middle_bias, g.middle}, branch.pointwise, first_column,
                                           thread, part_of<T>(branch.pointwise.columns, splits));
  if (splits == 1) {
    store_tile(acc, branch.out, branch.window, place, branch.bias, g.residual, g.activation, warp * 16, first_column,
               lane);
  } else {
    store_sums<kTiles * 8, kSeparableThreads>(acc, sums, splits, branch.out, branch.window, place, branch.bias,
                                              g.residual, g.activation, warp * 16, 0, first_column, thread);
  }
}

template <typename M, int kTiles, typename Input>
int64_t separable_shared_bytes(int slots, int taps, int stages, int splits, bool pool) {
  using T = typename M::Element;
  SharedMeter meter;
  Input::carve(meter, slots);
  carve_buffers<T>(meter, std::max(slots, kTilePixels), taps, kTiles * 8, stages);
  Sums<kTiles * 8>::carve(meter, splits);
  if (pool) {
    meter.take<float>(kSeparableThreads / kVectorsOfChunk * Shape<T>::kChunk);
  }
  return meter.bytes();
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
    const Fit fit = fit_shared(call.op, scope.max_shared(), [&](int pixels, int stages) {
      g.slots = g.taps = 0;
      for (size_t i = 0; i < call.branches.size(); ++i) {
        const BranchTensors& branch = call.branches[i];
        g.branches[i].window =
            make_window(branch.out, pixels, branch.kernel(), call.stride, branch.padding, branch.dilation);
        g.slots = std::max(g.slots, g.branches[i].window.slots());
        g.taps = std::max(g.taps, g.branches[i].window.taps());
      }
      const int64_t blocks = tiles_of(call.branches[0].out, g.branches[0].window) * rows;
      const int64_t chunks = (call.branches[0].pointwise.size(1) + kChunk - 1) / kChunk;
      g.splits = kSplits<kTiles> ? splits_of(scope, blocks, chunks) : 1;
      return separable_shared_bytes<M, kTiles, Input>(g.slots, g.taps, stages, g.splits, pools);
    });
    g.stages = fit.stages;
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
        separable_conv2d_kernel<M, kTiles, Input>,
        dim3(static_cast<unsigned>(tiles_in_all), static_cast<unsigned>(rows), static_cast<unsigned>(g.splits)),
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
