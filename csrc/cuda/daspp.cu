// daspp - the deeper atrous pyramid in two launches (architecture: paper, section III-A).
// Replaces: a global average, up to nine pairs of F.conv2d, a concatenation and the projection
// Shapes:   x [N, C, H, W] -> out [N, CO, H, W], in x's memory format; F filters a branch
// Launches: 1. separable_conv2d's kernel for the first layer of all branches (up to four a launch), with blocks beside
//              them that sum x over the image, already times the pooled branch's weight
//           2. for a tile of 64 pixels: each branch's second layer, whose result stays in shared memory and is
//              multiplied with its slice of the projection at once; then x times `direct`; the pooled branch is a bias
//              of the image
//           On sm_90 clusters share a tile where multiprocessors would be idle: the channels in 1., branches and
//           the channels of `direct` in 2., where the last block, which has the fewest branches, adds up the pooled one
// Traffic:  x once a branch (from L2), the branch maps once each way, the output: 3*N*F*H*W*sizeof(T) each way
// Bound:    at stride 32 and batch 1 the length of a block's sums, 10 chunks of 40 where it is shared. Not timed yet.
// Numerics: float32 accumulation; branch maps are rounded to T, the pooled branch is not. Sums in a fixed order, which
//           depends on the grid and the device
//           float32 products are exact unless tf32 is allowed. Deterministic
// Limits:   float32, float16, bfloat16; up to 8 rates
#include <liteseg/separable.cuh>

namespace liteseg {
namespace {

constexpr char kOp[] = "daspp";
constexpr int kThreads = 128;
constexpr int kTiles = 12;
constexpr int kColumns = kTiles * 8;
constexpr int kMaxRates = 8;

template <typename T>
struct BranchArguments {
  Map<const T> map;     // [N, F, H, W], the first layer's
  const T* depthwise;   // [F, 1, 3, 3]; null: no second layer
  Matrix<T> pointwise;  // [F, F]
  const T* bias;        // [F]
};

template <typename T>
struct Arguments {
  Map<const T> x;  // [N, C, H, W]
  Map<T> out;      // [N, CO, H, W]
  BranchArguments<T> branches[kMaxRates];
  Matrix<T> direct;       // [CO, C], data null: none
  Matrix<T> point;        // [F, C], data null: none
  const T* point_bias;    // [F]
  Matrix<T> project;      // [CO, maps * F]: point, branches, pool
  const T* project_bias;  // [CO]
  const float* parts;     // [N, pool_chunks, F]
  const T* pool_bias;     // [F]
  Window wide, narrow;    // of a 3 x 3 and of a 1 x 1 convolution
  int count, filters, pool_chunks, stages;
  // blocks of a cluster, each with some of the maps and a part of x's channels
  int splits;
};

template <typename T>
struct Memory {
  int64_t *wide, *narrow;  // [slots]
  float* pooled;           // [F]
  float* bias;             // [columns], of the projection
  float* middle_bias;      // [columns], of a branch
  T* middle;               // [chunks of a block of columns][64 pixels][chunk]
  float* sums;             // where there are several blocks
  Buffers<T> buffers;
};

template <typename T, typename Carver>
__host__ __device__ Memory<T> carve(Carver& carver, const Window& wide, const Window& narrow, int filters, int stages,
                                    int splits) {
  using S = Shape<T>;
  Memory<T> memory{};
  // allocated first: a constant address frees a register in the main loop
  memory.sums = Sums<kColumns>::carve(carver, splits);
  memory.wide = carver.template take<int64_t>(wide.slots());
  memory.narrow = carver.template take<int64_t>(narrow.slots());
  memory.pooled = carver.template take<float>(filters);
  memory.bias = carver.template take<float>(kColumns);
  memory.middle_bias = carver.template take<float>(kColumns);
  memory.middle = carver.template take<T>(int64_t{kColumns / S::kChunk} * kTilePixels * S::kPitch);
  const int slots = wide.slots() > kTilePixels ? wide.slots() : kTilePixels;
  memory.buffers = carve_buffers<T>(carver, slots, wide.taps(), kColumns, stages);
  return memory;
}

// operands that lie in shared memory already
template <typename T>
struct ReadySource {
  const T* middle;

  __device__ void fill(T*, int, int) const {}

  __device__ const T* operand(const T*, int first) const {
    return middle + first / Shape<T>::kChunk * kTilePixels * Shape<T>::kPitch;
  }
};

template <typename T>
__device__ Matrix<T> columns_of(Matrix<T> matrix, int first, int count) {
  matrix.data += first * matrix.column_stride;
  matrix.columns = count;
  matrix.vector = matrix.vector && first % Shape<T>::kVector == 0 && count % Shape<T>::kVector == 0;
  return matrix;
}

template <typename M>
__global__ void __launch_bounds__(kThreads, 1)
    daspp_project_kernel(const __grid_constant__ Arguments<typename M::Element> g) {
  using T = typename M::Element;
  using S = Shape<T>;
  SharedCarver carver;
  const Memory<T> memory = carve<T>(carver, g.wide, g.narrow, g.filters, g.stages, g.splits);
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const int first_column = static_cast<int>(blockIdx.y) * kColumns;
  const Place place = place_of(blockIdx.x, g.out.height, g.out.width, g.narrow);
  const Middle<T> nothing{nullptr, Activation{0, 0.0f}};
  const Activation relu{1, 0.0f};

  wait_for_predecessor();
  release_successor();
  // the pooled branch, then its product with the projection: one bias an image, of the cluster's last block, which has
  // the fewest maps
  const int maps = g.count + (g.point.data == nullptr ? 0 : 1);
  const bool pools = blockIdx.z + 1 == gridDim.z;
  for (int f = thread; f < g.filters && pools; f += kThreads) {
    float sum = 0.0f;
#pragma unroll 8
    for (int chunk = 0; chunk < g.pool_chunks; ++chunk) {
      sum += g.parts[(static_cast<int64_t>(place.image) * g.pool_chunks + chunk) * g.filters + f];
    }
    memory.pooled[f] = relu(sum + static_cast<float>(g.pool_bias[f]));
  }
  // the slots of x and of the branch maps differ in their strides
  const MapSource<T, kThreads> x{g.x, g.x.data + place.image * g.x.stride_n, memory.narrow, g.narrow.slots()};
  __syncthreads();
  for (int column = thread; column < kColumns; column += kThreads) {
    const int row = first_column + column;
    float sum = 0.0f;
    if (row < g.out.channels && pools) {
      const Matrix<T> weight = columns_of(g.project, maps * g.filters, g.filters);
      sum = static_cast<float>(g.project_bias[row]) + row_times(weight, row, memory.pooled, g.filters);
    }
    memory.bias[column] = sum;
  }

  float acc[kTiles][4];
  clear(acc);
  for (int map = static_cast<int>(blockIdx.z); map < maps; map += static_cast<int>(gridDim.z)) {
    const int branch = map - (maps - g.count);
    if (branch >= 0 && g.branches[branch].depthwise == nullptr) {
      const BranchArguments<T>& b = g.branches[branch];
      __syncthreads();
      locate_slots<kThreads>(memory.narrow, b.map, g.narrow, place, thread);
      __syncthreads();
      const MapSource<T, kThreads> source{b.map, b.map.data + place.image * b.map.stride_n, memory.narrow,
                                          g.narrow.slots()};
      accumulate<M, kTiles, kThreads>(acc, memory.buffers, source, g.narrow, static_cast<const T*>(nullptr), nothing,
                                      columns_of(g.project, map * g.filters, g.filters), first_column, thread);
      continue;
    }
    for (int first = 0; first < g.filters; first += kColumns) {
      float second[kTiles][4];
      __syncthreads();
      fill_floats<kThreads>(memory.middle_bias, branch < 0 ? g.point_bias : g.branches[branch].bias, first, kColumns,
                            g.filters, thread);
      if (branch < 0) {
        locate_slots<kThreads>(memory.narrow, g.x, g.narrow, place, thread);
        __syncthreads();
        start(second, memory.middle_bias, lane);
        accumulate<M, kTiles, kThreads>(second, memory.buffers, x, g.narrow, static_cast<const T*>(nullptr), nothing,
                                        g.point, first, thread);
      } else {
        const BranchArguments<T>& b = g.branches[branch];
        locate_slots<kThreads>(memory.wide, b.map, g.wide, place, thread);
        __syncthreads();
        start(second, memory.middle_bias, lane);
        const MapSource<T, kThreads> source{b.map, b.map.data + place.image * b.map.stride_n, memory.wide,
                                            g.wide.slots()};
        accumulate<M, kTiles, kThreads>(second, memory.buffers, source, g.wide, b.depthwise, nothing, b.pointwise,
                                        first, thread);
      }
      // filters beyond the last are zeros of the weight too, but a NaN times zero is none
      const bool there[2] = {true, true};
      store_hidden(memory.middle + warp * 16 * S::kPitch, kTilePixels * S::kPitch, second, relu, there,
                   g.filters - first, lane);
      __syncthreads();
      accumulate<M, kTiles, kThreads>(
          acc, memory.buffers, ReadySource<T>{memory.middle}, g.narrow, static_cast<const T*>(nullptr), nothing,
          columns_of(g.project, map * g.filters + first, min(kColumns, g.filters - first)), first_column, thread);
    }
  }
  __syncthreads();
  if (g.direct.data != nullptr) {
    locate_slots<kThreads>(memory.narrow, g.x, g.narrow, place, thread);
    __syncthreads();
    accumulate<M, kTiles, kThreads>(acc, memory.buffers, x, g.narrow, static_cast<const T*>(nullptr), nothing, g.direct,
                                    first_column, thread, part_of<T>(g.x.channels, g.splits));
  }
  if (g.splits == 1) {
    store_tile(acc, g.out, g.narrow, place, StagedBias{memory.bias}, Map<const T>{}, relu, warp * 16, first_column,
               lane);
  } else {
    // the projection's bias and the pooled branch are in one block's sums
    add(acc, memory.bias, lane);
    const auto none = [](int) { return Pair<float>{}; };
    store_sums<kColumns, kThreads>(acc, memory.sums, g.splits, g.out, g.narrow, place, none, Map<const T>{}, relu,
                                   warp * 16, 0, first_column, thread);
  }
}

void check_weight(const char* argument, const Tensor& weight, const Tensor& x, const std::vector<int64_t>& shape) {
  check_shape(kOp, argument, weight, shape);
  check_same_dtype(kOp, argument, weight, x);
}

Tensor daspp(const Tensor& x, const std::optional<Tensor>& direct_weight, const std::optional<Tensor>& point_weight,
             const std::optional<Tensor>& point_bias, std::vector<Tensor> atrous_depthwise,
             std::vector<Tensor> atrous_pointwise, std::vector<Tensor> atrous_bias, std::vector<Tensor> deep_depthwise,
             std::vector<Tensor> deep_pointwise, std::vector<Tensor> deep_bias, const Tensor& pool_weight,
             const Tensor& pool_bias, const Tensor& project_weight, const Tensor& project_bias,
             std::vector<int64_t> rates, bool allow_tf32) {
  LITESEG_CHECK(on_device(x), kOp, "x", "a tensor on the device of this library", "another device");
  check_sizes(kOp, "x", x);
  check_sizes(kOp, "pool_weight", pool_weight);
  check_sizes(kOp, "project_weight", project_weight);
  LITESEG_CHECK(x.size(2) * x.size(3) <= std::numeric_limits<int32_t>::max(), kOp, "x",
                "fewer than 2^31 pixels an image", shape_text(x));
  const int64_t n = x.size(0), c = x.size(1), filters = pool_weight.size(0), co = project_weight.size(0);
  const size_t count = rates.size();
  LITESEG_CHECK(count >= 1 && count <= kMaxRates, kOp, "rates", "1 to 8 rates", count);
  const int64_t maps = static_cast<int64_t>(count) + point_weight.has_value();
  check_weight("pool_weight", pool_weight, x, {filters, c, 1, 1});
  check_weight("pool_bias", pool_bias, x, {filters});
  check_weight("project_weight", project_weight, x, {co, (maps + 1) * filters, 1, 1});
  check_weight("project_bias", project_bias, x, {co});
  if (direct_weight.has_value()) {
    check_weight("direct_weight", *direct_weight, x, {co, c, 1, 1});
  }
  if (point_weight.has_value()) {
    check_weight("point_weight", *point_weight, x, {filters, c, 1, 1});
    check_weight("point_bias", point_bias.value(), x, {filters});
  }
  const bool deeper = !deep_depthwise.empty();
  for (const auto* list : {&atrous_depthwise, &atrous_pointwise, &atrous_bias}) {
    LITESEG_CHECK(list->size() == count, kOp, "atrous", text(count, " weights of each kind"), list->size());
  }
  for (const auto* list : {&deep_depthwise, &deep_pointwise, &deep_bias}) {
    LITESEG_CHECK(list->size() == (deeper ? count : 0), kOp, "deep", "as many weights as rates, or none", list->size());
  }
  for (size_t i = 0; i < count; ++i) {
    check_weight("atrous_depthwise", atrous_depthwise[i], x, {c, 1, 3, 3});
    check_weight("atrous_pointwise", atrous_pointwise[i], x, {filters, c, 1, 1});
    check_weight("atrous_bias", atrous_bias[i], x, {filters});
    if (deeper) {
      check_weight("deep_depthwise", deep_depthwise[i], x, {filters, 1, 3, 3});
      check_weight("deep_pointwise", deep_pointwise[i], x, {filters, filters, 1, 1});
      check_weight("deep_bias", deep_bias[i], x, {filters});
    }
  }
  const DeviceScope scope(x);
  const Tensor out = empty_map(scope, {n, co, x.size(2), x.size(3)}, x.scalar_type(), is_channels_last(x));
  if (out.numel() == 0) {
    return out;
  }
  const int64_t chunk = x.scalar_type() == ScalarType::Float ? Shape<float>::kChunk : Shape<Half>::kChunk;
  const int64_t pool_chunks = (c + chunk - 1) / chunk;
  const Tensor parts = empty_dense(scope, {n, pool_chunks, filters}, ScalarType::Float);

  std::vector<Tensor> first;
  for (size_t begin = 0; begin < count; begin += kMaxBranches) {
    SeparableCall call{kOp, {}, {1, 1}, std::nullopt, {}, {deeper ? 0 : 1, 0.0f}};
    for (size_t i = begin; i < std::min(count, begin + kMaxBranches); ++i) {
      first.push_back(empty_map(scope, {n, filters, x.size(2), x.size(3)}, x.scalar_type(), true));
      const std::vector<int64_t> rate(2, rates[i]);
      call.branches.push_back(
          {dense(atrous_depthwise[i]), std::nullopt, atrous_pointwise[i], dense(atrous_bias[i]), rate, rate, first[i]});
    }
    const bool pools = begin == 0;
    separable_conv2d_of_map(call, x, pools ? std::optional<Tensor>(pool_weight) : std::nullopt,
                            pools ? std::optional<Tensor>(parts) : std::nullopt, allow_tf32, scope);
  }

  // contiguous copies, where one was needed, live until the launch
  std::vector<Tensor> held;
  const auto hold = [&](const Tensor& t) {
    held.push_back(dense(t));
    return held.back();
  };
  dispatch_math(kOp, "x", x.scalar_type(), allow_tf32, [&](auto math) {
    using M = decltype(math);
    using T = typename M::Element;
    Arguments<T> g{};
    g.x = map_of<const T>(x);
    g.out = map_of<T>(out);
    for (size_t i = 0; i < count; ++i) {
      BranchArguments<T>& b = g.branches[i];
      b.map = map_of<const T>(first[i]);
      if (deeper) {
        b.depthwise = pointer<T>(hold(deep_depthwise[i]));
        b.pointwise = matrix_of<T>(deep_pointwise[i]);
        b.bias = pointer<T>(hold(deep_bias[i]));
      }
    }
    if (direct_weight.has_value()) {
      g.direct = matrix_of<T>(*direct_weight);
    }
    if (point_weight.has_value()) {
      g.point = matrix_of<T>(*point_weight);
      g.point_bias = pointer<T>(hold(*point_bias));
    }
    g.project = matrix_of<T>(project_weight);
    g.project_bias = pointer<T>(hold(project_bias));
    g.parts = static_cast<const float*>(parts.const_data_ptr());
    g.pool_bias = pointer<T>(hold(pool_bias));
    g.count = static_cast<int>(count);
    g.filters = static_cast<int>(filters);
    g.pool_chunks = static_cast<int>(pool_chunks);
    const int64_t columns = (co + kColumns - 1) / kColumns;
    const auto kernel = daspp_project_kernel<M>;
    const auto attempt = [&](int pixels, int splits, int stages) {
      g.wide = make_window(out, pixels, {3, 3}, {1, 1}, {1, 1}, {1, 1});
      g.narrow = make_window(out, pixels, {1, 1}, {1, 1}, {0, 0}, {1, 1});
      g.splits = splits;
      g.stages = stages;
      SharedMeter meter;
      carve<T>(meter, g.wide, g.narrow, g.filters, stages, g.splits);
      return separable_attempt(meter.bytes(), tiles_of(out, g.narrow) * columns, pixels, g.wide.slots(), kTiles);
    };
    // each map's filters twice, for its second layer and for the projection
    const int64_t filter_chunks = (filters + chunk - 1) / chunk;
    const int64_t chunks = 2 * maps * filter_chunks + (direct_weight.has_value() ? pool_chunks : 0);
    const Fit fit = fit_launch(kOp, scope, kernel, kThreads, 1, chunks, most_splits(scope), kMaxStages, attempt);
    launch_early(kernel,
                 dim3(static_cast<unsigned>(tiles_of(out, g.narrow)), static_cast<unsigned>(columns),
                      static_cast<unsigned>(g.splits)),
                 dim3(kThreads), fit.bytes, g.splits, scope, g);
  });
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(liteseg_cuda, LITESEG_DEVICE_KEY, m) {
  m.impl("daspp", TORCH_BOX(&daspp));
}

}  // namespace
}  // namespace liteseg
