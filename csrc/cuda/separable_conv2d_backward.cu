// separable_conv2d_backward - gradients of the input, both weights, the bias and the residual.
// Replaces: the backward of two F.conv2d, an add and an activation; the depthwise map is computed again, not kept
// Shapes:   grad, output [N, CO, HO, WO], x [N, C, H, W], depthwise [C, 1, KH, KW], pointwise [CO, C, 1, 1]
// Launches: dz * pointwise (the forward's kernel; dz = grad through the activation, formed where it is read) into the
//           one temporary map [N, HO, WO, C]; a gather from it for x; for each weight the sums of at most 64 parts of
//           the pixels and their sum in order; dz itself where a residual asks for it
// Traffic:  grad and output once a block of 96 input channels; the temporary is written once and read twice
// Bound:    memory; the pointwise weight's gradient reads every pixel once a block of 64 x 32 weights. Not timed yet.
// Numerics: float32 accumulation; dz, the depthwise value and its gradient are rounded to T, as eager stores them. Sums
//           are cut at fixed places and added in order, no atomics: deterministic. float32 products are exact unless
//           tf32 is allowed
// Limits:   float32, float16, bfloat16
#include <liteseg/separable.cuh>

#include <tuple>

namespace liteseg {
namespace {

constexpr char kOp[] = "separable_conv2d_backward";
constexpr int kThreads = 128;
constexpr int kMaxParts = 64;
// rows (output channels) and columns (input channels) of a block of the pointwise weight's gradient
constexpr int kWeightRows = 64;
constexpr int kWeightTiles = 4;
constexpr int kWeightColumns = kWeightTiles * 8;
constexpr int kSumChannels = 32;

// dz = grad through the activation
template <typename T>
struct Upstream {
  Map<const T> grad, output;  // [N, CO, HO, WO]
  Activation activation;

  __device__ float at(int64_t grad_offset, int64_t output_offset) const {
    const float value = static_cast<float>(grad.data[grad_offset]);
    return activation.kind == 0 ? value : activation.gradient(value, static_cast<float>(output.data[output_offset]));
  }
};

template <typename T>
__device__ int64_t offset_of(const Map<T>& map, int image, int y, int x) {
  return image * map.stride_n + y * map.stride_h + x * map.stride_w;
}

// dz as the input of the forward's kernel
template <typename T>
struct UpstreamInput {
  Upstream<T> upstream;

  template <int kThreadsOfBlock>
  struct Source {
    const Upstream<T>& upstream;
    // [slots][2]: offsets in grad and in output, or -1
    const int64_t* table;
    int slots;

    __device__ const T* operand(const T* tile, int) const {
      return tile;
    }

    __device__ void fill(T* tile, int first, int thread) const {
      using S = Shape<T>;
      for (int unit = thread; unit < slots * kVectorsOfChunk; unit += kThreadsOfBlock) {
        const int slot = unit / kVectorsOfChunk, c = first + unit % kVectorsOfChunk * S::kVector;
        Vector<T> vector;
#pragma unroll
        for (int i = 0; i < S::kVector; ++i) {
          const bool read = table[2 * slot] >= 0 && c + i < upstream.grad.channels;
          vector.values[i] = T(read ? upstream.at(table[2 * slot] + (c + i) * upstream.grad.stride_c,
                                                  table[2 * slot + 1] + (c + i) * upstream.output.stride_c)
                                    : 0.0f);
        }
        *reinterpret_cast<Vector<T>*>(tile + slot * S::kPitch + unit % kVectorsOfChunk * S::kVector) = vector;
      }
    }
  };

  template <typename Carver>
  static __host__ __device__ int64_t* carve(Carver& carver, int slots) {
    return carver.template take<int64_t>(int64_t{slots} * 2);
  }

  template <int kThreadsOfBlock>
  __device__ Source<kThreadsOfBlock> source(int64_t* table, const Window& window, const Place& place,
                                            int thread) const {
    for (int slot = thread; slot < window.slots(); slot += kThreadsOfBlock) {
      const Window::Position at = window.slot(slot);
      const int y = place.y + at.y, x = place.x + at.x;
      const bool inside = y < upstream.grad.height && x < upstream.grad.width;
      table[2 * slot] = inside ? offset_of(upstream.grad, place.image, y, x) : -1;
      table[2 * slot + 1] = offset_of(upstream.output, place.image, y, x);
    }
    return {upstream, table, window.slots()};
  }
};

template <typename T>
__global__ void __launch_bounds__(kThreads)
    residual_gradient_kernel(const __grid_constant__ Upstream<T> upstream, const __grid_constant__ Map<T> out,
                             int64_t count) {
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count;
       i += static_cast<int64_t>(gridDim.x) * kThreads) {
    const int c = static_cast<int>(i % out.channels);
    const int64_t pixel = i / out.channels;
    const int x = static_cast<int>(pixel % out.width), y = static_cast<int>(pixel / out.width % out.height);
    const int image = static_cast<int>(pixel / out.width / out.height);
    out.data[offset_of(out, image, y, x) + c * out.stride_c] =
        T(upstream.at(offset_of(upstream.grad, image, y, x) + c * upstream.grad.stride_c,
                      offset_of(upstream.output, image, y, x) + c * upstream.output.stride_c));
  }
}

// one thread an element of x: the gradients of all outputs that it went into
template <typename T>
__global__ void __launch_bounds__(kThreads)
    input_gradient_kernel(const __grid_constant__ Map<const T> between,  // [N, C, HO, WO]
                          const T* __restrict__ weight,                  // [C, 1, KH, KW]
                          const __grid_constant__ Map<T> out,            // [N, C, H, W]
                          const __grid_constant__ Window window, int64_t count) {
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count;
       i += static_cast<int64_t>(gridDim.x) * kThreads) {
    const int c = static_cast<int>(i % out.channels);
    const int64_t pixel = i / out.channels;
    const int x = static_cast<int>(pixel % out.width), y = static_cast<int>(pixel / out.width % out.height);
    const int image = static_cast<int>(pixel / out.width / out.height);
    float sum = 0.0f;
    for (int ky = 0; ky < window.y.kernel; ++ky) {
      const int from_y = y + window.y.padding - ky * window.y.dilation;
      if (from_y < 0 || from_y % window.y.stride != 0 || from_y / window.y.stride >= between.height) {
        continue;
      }
      for (int kx = 0; kx < window.x.kernel; ++kx) {
        const int from_x = x + window.x.padding - kx * window.x.dilation;
        if (from_x < 0 || from_x % window.x.stride != 0 || from_x / window.x.stride >= between.width) {
          continue;
        }
        const int64_t offset = offset_of(between, image, from_y / window.y.stride, from_x / window.x.stride);
        const float w =
            static_cast<float>(weight[(static_cast<int64_t>(c) * window.y.kernel + ky) * window.x.kernel + kx]);
        sum = fmaf(static_cast<float>(between.data[offset + c * between.stride_c]), w, sum);
      }
    }
    out.data[offset_of(out, image, y, x) + c * out.stride_c] = T(sum);
  }
}

// the pixels [first, last) of one part
struct Range {
  int64_t first, last;
};

__device__ inline Range range_of(int64_t pixels, int parts, int part) {
  const int64_t each = (pixels + parts - 1) / parts;
  const int64_t first = min(pixels, part * each);
  return {first, min(pixels, first + each)};
}

// sums over a part's pixels of value(pixel, channel), 32 channels a block: four interleaved sums, added in order
template <typename F>
__device__ float channel_sum(float* scratch, const Range& range, int thread, const F& value) {
  float sum = 0.0f;
  for (int64_t pixel = range.first + thread / kSumChannels; pixel < range.last; pixel += kThreads / kSumChannels) {
    sum += value(pixel);
  }
  scratch[thread] = sum;
  __syncthreads();
  float total = 0.0f;
  for (int group = 0; group < kThreads / kSumChannels; ++group) {
    total += scratch[group * kSumChannels + thread % kSumChannels];
  }
  return total;
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    bias_parts_kernel(const __grid_constant__ Upstream<T> upstream, float* __restrict__ parts,  // [parts, CO]
                      int64_t pixels) {
  SharedCarver carver;
  float* scratch = carver.take<float>(kThreads);
  const Map<const T>& grad = upstream.grad;
  const int thread = static_cast<int>(threadIdx.x);
  const int c = static_cast<int>(blockIdx.x) * kSumChannels + thread % kSumChannels;
  const Range range = range_of(pixels, static_cast<int>(gridDim.y), static_cast<int>(blockIdx.y));
  const float total = channel_sum(scratch, range, thread, [&](int64_t pixel) {
    const int x = static_cast<int>(pixel % grad.width), y = static_cast<int>(pixel / grad.width % grad.height);
    const int image = static_cast<int>(pixel / grad.width / grad.height);
    return c >= grad.channels ? 0.0f
                              : upstream.at(offset_of(grad, image, y, x) + c * grad.stride_c,
                                            offset_of(upstream.output, image, y, x) + c * upstream.output.stride_c);
  });
  if (thread < kSumChannels && c < grad.channels) {
    parts[static_cast<int64_t>(blockIdx.y) * grad.channels + c] = total;
  }
}

// blockIdx.z is the tap
template <typename T>
__global__ void __launch_bounds__(kThreads)
    depthwise_parts_kernel(const __grid_constant__ Map<const T> between,  // [N, C, HO, WO]
                           const __grid_constant__ Map<const T> x,        // [N, C, H, W]
                           float* __restrict__ parts,                     // [parts, C, KH * KW]
                           const __grid_constant__ Window window, int64_t pixels) {
  SharedCarver carver;
  float* scratch = carver.take<float>(kThreads);
  const int thread = static_cast<int>(threadIdx.x), tap = static_cast<int>(blockIdx.z);
  const int c = static_cast<int>(blockIdx.x) * kSumChannels + thread % kSumChannels;
  const int shift_y = tap / window.x.kernel * window.y.dilation - window.y.padding;
  const int shift_x = tap % window.x.kernel * window.x.dilation - window.x.padding;
  const Range range = range_of(pixels, static_cast<int>(gridDim.y), static_cast<int>(blockIdx.y));
  const float total = channel_sum(scratch, range, thread, [&](int64_t pixel) {
    const int ox = static_cast<int>(pixel % between.width);
    const int oy = static_cast<int>(pixel / between.width % between.height);
    const int image = static_cast<int>(pixel / between.width / between.height);
    const int iy = oy * window.y.stride + shift_y, ix = ox * window.x.stride + shift_x;
    if (c >= x.channels || iy < 0 || iy >= x.height || ix < 0 || ix >= x.width) {
      return 0.0f;
    }
    return static_cast<float>(between.data[offset_of(between, image, oy, ox) + c * between.stride_c]) *
           static_cast<float>(x.data[offset_of(x, image, iy, ix) + c * x.stride_c]);
  });
  if (thread < kSumChannels && c < x.channels) {
    parts[(static_cast<int64_t>(blockIdx.y) * x.channels + c) * gridDim.z + tap] = total;
  }
}

template <typename T>
struct PointwiseMemory {
  T *rows, *columns;
};

template <typename T, typename Carver>
__host__ __device__ PointwiseMemory<T> carve_pointwise(Carver& carver) {
  T* rows = carver.template take<T>(int64_t{kWeightRows} * Shape<T>::kPitch);
  return {rows, carver.template take<T>(int64_t{kWeightColumns} * Shape<T>::kPitch)};
}

// a block of 64 x 32 weights: the product over a part's pixels of dz and the depthwise map, both turned so that the
// pixels lie along the rows
template <typename M>
__global__ void __launch_bounds__(kThreads, 4)
    pointwise_parts_kernel(const __grid_constant__ Upstream<typename M::Element> upstream,
                           const __grid_constant__ Map<const typename M::Element> x,  // [N, C, H, W]
                           const typename M::Element* __restrict__ weight,            // [C, 1, KH, KW]
                           float* __restrict__ parts,                                 // [parts, CO, C]
                           const __grid_constant__ Window window, int64_t pixels) {
  using T = typename M::Element;
  using S = Shape<T>;
  SharedCarver carver;
  const PointwiseMemory<T> memory = carve_pointwise<T>(carver);
  const Map<const T>& grad = upstream.grad;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const int blocks = (x.channels + kWeightColumns - 1) / kWeightColumns;
  const int first_row = static_cast<int>(blockIdx.x) / blocks * kWeightRows;
  const int first_column = static_cast<int>(blockIdx.x) % blocks * kWeightColumns;
  const Range range = range_of(pixels, static_cast<int>(gridDim.y), static_cast<int>(blockIdx.y));
  float acc[kWeightTiles][4];
  clear(acc);
  for (int64_t first = range.first; first < range.last; first += S::kChunk) {
    // the product before reads what is written now
    __syncthreads();
    for (int unit = thread; unit < (kWeightRows + kWeightColumns) * S::kChunk; unit += kThreads) {
      // neighbouring threads take neighbouring channels of one pixel
      const int at = unit / (kWeightRows + kWeightColumns), line = unit % (kWeightRows + kWeightColumns);
      const int64_t pixel = first + at;
      const int ox = static_cast<int>(pixel % grad.width), oy = static_cast<int>(pixel / grad.width % grad.height);
      const int image = static_cast<int>(pixel / grad.width / grad.height);
      if (line < kWeightRows) {
        const int row = first_row + line;
        const bool inside = pixel < range.last && row < grad.channels;
        memory.rows[line * S::kPitch + at] =
            T(inside ? upstream.at(offset_of(grad, image, oy, ox) + row * grad.stride_c,
                                   offset_of(upstream.output, image, oy, ox) + row * upstream.output.stride_c)
                     : 0.0f);
      } else {
        const int c = first_column + line - kWeightRows;
        float sum = 0.0f;
        if (pixel < range.last && c < x.channels) {
          for (int ky = 0; ky < window.y.kernel; ++ky) {
            const int iy = oy * window.y.stride - window.y.padding + ky * window.y.dilation;
            for (int kx = 0; kx < window.x.kernel; ++kx) {
              const int ix = ox * window.x.stride - window.x.padding + kx * window.x.dilation;
              if (iy >= 0 && iy < x.height && ix >= 0 && ix < x.width) {
                const float w =
                    static_cast<float>(weight[(static_cast<int64_t>(c) * window.y.kernel + ky) * window.x.kernel + kx]);
                sum = fmaf(static_cast<float>(x.data[offset_of(x, image, iy, ix) + c * x.stride_c]), w, sum);
              }
            }
          }
        }
        memory.columns[(line - kWeightRows) * S::kPitch + at] = T(sum);
      }
    }
    __syncthreads();
    multiply<M>(acc, memory.rows + warp * 16 * S::kPitch, memory.columns, lane);
  }
  for_each(acc, lane, [&](int row, int column, float value) {
    const int r = first_row + warp * 16 + row, c = first_column + column;
    if (r < grad.channels && c < x.channels) {
      parts[(static_cast<int64_t>(blockIdx.y) * grad.channels + r) * x.channels + c] = value;
    }
  });
}

template <typename T>
__global__ void __launch_bounds__(kThreads) sum_parts_kernel(const float* __restrict__ parts,  // [parts, count]
                                                             T* __restrict__ out,              // [count]
                                                             int count_of_parts, int64_t count) {
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count;
       i += static_cast<int64_t>(gridDim.x) * kThreads) {
    float sum = 0.0f;
    for (int part = 0; part < count_of_parts; ++part) {
      sum += parts[part * count + i];
    }
    out[i] = T(sum);
  }
}

dim3 blocks_for(int64_t count) {
  return dim3(static_cast<unsigned>(std::min<int64_t>((count + kThreads - 1) / kThreads, 1 << 16)));
}

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

Gradients separable_conv2d_backward(const Tensor& grad, const Tensor& x, const Tensor& depthwise_weight,
                                    const Tensor& pointwise_weight, const Tensor& output, std::vector<int64_t> stride,
                                    std::vector<int64_t> padding, std::vector<int64_t> dilation, int64_t activation,
                                    double negative_slope, std::vector<bool> mask, bool allow_tf32) {
  LITESEG_CHECK(on_device(x), kOp, "x", "a tensor on the device of this library", "another device");
  check_sizes(kOp, "x", x);
  check_4d(kOp, "depthwise_weight", depthwise_weight);
  check_sizes(kOp, "pointwise_weight", pointwise_weight);
  const int64_t n = x.size(0), c = x.size(1), co = pointwise_weight.size(0);
  const std::vector<int64_t> kernel{depthwise_weight.size(2), depthwise_weight.size(3)};
  const int64_t taps = kernel[0] * kernel[1];
  const int64_t ho = convolved(x.size(2), kernel[0], stride[0], padding[0], dilation[0]);
  const int64_t wo = convolved(x.size(3), kernel[1], stride[1], padding[1], dilation[1]);
  check_shape(kOp, "depthwise_weight", depthwise_weight, {c, 1, kernel[0], kernel[1]});
  check_shape(kOp, "pointwise_weight", pointwise_weight, {co, c, 1, 1});
  check_shape(kOp, "grad", grad, {n, co, ho, wo});
  check_shape(kOp, "output", output, {n, co, ho, wo});
  for (const auto& other : {grad, depthwise_weight, pointwise_weight, output}) {
    check_same_dtype(kOp, "grad, weights and output", other, x);
  }
  LITESEG_CHECK(taps < 65536, kOp, "depthwise_weight", "fewer than 65536 taps", taps);
  const DeviceScope scope(x);
  const ScalarType dtype = x.scalar_type();
  const auto wanted = [&](size_t i, const std::vector<int64_t>& shape) {
    return empty_dense(scope, mask[i] ? shape : std::vector<int64_t>{0}, dtype);
  };
  const Tensor grad_x =
      mask[0] ? empty_map(scope, {n, c, x.size(2), x.size(3)}, dtype, is_channels_last(x)) : wanted(0, {});
  const Tensor grad_depthwise = wanted(1, {c, 1, kernel[0], kernel[1]});
  const Tensor grad_pointwise = wanted(2, {co, c, 1, 1}), grad_bias = wanted(3, {co});
  const Tensor grad_residual =
      mask[4] ? empty_map(scope, {n, co, ho, wo}, dtype, is_channels_last(output)) : wanted(4, {});

  const int64_t pixels = n * ho * wo;
  const int parts = static_cast<int>(std::clamp<int64_t>(pixels / 256, 1, kMaxParts));
  const auto parts_of = [&](int64_t count) { return empty_dense(scope, {parts, count}, ScalarType::Float); };
  const Tensor depthwise = dense(depthwise_weight);
  dispatch_math(kOp, "x", dtype, allow_tf32, [&](auto math) {
    using M = decltype(math);
    using T = typename M::Element;
    const Upstream<T> upstream{map_of<const T>(grad),
                               map_of<const T>(output),
                               {static_cast<int>(activation), static_cast<float>(negative_slope)}};
    const Map<const T> source = map_of<const T>(x);
    const Window window = make_window(grad, 64, kernel, stride, padding, dilation);
    const auto sum = [&](const Tensor& of, const Tensor& into) {
      launch(sum_parts_kernel<T>, blocks_for(into.numel()), dim3(kThreads), 0, scope.stream(),
             static_cast<const float*>(of.const_data_ptr()), static_cast<T*>(into.mutable_data_ptr()), parts,
             into.numel());
    };
    const auto groups = [](int64_t channels) {
      return static_cast<unsigned>((channels + kSumChannels - 1) / kSumChannels);
    };
    constexpr int64_t kScratch = kThreads * sizeof(float);
    if (mask[0] || mask[1]) {
      const Tensor between = empty_map(scope, {n, c, ho, wo}, dtype, true);
      if (between.numel() > 0) {
        SeparableCall call{kOp, {}, {1, 1}, std::nullopt, {}, {}};
        call.branches.push_back({std::nullopt,
                                 std::nullopt,
                                 torch::stable::transpose(pointwise_weight, 0, 1),
                                 std::nullopt,
                                 {0, 0},
                                 {1, 1},
                                 between});
        launch_separable<M>(call, UpstreamInput<T>{upstream}, {}, scope);
      }
      if (mask[0] && grad_x.numel() > 0) {
        launch(input_gradient_kernel<T>, blocks_for(grad_x.numel()), dim3(kThreads), 0, scope.stream(),
               map_of<const T>(between), static_cast<const T*>(depthwise.const_data_ptr()), map_of<T>(grad_x), window,
               grad_x.numel());
      }
      if (mask[1]) {
        const Tensor partial = parts_of(c * taps);
        launch(depthwise_parts_kernel<T>, dim3(groups(c), static_cast<unsigned>(parts), static_cast<unsigned>(taps)),
               dim3(kThreads), kScratch, scope.stream(), map_of<const T>(between), source,
               static_cast<float*>(partial.mutable_data_ptr()), window, pixels);
        sum(partial, grad_depthwise);
      }
    }
    if (mask[2]) {
      const Tensor partial = parts_of(co * c);
      SharedMeter meter;
      carve_pointwise<T>(meter);
      const int64_t blocks = (co + kWeightRows - 1) / kWeightRows * ((c + kWeightColumns - 1) / kWeightColumns);
      launch(pointwise_parts_kernel<M>, dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(parts)),
             dim3(kThreads), meter.bytes(), scope.stream(), upstream, source,
             static_cast<const T*>(depthwise.const_data_ptr()), static_cast<float*>(partial.mutable_data_ptr()), window,
             pixels);
      sum(partial, grad_pointwise);
    }
    if (mask[3]) {
      const Tensor partial = parts_of(co);
      launch(bias_parts_kernel<T>, dim3(groups(co), static_cast<unsigned>(parts)), dim3(kThreads), kScratch,
             scope.stream(), upstream, static_cast<float*>(partial.mutable_data_ptr()), pixels);
      sum(partial, grad_bias);
    }
    if (mask[4] && grad_residual.numel() > 0) {
      launch(residual_gradient_kernel<T>, blocks_for(grad_residual.numel()), dim3(kThreads), 0, scope.stream(),
             upstream, map_of<T>(grad_residual), grad_residual.numel());
    }
  });
  return {grad_x, grad_depthwise, grad_pointwise, grad_bias, grad_residual};
}

STABLE_TORCH_LIBRARY_IMPL(liteseg_cuda, LITESEG_DEVICE_KEY, m) {
  m.impl("separable_conv2d_backward", TORCH_BOX(&separable_conv2d_backward));
}

}  // namespace
}  // namespace liteseg
