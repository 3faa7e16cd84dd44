// Where and how a kernel of this folder is launched. Included as <liteseg/launch.cuh>: a test that runs the same
// kernels on the CPU puts a file of this name earlier on the include path.
#pragma once

#include <cuda_runtime.h>

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>

#include <liteseg/small_grids.cuh>

#include <map>
#include <mutex>
#include <tuple>

#include "common/stable_compat.h"

// the dispatch key that this folder registers its kernels for
#define LITESEG_DEVICE_KEY CUDA

namespace liteseg {

// bytes of dynamic shared memory that every kernel may have without asking
constexpr int64_t kFreeShared = 48 * 1024;

inline bool on_device(const torch::stable::Tensor& tensor) {
  return tensor.is_cuda();
}

// Makes the device of a tensor the current one while it lives, and names the stream that torch works on there.
class DeviceScope {
 public:
  explicit DeviceScope(const torch::stable::Tensor& tensor)
      : index_(tensor.get_device_index()), guard_(index_), stream_(current_stream(index_)) {}

  cudaStream_t stream() const {
    return stream_;
  }

  torch::stable::Device device() const {
    return torch::stable::Device(torch::headeronly::DeviceType::CUDA, index_);
  }

  // bytes of dynamic shared memory that a block may ask for on this device
  int64_t max_shared() const {
    return attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  }

  int multiprocessors() const {
    return attribute(cudaDevAttrMultiProcessorCount);
  }

  // whether there are clusters and early launches
  bool sm_90() const {
    return attribute(cudaDevAttrComputeCapabilityMajor) >= 9;
  }

  // Lets a kernel have as much dynamic shared memory as there is. The limit belongs to the function on this device, not
  // to a launch: were it set to what each launch needs, another thread's smaller one could lower it in between.
  template <typename Kernel>
  void allow_shared(Kernel* kernel, int64_t bytes) const {
    if (bytes > kFreeShared) {
      once(std::make_tuple(reinterpret_cast<const void*>(kernel), index_, 0, int64_t{0}, 0), [&] {
        const int most = static_cast<int>(max_shared());
        LITESEG_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most));
        return most;
      });
    }
  }

  // How many clusters of so many blocks run at the same time: those that find the multiprocessors of one GPC free,
  // fewer on a part of a device than their number suggests.
  template <typename Kernel>
  int active_clusters(Kernel* kernel, int threads, int64_t bytes, int blocks) const {
    allow_shared(kernel, bytes);
    return once(std::make_tuple(reinterpret_cast<const void*>(kernel), index_, threads, bytes, blocks), [&] {
      cudaLaunchAttribute together;
      together.id = cudaLaunchAttributeClusterDimension;
      together.val.clusterDim.x = together.val.clusterDim.y = 1;
      together.val.clusterDim.z = static_cast<unsigned>(blocks);
      const cudaLaunchConfig_t config{dim3(1, 1, static_cast<unsigned>(blocks)),
                                      dim3(static_cast<unsigned>(threads)),
                                      static_cast<size_t>(bytes),
                                      stream_,
                                      &together,
                                      1};
      int count = 0;
      LITESEG_CUDA_CHECK(cudaOccupancyMaxActiveClusters(&count, kernel, &config));
      return count;
    });
  }

 private:
  // kernel, device, threads, bytes, blocks of a cluster
  using Question = std::tuple<const void*, int32_t, int, int64_t, int>;

  // the answer to a question about a kernel that the driver needs to be asked only once
  template <typename F>
  static int once(const Question& question, const F& ask) {
    static std::mutex mutex;
    static std::map<Question, int> answers;
    const std::lock_guard<std::mutex> lock(mutex);
    const auto found = answers.find(question);
    return found != answers.end() ? found->second : answers.emplace(question, ask()).first->second;
  }

  int attribute(cudaDeviceAttr which) const {
    int value = 0;
    LITESEG_CUDA_CHECK(cudaDeviceGetAttribute(&value, which, index_));
    return value;
  }

  int32_t index_;
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_;
};

// Launches on a stream and reports a launch that was refused. Each argument is converted to the kernel's parameter
// type. For at most kFreeShared bytes of shared memory.
template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, int64_t shared_bytes, cudaStream_t stream,
            const Arguments&... arguments) {
  kernel<<<grid, block, static_cast<size_t>(shared_bytes), stream>>>(static_cast<Parameters>(arguments)...);
  LITESEG_CUDA_CHECK(cudaGetLastError());
}

// The same for a kernel that calls wait_for_predecessor: a small grid begins while the kernel in front of it ends
// (programmatic dependent launch). `cluster` blocks along z share their shared memory; more than one needs sm_90.
template <typename... Parameters, typename... Arguments>
void launch_early(void (*kernel)(Parameters...), dim3 grid, dim3 block, int64_t shared_bytes, int cluster,
                  const DeviceScope& scope, const Arguments&... arguments) {
  scope.allow_shared(kernel, shared_bytes);
  cudaLaunchAttribute attributes[2];
  cudaLaunchConfig_t config{grid, block, static_cast<size_t>(shared_bytes), scope.stream(), attributes, 0};
  if (begins_early(scope, grid)) {
    cudaLaunchAttribute& early = attributes[config.numAttrs++];
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
  }
  if (cluster > 1) {
    cudaLaunchAttribute& together = attributes[config.numAttrs++];
    together.id = cudaLaunchAttributeClusterDimension;
    together.val.clusterDim.x = together.val.clusterDim.y = 1;
    together.val.clusterDim.z = static_cast<unsigned>(cluster);
  }
  LITESEG_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...));
}

}  // namespace liteseg
