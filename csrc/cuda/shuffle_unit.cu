// shuffle_unit - ShuffleNet v1's unit in one launch: grouped 1x1 -> ReLU -> shuffle -> depthwise 3x3 -> grouped 1x1
//           -> + x, or behind the average-pooled x -> ReLU.
// Replaces: three F.conv2d, two activations, the shuffle's copy, an add or an average pool with a concatenation; the
//           narrow maps exist only in shared memory
// Shapes:   x [N, C, H, W], compress [B, C / G1, 1, 1], depthwise [B, 1, 3, 3], expand [D, B / G, 1, 1]
//           -> out [N, D, H, W] (D = C), or [N, C + D, HO, WO] with concat, in x's memory format; any strides in
// Traffic:  minimum (N*C*H*W + N*CO*HO*WO + weights) * sizeof(T); eager moves 4*N*B*(H*W + HO*WO) * sizeof(T) more and
//           combines in passes of their own. The compression reads a tile's slots: 1.6 times x at stride 1
// Bound:    memory: C*B/G multiply-adds a pixel for each of the products. Not timed yet.
// Launch:   grid (tiles of up to 64 pixels over all images), 256 threads, all groups in one block, for the shuffle
//           hands channels of each to each. A warp takes 32 slots and one group: x and the weights go from memory
//           straight into the operands' registers (liteseg/direct.cuh), nobody waits for a copy, and the compressed
//           channels are stored where the shuffle moves them
// Numerics: float32 accumulation; both narrow maps are rounded to T, as eager stores them. A compressed value outside
//           the image is zero, the bias does not leak into the padding. Groups do not see each other's values, NaN
//           included. float32 products are exact unless tf32 is allowed. One block owns a tile: deterministic.
// Limits:   float32, float16, bfloat16; a bottleneck of up to 768 channels, groups rounded up to 8 (the slots have to
//           fit)
#include <liteseg/direct.cuh>
#include <liteseg/separable.cuh>

namespace liteseg {
namespace {

constexpr char kOp[] = "shuffle_unit";
constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
// of one warp's product
constexpr int kRows = 2, kTiles = 3;
constexpr int kWarpRows = 16 * kRows, kWarpColumns = 8 * kTiles;
constexpr int kTaps = 9;

template <typename T>
struct Arguments {
  Map<const T> x;           // [N, C, H, W]
  Matrix<T> compress;       // [B, C / G1]
  const T* compress_bias;   // [B]
  const T* depthwise;       // [B, 1, 3, 3]
  const T* depthwise_bias;  // [B]
  Matrix<T> expand;         // [D, B / G]
  const T* expand_bias;     // [D]
  Map<T> out;               // [N, D or C + D, HO, WO]
  Window window;
  int groups;
  bool concat;
};

// how a tile's narrow maps lie in shared memory
template <typename T>
struct Layout {
  int slots, bottleneck, width;  // width: channels of a group after the shuffle
  int padded;                    // ... up to a multiple of 16 bytes
  int rows, pitch;  // of the expansion's left operand: the depthwise map, a group at a multiple of `padded`

  __host__ __device__ Layout(const Window& window, int channels, int groups)
      : slots(window.slots()), bottleneck(channels), width(channels / groups) {
    constexpr int kVector = Shape<T>::kVector, kLine = 128 / static_cast<int>(sizeof(T));
    padded = (width + kVector - 1) / kVector * kVector;
    rows = (window.pixels() + kWarpRows - 1) / kWarpRows * kWarpRows;
    // two adjacent rows of 64 bytes touch all banks once
    pitch = (groups * padded + kLine / 2 - 1) / kLine * kLine + kLine / 2;
  }
  __host__ __device__ int chunks() const {
    return (bottleneck + Shape<T>::kChunk - 1) / Shape<T>::kChunk;
  }
};

template <typename T>
struct Memory {
  int64_t* offsets;  // [slots]
  int* shuffled;     // [B], place of a compressed channel in slot 0 of `hidden`
  int* column;       // [B], place of a shuffled channel in `operand`
  float* taps;       // [chunks][taps and a bias][chunk]
  T* hidden;         // [chunks][slots][chunk], shuffled; before that the taps as they are in memory
  T* operand;        // [rows][pitch]
};

template <typename T, typename Carver>
__host__ __device__ Memory<T> carve(Carver& carver, const Layout<T>& layout) {
  using S = Shape<T>;
  Memory<T> memory{};
  memory.offsets = carver.template take<int64_t>(layout.slots);
  memory.shuffled = carver.template take<int>(layout.bottleneck);
  memory.column = carver.template take<int>(layout.bottleneck);
  memory.taps = carver.template take<float>(int64_t{layout.chunks()} * (kTaps + 1) * S::kChunk);
  memory.hidden = carver.template take<T>(int64_t{layout.chunks()} * layout.slots * S::kPitch);
  memory.operand = carver.template take<T>(int64_t{layout.rows} * layout.pitch);
  return memory;
}

// f(first row, group, first column) for each piece of a grouped product that this warp owns; warps that work at the
// same time take the same group, so its weights come from L1
template <typename F>
__device__ void for_each_piece(int rows, int groups, int columns, int warp, const F& f) {
  const int row_blocks = (rows + kWarpRows - 1) / kWarpRows,
            column_blocks = (columns + kWarpColumns - 1) / kWarpColumns;
  for (int piece = warp; piece < row_blocks * column_blocks * groups; piece += kWarps) {
    const int rest = piece / row_blocks;
    f(piece % row_blocks * kWarpRows, rest / column_blocks, rest % column_blocks * kWarpColumns);
  }
}

// rows [first, first + rows) of a matrix
template <typename T>
__device__ Matrix<T> rows_of(Matrix<T> matrix, int first, int rows) {
  matrix.data += first * matrix.row_stride;
  matrix.rows = rows;
  return matrix;
}

// channels [first, first + count) of a map, `vector` where two adjacent ones lie in an aligned pair
template <typename T>
__device__ Map<T> channels_of(Map<T> map, int first, int count) {
  map.data += first * map.stride_c;
  map.channels = count;
  map.vector = map.vector && first % 2 == 0;
  return map;
}

// the average over 3 x 3 of x, padding counted as zeros, in front of the branch
template <typename T>
__device__ void pool(const Arguments<T>& g, const Place& place, const Activation& relu, int thread) {
  constexpr int kVector = Shape<T>::kVector;
  const T* image = g.x.data + place.image * g.x.stride_n;
  const int vectors = (g.x.channels + kVector - 1) / kVector;
  for (int unit = thread; unit < g.window.pixels() * vectors; unit += kThreads) {
    const int pixel = unit / vectors, c = unit % vectors * kVector;
    const Window::Position at = g.window.pixel(pixel);
    const int y = place.y + at.y, x = place.x + at.x;
    if (y >= g.out.height || x >= g.out.width) {
      continue;
    }
    float sum[kVector] = {};
#pragma unroll 1
    for (int tap_y = -1; tap_y <= 1; ++tap_y) {
#pragma unroll
      for (int tap_x = -1; tap_x <= 1; ++tap_x) {
        const int from_y = y * g.window.y.stride + tap_y, from_x = x * g.window.x.stride + tap_x;
        const bool inside = from_y >= 0 && from_y < g.x.height && from_x >= 0 && from_x < g.x.width;
        const Vector<T> value = read_vector(image + from_y * g.x.stride_h + from_x * g.x.stride_w, g.x.stride_c, c,
                                            inside ? g.x.channels : 0, g.x.vector);
#pragma unroll
        for (int i = 0; i < kVector; ++i) {
          sum[i] += static_cast<float>(value.values[i]);
        }
      }
    }
    Vector<T> mean;
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      mean.values[i] = T(relu(sum[i] / kTaps));
    }
    T* to = g.out.data + place.image * g.out.stride_n + y * g.out.stride_h + x * g.out.stride_w;
    if (g.out.vector && g.x.channels % kVector == 0) {
      *reinterpret_cast<Vector<T>*>(to + c) = mean;
    } else {
#pragma unroll
      for (int i = 0; i < kVector; ++i) {
        if (c + i < g.x.channels) {
          to[(c + i) * g.out.stride_c] = mean.values[i];
        }
      }
    }
  }
}

template <typename M>
__global__ void __launch_bounds__(kThreads, 2)
    shuffle_unit_kernel(const __grid_constant__ Arguments<typename M::Element> g) {
  using T = typename M::Element;
  using S = Shape<T>;
  SharedCarver carver;
  const Layout<T> layout(g.window, g.compress.rows, g.groups);
  const Memory<T> memory = carve<T>(carver, layout);
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const Place place = place_of(blockIdx.x, g.out.height, g.out.width, g.window);
  const Activation relu{1, 0.0f};

  prefetch_matrix<kThreads>(g.compress, thread);
  prefetch_matrix<kThreads>(g.expand, thread);
  wait_for_predecessor();
  release_successor();
  locate_slots<kThreads>(memory.offsets, g.x, g.window, place, thread);
  for (int c = thread; c < layout.bottleneck; c += kThreads) {
    const int to = c % layout.width * g.groups + c / layout.width;
    memory.shuffled[c] = to / S::kChunk * layout.slots * S::kPitch + to % S::kChunk;
    memory.column[c] = c / layout.width * layout.padded + c % layout.width;
  }
  constexpr int kTapsOfChunk = (kTaps + 1) * S::kChunk;
  // a tile has at least 9 slots, so the hidden map is the larger
  static_assert(kTapsOfChunk <= 9 * S::kPitch);
  for (int chunk = 0; chunk < layout.chunks(); ++chunk) {
    fill_taps<kThreads>(memory.hidden + chunk * kTapsOfChunk, g.depthwise, kTaps, layout.bottleneck, chunk * S::kChunk,
                        thread, g.depthwise_bias);
  }
  cp_async_commit();
  if (layout.padded != layout.width) {
    for (int i = thread * S::kVector; i < layout.rows * layout.pitch; i += kThreads * S::kVector) {
      *reinterpret_cast<Vector<T>*>(memory.operand + i) = Vector<T>{};
    }
  }
  cp_async_wait<0>();
  for (int chunk = 0; chunk < layout.chunks(); ++chunk) {
    land_taps<kThreads>(memory.taps + chunk * kTapsOfChunk, memory.hidden + chunk * kTapsOfChunk, kTaps, 1, thread);
  }
  __syncthreads();

  const int depth = g.compress.columns, first_groups = g.x.channels / depth,
            compressed = g.compress.rows / first_groups;
  const bool vector = g.x.vector && depth % S::kVector == 0;
  for_each_piece(layout.slots, first_groups, compressed, warp, [&](int row, int group, int column) {
    const T* from = g.x.data + place.image * g.x.stride_n + group * depth * g.x.stride_c;
    const int first = group * compressed + column;
    const Matrix<T> weight = rows_of(g.compress, first, min(compressed - column, kWarpColumns));
    int64_t offsets[2 * kRows];
#pragma unroll
    for (int i = 0; i < 2 * kRows; ++i) {
      const int slot = row + 8 * i + lane / 4;
      offsets[i] = slot < layout.slots ? memory.offsets[slot] : -1;
    }
    float acc[kRows][kTiles][4] = {};
    const auto slots = [&](int i, int k) {
      return read_vector(from + offsets[i], g.x.stride_c, k, offsets[i] >= 0 ? depth : 0, vector);
    };
    multiply_direct<M>(acc, slots, weight, lane);
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int c = t * 8 + lane % 4 * 2 + e;
        if (c < weight.rows) {
          const float bias = static_cast<float>(g.compress_bias[first + c]);
          T* to = memory.hidden + memory.shuffled[first + c];
#pragma unroll
          for (int i = 0; i < 2 * kRows; ++i) {
            const int slot = row + 8 * i + lane / 4;
            if (slot < layout.slots) {
              // the depthwise convolution pads the compressed map, not x
              to[slot * S::kPitch] = T(offsets[i] >= 0 ? relu(acc[i / 2][t][i % 2 * 2 + e] + bias) : 0.0f);
            }
          }
        }
      }
    }
  });
  __syncthreads();

  for (int first = 0; first < layout.bottleneck; first += S::kChunk) {
    const int chunk = first / S::kChunk;
    const auto store = [&](int pixel, int part, const Vector<T>& result) {
      T* to = memory.operand + pixel * layout.pitch;
      const int c = first + part, count = pixel < layout.rows ? layout.bottleneck - c : 0;
      if (layout.padded == layout.width && count > 0) {
        *reinterpret_cast<Vector<T>*>(to + memory.column[c]) = result;
      } else {
#pragma unroll
        for (int i = 0; i < S::kVector; ++i) {
          if (i < count) {
            to[memory.column[c + i]] = result.values[i];
          }
        }
      }
    };
    depthwise_sized<kThreads, 3>(store, memory.hidden + chunk * layout.slots * S::kPitch,
                                 memory.taps + chunk * kTapsOfChunk, g.window, Activation{0, 0.0f}, thread);
  }
  __syncthreads();

  const int expanded = g.expand.rows / g.groups, before = g.concat ? g.x.channels : 0;
  for_each_piece(g.window.pixels(), g.groups, expanded, warp, [&](int row, int group, int column) {
    const int first = group * expanded + column;
    const Matrix<T> weight = rows_of(g.expand, first, min(expanded - column, kWarpColumns));
    const T* from = memory.operand + (row + lane / 4) * layout.pitch + group * layout.padded;
    float acc[kRows][kTiles][4] = {};
    const auto pixels = [&](int i, int k) {
      return read_vector(from + 8 * i * layout.pitch, 1, k, layout.width, true);
    };
    multiply_direct<M>(acc, pixels, weight, lane);
    const Map<T> out = channels_of(g.out, before + first, weight.rows);
    const Map<const T> residual = g.concat ? Map<const T>{} : channels_of(g.x, first, weight.rows);
    const auto bias = [&](int c) { return pair_at(g.expand_bias + first, 1, c, weight.rows, false); };
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      store_tile(acc[r], out, g.window, place, bias, residual, relu, row + 16 * r, 0, lane);
    }
  });
  if (g.concat) {
    pool(g, place, relu, thread);
  }
}

Tensor shuffle_unit(const Tensor& x, const Tensor& compress_weight, const Tensor& compress_bias,
                    const Tensor& depthwise_weight, const Tensor& depthwise_bias, const Tensor& expand_weight,
                    const Tensor& expand_bias, int64_t groups, std::vector<int64_t> stride,
                    std::vector<int64_t> dilation, bool concat, bool allow_tf32) {
  LITESEG_CHECK(on_device(x), kOp, "x", "a tensor on the device of this library", "another device");
  check_sizes(kOp, "x", x);
  check_sizes(kOp, "compress_weight", compress_weight);
  check_sizes(kOp, "expand_weight", expand_weight);
  const int64_t c = x.size(1), bottleneck = compress_weight.size(0), width = compress_weight.size(1);
  const int64_t branch = expand_weight.size(0), first_groups = width > 0 && c % width == 0 ? c / width : 0;
  LITESEG_CHECK(first_groups > 0 && bottleneck % first_groups == 0, kOp, "compress_weight",
                text("groups that divide the ", c, " channels and the bottleneck"), shape_text(compress_weight));
  LITESEG_CHECK(groups > 0 && bottleneck % groups == 0, kOp, "groups", text("a divisor of the bottleneck ", bottleneck),
                groups);
  LITESEG_CHECK(branch % groups == 0, kOp, "expand_weight", text("output channels divisible by ", groups), branch);
  check_shape(kOp, "compress_weight", compress_weight, {bottleneck, width, 1, 1});
  check_shape(kOp, "compress_bias", compress_bias, {bottleneck});
  check_shape(kOp, "depthwise_weight", depthwise_weight, {bottleneck, 1, 3, 3});
  check_shape(kOp, "depthwise_bias", depthwise_bias, {bottleneck});
  check_shape(kOp, "expand_weight", expand_weight, {branch, bottleneck / groups, 1, 1});
  check_shape(kOp, "expand_bias", expand_bias, {branch});
  for (const auto& weight :
       {compress_weight, compress_bias, depthwise_weight, depthwise_bias, expand_weight, expand_bias}) {
    check_same_dtype(kOp, "weights", weight, x);
  }
  LITESEG_CHECK(concat || (branch == c && stride[0] == 1 && stride[1] == 1), kOp, "concat",
                "true unless the stride is 1 and the branch has the input's channels",
                text("false with stride ", stride[0], ", ", stride[1], " and ", c, " -> ", branch, " channels"));
  const int64_t ho = convolved(x.size(2), 3, stride[0], dilation[0], dilation[0]);
  const int64_t wo = convolved(x.size(3), 3, stride[1], dilation[1], dilation[1]);
  const DeviceScope scope(x);
  const Tensor out =
      empty_map(scope, {x.size(0), concat ? c + branch : branch, ho, wo}, x.scalar_type(), is_channels_last(x));
  if (out.numel() == 0) {
    return out;
  }
  const Tensor b1 = dense(compress_bias), taps = dense(depthwise_weight), b2 = dense(depthwise_bias),
               b3 = dense(expand_bias);
  dispatch_math(kOp, "x", x.scalar_type(), allow_tf32, [&](auto math) {
    using M = decltype(math);
    using T = typename M::Element;
    Arguments<T> g{};
    g.x = map_of<const T>(x);
    g.compress = matrix_of<T>(compress_weight);
    g.compress_bias = pointer<T>(b1);
    g.depthwise = pointer<T>(taps);
    g.depthwise_bias = pointer<T>(b2);
    g.expand = matrix_of<T>(expand_weight);
    g.expand_bias = pointer<T>(b3);
    g.out = map_of<T>(out);
    g.groups = static_cast<int>(groups);
    g.concat = concat;
    const auto kernel = shuffle_unit_kernel<M>;
    const auto attempt = [&](int pixels, int, int) {
      g.window = make_window(out, pixels, {3, 3}, stride, dilation, dilation);
      SharedMeter meter;
      carve<T>(meter, Layout<T>(g.window, g.compress.rows, g.groups));
      // pieces of 32 rows, and their products' depth, against what a block does once
      const double rows = (g.window.slots() + kWarpRows - 1) / kWarpRows * kWarpRows;
      const double work = rows * g.compress.rows * g.compress.columns + pixels * g.expand.rows * g.expand.columns;
      return Attempt{meter.bytes(), tiles_of(out, g.window), work / 100.0, work / 200.0, 3000.0, 1000.0};
    };
    const Fit fit = fit_launch(kOp, scope, kernel, kThreads, 2, 1, 1, 1, attempt);
    launch_early(kernel, dim3(static_cast<unsigned>(tiles_of(out, g.window))), dim3(kThreads), fit.bytes, 1, scope, g);
  });
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(liteseg_cuda, LITESEG_DEVICE_KEY, m) {
  m.impl("shuffle_unit", TORCH_BOX(&shuffle_unit));
}

}  // namespace
}  // namespace liteseg
