// inverted_residual - MobileNetV2's block in one launch: 1x1 expansion, depthwise k x k, 1x1 projection (+ input).
// Replaces: three F.conv2d, two activations and an add; the hidden maps exist only in shared memory
// Shapes:   x [N, C, H, W], expand [E, C, 1, 1] or none, depthwise [E, 1, KH, KW], project [CO, E, 1, 1]
//           -> out [N, CO, HO, WO], in x's memory format; any strides in
// Traffic:  minimum (N*C*H*W + N*CO*HO*WO + weights) * sizeof(T); eager moves 4*N*E*H*W*sizeof(T) more. The
//           expansion is computed for a tile's slots: 1.6 times at stride 1 and dilation 1, 1.1 times at stride 2
// Bound:    instructions; at batch 1 from stride 16 on the length of a block's chain of them. Measured
//           launch by launch in benchmarks/results/predicted-gpu.md; what the code costs is in nvcc.csv beside it
// Launch:   grid (tiles of up to 64 pixels over all images, blocks of 64 or 160 output channels, splits), 256 threads.
//           x's slots stay in shared memory; the weights and biases of up to two more chunks of 64 bytes of hidden
//           channels are on their way while one is worked on. Tile, splits and stages are those that the costs of the
//           code (Attempt) make fastest: small tiles and, on sm_90, clusters of up to 8 blocks that share the hidden
//           channels where multiprocessors would be idle. Without an expansion the block is a separable convolution
//           with an activation in between
// Numerics: float32 accumulation; both hidden values are rounded to T, as eager stores them. A hidden value outside the
//           image is zero, the expansion's bias does not leak into the padding. float32 products are exact unless tf32
//           is allowed. One block owns a tile, or a cluster does and adds up in its blocks' order: deterministic; how
//           many share a tile depends on the grid and the device, so other batches may round otherwise
// Limits:   float32, float16, bfloat16; kernels up to 5 x 5; up to 384 input channels (the slots have to fit)
#include <liteseg/separable.cuh>

namespace liteseg {
namespace {

constexpr char kOp[] = "inverted_residual";
constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kColumnGroups = kWarps / 4;

template <typename T>
struct Arguments {
  Map<const T> x;           // [N, C, H, W]
  Matrix<T> expand;         // [E, C]
  const T* expand_bias;     // [E] or null
  const T* depthwise;       // [E, 1, KH, KW]
  const T* depthwise_bias;  // [E] or null
  Matrix<T> project;        // [CO, E]
  const T* project_bias;    // [CO] or null
  Map<const T> residual;    // x or, with data null, nothing
  Map<T> out;               // [N, CO, HO, WO]
  Window window;
  Activation activation;
  int stages;
  // blocks of a cluster, each with a part of the hidden channels
  int splits;
};

template <typename T>
struct Memory {
  int64_t* offsets;   // [slots]
  T* x;               // [chunks of C][slots, rounded up to 16][chunk]
  T* hidden;          // [slots, rounded up to 16][chunk]
  T* operand;         // [64 pixels][chunk]
  Staged<T> expand;   // [chunks of C][chunk of E][chunk]
  Staged<T> project;  // [columns][chunk]
  Taps<T> taps;       // with the biases of the depthwise convolution and of the expansion
  float* bias;        // [columns]
  float* sums;        // [64 pixels][columns, padded] of this block's hidden channels, where there are several blocks
};

template <int kTiles>
constexpr int kColumns = kTiles * 8 * kColumnGroups;

template <typename T, int kTiles, typename Carver>
__host__ __device__ Memory<T> carve(Carver& carver, const Window& window, int channels, int stages, int splits) {
  using S = Shape<T>;
  Memory<T> memory{};
  const int64_t rows = (window.slots() + 15) / 16 * 16, chunks = (channels + S::kChunk - 1) / S::kChunk;
  memory.offsets = carver.template take<int64_t>(window.slots());
  memory.x = carver.template take<T>(chunks * rows * S::kPitch);
  memory.hidden = carver.template take<T>(rows * S::kPitch);
  memory.operand = carver.template take<T>(int64_t{kTilePixels} * S::kPitch);
  memory.taps.ready = carver.template take<float>(values_of_taps<T>(window.taps(), 2));
  for_stages(stages, [&](int i) {
    memory.expand.place(i, carver.template take<T>(chunks * S::kChunk * S::kPitch));
    memory.project.place(i, carver.template take<T>(int64_t{kColumns<kTiles>} * S::kPitch));
    memory.taps.raw.place(i, carver.template take<T>(values_of_taps<T>(window.taps(), 2)));
  });
  memory.bias = carver.template take<float>(kColumns<kTiles>);
  memory.sums = Sums<kColumns<kTiles>>::carve(carver, splits);
  return memory;
}

template <typename M, int kTiles>
__global__ void __launch_bounds__(kThreads, 1)
    inverted_residual_kernel(const __grid_constant__ Arguments<typename M::Element> g) {
  using T = typename M::Element;
  using S = Shape<T>;
  SharedCarver carver;
  const Memory<T> memory = carve<T, kTiles>(carver, g.window, g.x.channels, g.stages, g.splits);
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const int slots = g.window.slots(), taps = g.window.taps(), rows = (slots + 15) / 16 * 16;
  const int chunks = (g.x.channels + S::kChunk - 1) / S::kChunk, hidden_channels = g.expand.rows;
  const int first_column = static_cast<int>(blockIdx.y) * kColumns<kTiles>;
  const Part part = part_of<T>(hidden_channels, g.splits);
  const Place place = place_of(blockIdx.x, g.out.height, g.out.width, g.window);

  prefetch_matrix<kThreads>(g.expand, thread);
  prefetch_matrix<kThreads>(g.project, thread);
  wait_for_predecessor();
  release_successor();
  locate_slots<kThreads>(memory.offsets, g.x, g.window, place, thread);
  fill_floats<kThreads>(memory.bias, g.project_bias, first_column, kColumns<kTiles>, g.project.rows, thread);
  __syncthreads();
  const MapSource<T, kThreads> source{g.x, g.x.data + place.image * g.x.stride_n, memory.offsets, slots};
  for (int chunk = 0; chunk < chunks; ++chunk) {
    source.fill(memory.x + chunk * rows * S::kPitch, chunk * S::kChunk, thread);
  }
  const auto fill = [&](int stage, int first) {
    for (int chunk = 0; chunk < chunks; ++chunk) {
      fill_matrix<kThreads>(memory.expand[stage] + chunk * S::kChunk * S::kPitch, g.expand, first, S::kChunk,
                            chunk * S::kChunk, thread);
    }
    fill_matrix<kThreads>(memory.project[stage], g.project, first_column, kColumns<kTiles>, first, thread);
    fill_taps<kThreads>(memory.taps.raw[stage], g.depthwise, taps, hidden_channels, first, thread, g.depthwise_bias,
                        g.expand_bias);
  };
  const auto land = [&](int stage) { land_taps<kThreads>(memory.taps.ready, memory.taps.raw[stage], taps, 2, thread); };
  float acc[kTiles][4];
  clear(acc);
  for_chunks<S::kChunk>(part.begin, part.end, g.stages, fill, land, [&](int stage, int first) {
    for (int row = warp * 16; row < rows; row += kWarps * 16) {
      float expanded[S::kChunk / 8][4];
      start(expanded, memory.taps.ready + (taps + 1) * S::kChunk, lane);
      int chunk = 0;
#pragma unroll 1
      do {
        multiply<M>(expanded, memory.x + (chunk * rows + row) * S::kPitch,
                    memory.expand[stage] + chunk * S::kChunk * S::kPitch, lane);
      } while (++chunk < chunks);
      const int slot = row + lane / 4;
      // the depthwise convolution pads the hidden map, not x
      const bool inside[2] = {slot < slots && memory.offsets[slot] >= 0,
                              slot + 8 < slots && memory.offsets[slot + 8] >= 0};
      store_hidden(memory.hidden + row * S::kPitch, 0, expanded, g.activation, inside, hidden_channels - first, lane);
    }
    __syncthreads();
    depthwise<kThreads>(memory.operand, memory.hidden, memory.taps.ready, g.window, g.activation, thread);
    __syncthreads();
    if (warp % 4 * 16 < g.window.pixels()) {
      multiply<M>(acc, memory.operand + warp % 4 * 16 * S::kPitch,
                  memory.project[stage] + warp / 4 * kTiles * 8 * S::kPitch, lane);
    }
  });
  const int row = warp % 4 * 16, column = warp / 4 * kTiles * 8;
  const Activation none{0, 0.0f};
  if (g.splits == 1) {
    store_tile(acc, g.out, g.window, place, StagedBias{memory.bias + column}, g.residual, none, row,
               first_column + column, lane);
  } else {
    store_sums<kColumns<kTiles>, kThreads>(acc, memory.sums, g.splits, g.out, g.window, place, StagedBias{memory.bias},
                                           g.residual, none, row, column, first_column, thread);
  }
}

template <typename M, int kTiles>
void launch_inverted_residual(Arguments<typename M::Element> g, const Tensor& out, const std::vector<int64_t>& kernel,
                              const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                              const std::vector<int64_t>& dilation, const DeviceScope& scope) {
  using T = typename M::Element;
  constexpr int kChunk = Shape<T>::kChunk;
  const int64_t columns = (g.project.rows + kColumns<kTiles> - 1) / kColumns<kTiles>;
  const auto kernel_of_tiles = inverted_residual_kernel<M, kTiles>;
  const double depth = (g.x.channels + kChunk - 1) / kChunk;
  const auto attempt = [&](int pixels, int splits, int stages) {
    g.window = make_window(out, pixels, kernel, stride, padding, dilation);
    g.splits = splits;
    g.stages = stages;
    SharedMeter meter;
    carve<T, kTiles>(meter, g.window, g.x.channels, stages, g.splits);
    // strips of 16 slots are expanded by a warp each, then 8 pixels convolved and 16 projected
    const int strips = (g.window.slots() + 15) / 16, rounds = (strips + kWarps - 1) / kWarps;
    return Attempt{meter.bytes(),
                   tiles_of(out, g.window) * columns,
                   rounds * (320.0 + 90.0 * depth) + 900.0 + 20.0 * kTiles,
                   strips * (40.0 + 10.0 * depth) + pixels * (10.0 + kTiles) + 300.0,
                   1500.0 + 10.0 * depth * strips,
                   800.0 + 5.0 * pixels * kTiles};
  };
  const Fit fit = fit_launch(kOp, scope, kernel_of_tiles, kThreads, 1, (g.expand.rows + kChunk - 1) / kChunk,
                             most_splits(scope), kMaxStages, attempt);
  launch_early(kernel_of_tiles,
               dim3(static_cast<unsigned>(tiles_of(out, g.window)), static_cast<unsigned>(columns),
                    static_cast<unsigned>(g.splits)),
               dim3(kThreads), fit.bytes, g.splits, scope, g);
}

Tensor inverted_residual(const Tensor& x, const std::optional<Tensor>& expand_weight,
                         const std::optional<Tensor>& expand_bias, const Tensor& depthwise_weight,
                         const std::optional<Tensor>& depthwise_bias, const Tensor& project_weight,
                         const std::optional<Tensor>& project_bias, std::vector<int64_t> stride,
                         std::vector<int64_t> dilation, int64_t activation, double negative_slope, bool residual,
                         bool allow_tf32) {
  LITESEG_CHECK(on_device(x), kOp, "x", "a tensor on the device of this library", "another device");
  check_sizes(kOp, "x", x);
  check_sizes(kOp, "depthwise_weight", depthwise_weight);
  check_sizes(kOp, "project_weight", project_weight);
  const int64_t hidden = depthwise_weight.size(0), co = project_weight.size(0);
  const std::vector<int64_t> kernel{depthwise_weight.size(2), depthwise_weight.size(3)};
  check_shape(kOp, "depthwise_weight", depthwise_weight, {hidden, 1, kernel[0], kernel[1]});
  check_shape(kOp, "project_weight", project_weight, {co, hidden, 1, 1});
  LITESEG_CHECK(kernel[0] <= kMaxKernel && kernel[1] <= kMaxKernel, kOp, "depthwise_weight",
                "a kernel of at most 5 x 5", shape_text(depthwise_weight));
  if (expand_weight.has_value()) {
    check_shape(kOp, "expand_weight", *expand_weight, {hidden, x.size(1), 1, 1});
    check_same_dtype(kOp, "expand_weight", *expand_weight, x);
  } else {
    LITESEG_CHECK(hidden == x.size(1), kOp, "depthwise_weight", text("[", x.size(1), ", 1, kh, kw]"),
                  shape_text(depthwise_weight));
  }
  for (const auto& weight : {depthwise_weight, project_weight}) {
    check_same_dtype(kOp, "weights", weight, x);
  }
  std::vector<int64_t> padding(2);
  for (size_t i = 0; i < 2; ++i) {
    padding[i] = dilation[i] * (kernel[i] - 1) / 2;
  }
  const int64_t ho = convolved(x.size(2), kernel[0], stride[0], padding[0], dilation[0]);
  const int64_t wo = convolved(x.size(3), kernel[1], stride[1], padding[1], dilation[1]);
  const DeviceScope scope(x);
  const Tensor out = empty_map(scope, {x.size(0), co, ho, wo}, x.scalar_type(), is_channels_last(x));
  if (out.numel() == 0) {
    return out;
  }
  const Activation act{static_cast<int>(activation), static_cast<float>(negative_slope)};
  const Tensor depthwise = dense(depthwise_weight);
  const std::optional<Tensor> b1 = dense(expand_bias), b2 = dense(depthwise_bias), b3 = dense(project_bias);
  if (!expand_weight.has_value()) {
    SeparableCall call{kOp, {}, stride, residual ? std::optional<Tensor>(x) : std::nullopt, act, {}};
    call.branches.push_back({depthwise, b2, project_weight, b3, padding, dilation, out});
    separable_conv2d_of_map(call, x, std::nullopt, std::nullopt, allow_tf32, scope);
    return out;
  }
  dispatch_math(kOp, "x", x.scalar_type(), allow_tf32, [&](auto math) {
    using M = decltype(math);
    using T = typename M::Element;
    Arguments<T> g{};
    g.x = map_of<const T>(x);
    g.expand = matrix_of<T>(*expand_weight);
    g.expand_bias = pointer<T>(b1);
    g.depthwise = pointer<T>(depthwise);
    g.depthwise_bias = pointer<T>(b2);
    g.project = matrix_of<T>(project_weight);
    g.project_bias = pointer<T>(b3);
    g.residual = residual ? g.x : Map<const T>{};
    g.out = map_of<T>(out);
    g.activation = act;
    if (co <= 64) {
      launch_inverted_residual<M, 4>(g, out, kernel, stride, padding, dilation, scope);
    } else {
      launch_inverted_residual<M, 10>(g, out, kernel, stride, padding, dilation, scope);
    }
  });
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(liteseg_cuda, LITESEG_DEVICE_KEY, m) {
  m.impl("inverted_residual", TORCH_BOX(&inverted_residual));
}

}  // namespace
}  // namespace liteseg
