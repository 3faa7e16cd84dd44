// separable_conv2d_classifier - depthwise k x k -> pointwise -> + bias -> activation -> 1x1 to K classes -> + bias.
// Replaces: three F.conv2d and an activation; neither the depthwise map nor the hidden one is stored
// Shapes:   x [N, C, H, W], depthwise [C, 1, KH, KW], pointwise [E, C, 1, 1], classifier [K, E, 1, 1]
//           -> out [N, K, HO, WO], in x's memory format; any strides in
// Traffic:  minimum (N*C*H*W + N*K*HO*WO + weights) * sizeof(T); separable_conv2d and a convolution of its own move
//           2*N*E*HO*WO*sizeof(T) more
// Bound:    memory, in float16, up to C = E = 96. 15.8 us at 360 x 640 on an H200, alone.
// Launch:   grid (tiles of 64 pixels over all images), 128 threads. A tile is separable_conv2d's for all hidden
//           channels, 32 or 96 at a time; the classifier's weights wait in shared memory from the start
// Numerics: as separable_conv2d; the hidden value is rounded to T for the product, as eager stores it. Deterministic
// Limits:   float32, float16, bfloat16; kernels up to 5 x 5; hidden channels and classes that fit shared memory
#include <liteseg/separable.cuh>

namespace liteseg {
namespace {

constexpr char kOp[] = "separable_conv2d_classifier";
constexpr int kThreads = kSeparableThreads;
// classes that are multiplied at a time, in 8 x 8 tiles
constexpr int kClassTiles = 2;
constexpr int kClasses = kClassTiles * 8;

template <typename T>
struct Arguments {
  Map<const T> x;            // [N, C, H, W]
  const T* depthwise;        // [C, 1, KH, KW]
  Matrix<T> pointwise;       // [E, C]
  const T* bias;             // [E] or null
  Matrix<T> classifier;      // [K, E]
  const T* classifier_bias;  // [K] or null
  Map<T> out;                // [N, K, HO, WO]
  Window window;
  Activation activation;
  int stages;
};

template <typename T>
struct Memory {
  int64_t* offsets;  // [slots]
  T* hidden;         // [chunks of E][64 pixels][chunk]
  T* classifier;     // [chunks of E][classes][chunk]
  // [E] and [K], rounded up to whole passes
  float *bias, *classifier_bias;
  Buffers<T> buffers;
  // E and K, rounded up to whole passes
  int chunks, classes;
};

template <typename T, int kTiles, typename Carver>
__host__ __device__ Memory<T> carve(Carver& carver, const Window& window, const Matrix<T>& classifier, int stages) {
  using S = Shape<T>;
  constexpr int kColumns = kTiles * 8;
  Memory<T> memory{};
  memory.chunks = (classifier.columns + kColumns - 1) / kColumns * (kColumns / S::kChunk);
  memory.classes = (classifier.rows + kClasses - 1) / kClasses * kClasses;
  memory.offsets = carver.template take<int64_t>(window.slots());
  memory.hidden = carver.template take<T>(int64_t{memory.chunks} * kTilePixels * S::kPitch);
  memory.classifier = carver.template take<T>(int64_t{memory.chunks} * memory.classes * S::kPitch);
  memory.bias = carver.template take<float>(int64_t{memory.chunks} * S::kChunk);
  memory.classifier_bias = carver.template take<float>(memory.classes);
  memory.buffers = carve_buffers<T>(carver, window.slots(), window.taps(), kColumns, stages);
  return memory;
}

template <typename M, int kTiles>
__global__ void __launch_bounds__(kThreads, kTiles > 4 ? 2 : 3)
    separable_conv2d_classifier_kernel(const __grid_constant__ Arguments<typename M::Element> g) {
  using T = typename M::Element;
  using S = Shape<T>;
  constexpr int kColumns = kTiles * 8;
  SharedCarver carver;
  const Memory<T> memory = carve<T, kTiles>(carver, g.window, g.classifier, g.stages);
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const int hidden_channels = g.classifier.columns;
  const Place place = place_of(blockIdx.x, g.out.height, g.out.width, g.window);

  prefetch_matrix<kThreads>(g.pointwise, thread);
  prefetch_matrix<kThreads>(g.classifier, thread);
  wait_for_predecessor();
  release_successor();
  for (int chunk = 0; chunk < memory.chunks; ++chunk) {
    fill_matrix<kThreads>(memory.classifier + chunk * memory.classes * S::kPitch, g.classifier, 0, memory.classes,
                          chunk * S::kChunk, thread);
  }
  locate_slots<kThreads>(memory.offsets, g.x, g.window, place, thread);
  fill_floats<kThreads>(memory.bias, g.bias, 0, memory.chunks * S::kChunk, hidden_channels, thread);
  fill_floats<kThreads>(memory.classifier_bias, g.classifier_bias, 0, memory.classes, g.classifier.rows, thread);
  const MapSource<T, kThreads> source{g.x, g.x.data + place.image * g.x.stride_n, memory.offsets, g.window.slots()};
  for (int first = 0; first < hidden_channels; first += kColumns) {
    // the offsets are there, and nobody works on the columns before these any more
    __syncthreads();
    float acc[kTiles][4];
    start(acc, memory.bias + first, lane);
    // the first wait for copies is for the classifier's too
    accumulate<M, kTiles, kThreads>(acc, memory.buffers, source, g.window, g.depthwise,
                                    Middle<T>{nullptr, Activation{0, 0.0f}}, g.pointwise, first, thread);
    // channels beyond the last meet zeros of the classifier, but a NaN times zero is none
    const bool there[2] = {true, true};
    store_hidden(memory.hidden + (first / S::kChunk * kTilePixels + warp * 16) * S::kPitch, kTilePixels * S::kPitch,
                 acc, g.activation, there, hidden_channels - first, lane);
  }
  // a warp multiplies the rows that it has written
  __syncwarp();
  for (int first = 0; first < g.classifier.rows; first += kClasses) {
    float acc[kClassTiles][4];
    clear(acc);
    for (int chunk = 0; chunk < memory.chunks; ++chunk) {
      multiply<M>(acc, memory.hidden + (chunk * kTilePixels + warp * 16) * S::kPitch,
                  memory.classifier + (chunk * memory.classes + first) * S::kPitch, lane);
    }
    store_tile(acc, g.out, g.window, place, StagedBias{memory.classifier_bias + first}, Map<const T>{},
               Activation{0, 0.0f}, warp * 16, first, lane);
  }
}

template <typename M, int kTiles>
void launch_classifier(Arguments<typename M::Element> g, const Tensor& out, const std::vector<int64_t>& kernel,
                       const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                       const std::vector<int64_t>& dilation, const DeviceScope& scope) {
  using T = typename M::Element;
  const auto kernel_of_tiles = separable_conv2d_classifier_kernel<M, kTiles>;
  const int64_t passes = (g.classifier.columns + kTiles * 8 - 1) / (kTiles * 8);
  const auto attempt = [&](int pixels, int, int stages) {
    g.window = make_window(out, pixels, kernel, stride, padding, dilation);
    g.stages = stages;
    SharedMeter meter;
    carve<T, kTiles>(meter, g.window, g.classifier, stages);
    return separable_attempt(meter.bytes(), tiles_of(out, g.window), pixels, g.window.slots(), kTiles);
  };
  const Fit fit =
      fit_launch(kOp, scope, kernel_of_tiles, kThreads, kTiles > 4 ? 2 : 3,
                 passes * ((g.x.channels + Shape<T>::kChunk - 1) / Shape<T>::kChunk), 1, kMaxStages, attempt);
  launch_early(kernel_of_tiles, dim3(static_cast<unsigned>(tiles_of(out, g.window))), dim3(kThreads), fit.bytes, 1,
               scope, g);
}

void check_weight(const char* argument, const Tensor& weight, const Tensor& x, const std::vector<int64_t>& shape) {
  check_shape(kOp, argument, weight, shape);
  check_same_dtype(kOp, argument, weight, x);
}

Tensor separable_conv2d_classifier(const Tensor& x, const Tensor& depthwise_weight, const Tensor& pointwise_weight,
                                   const std::optional<Tensor>& bias, const Tensor& classifier_weight,
                                   const std::optional<Tensor>& classifier_bias, std::vector<int64_t> stride,
                                   std::vector<int64_t> padding, std::vector<int64_t> dilation, int64_t activation,
                                   double negative_slope, bool allow_tf32) {
  LITESEG_CHECK(on_device(x), kOp, "x", "a tensor on the device of this library", "another device");
  check_sizes(kOp, "x", x);
  check_4d(kOp, "depthwise_weight", depthwise_weight);
  check_sizes(kOp, "pointwise_weight", pointwise_weight);
  check_sizes(kOp, "classifier_weight", classifier_weight);
  const std::vector<int64_t> kernel{depthwise_weight.size(2), depthwise_weight.size(3)};
  const int64_t hidden = pointwise_weight.size(0), classes = classifier_weight.size(0);
  check_weight("depthwise_weight", depthwise_weight, x, {x.size(1), 1, kernel[0], kernel[1]});
  check_weight("pointwise_weight", pointwise_weight, x, {hidden, x.size(1), 1, 1});
  check_weight("classifier_weight", classifier_weight, x, {classes, hidden, 1, 1});
  LITESEG_CHECK(kernel[0] <= kMaxKernel && kernel[1] <= kMaxKernel, kOp, "depthwise_weight",
                "a kernel of at most 5 x 5", shape_text(depthwise_weight));
  if (bias.has_value()) {
    check_weight("bias", *bias, x, {hidden});
  }
  if (classifier_bias.has_value()) {
    check_weight("classifier_bias", *classifier_bias, x, {classes});
  }
  const int64_t ho = convolved(x.size(2), kernel[0], stride[0], padding[0], dilation[0]);
  const int64_t wo = convolved(x.size(3), kernel[1], stride[1], padding[1], dilation[1]);
  const DeviceScope scope(x);
  const Tensor out = empty_map(scope, {x.size(0), classes, ho, wo}, x.scalar_type(), is_channels_last(x));
  if (out.numel() == 0) {
    return out;
  }
  // contiguous copies, where one was needed, live until the launch
  const Tensor depthwise = dense(depthwise_weight);
  const std::optional<Tensor> shift = dense(bias), last = dense(classifier_bias);
  dispatch_math(kOp, "x", x.scalar_type(), allow_tf32, [&](auto math) {
    using M = decltype(math);
    using T = typename M::Element;
    Arguments<T> g{};
    g.x = map_of<const T>(x);
    g.depthwise = pointer<T>(depthwise);
    g.pointwise = matrix_of<T>(pointwise_weight);
    g.bias = pointer<T>(shift);
    g.classifier = matrix_of<T>(classifier_weight);
    g.classifier_bias = pointer<T>(last);
    g.out = map_of<T>(out);
    g.activation = {static_cast<int>(activation), static_cast<float>(negative_slope)};
    if (hidden <= 32) {
      launch_classifier<M, 4>(g, out, kernel, stride, padding, dilation, scope);
    } else {
      launch_classifier<M, 12>(g, out, kernel, stride, padding, dilation, scope);
    }
  });
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(liteseg_cuda, LITESEG_DEVICE_KEY, m) {
  m.impl("separable_conv2d_classifier", TORCH_BOX(&separable_conv2d_classifier));
}

}  // namespace
}  // namespace liteseg
