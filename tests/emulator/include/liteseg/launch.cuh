// Stands in for csrc/cuda/liteseg/launch.cuh: the kernels register for CPU tensors and run on the calling thread.
#pragma once

#include <cuda_runtime.h>

#include <torch/csrc/stable/tensor.h>

#include <liteseg/small_grids.cuh>

#define LITESEG_DEVICE_KEY CPU

namespace liteseg {

constexpr int64_t kFreeShared = 48 * 1024;

inline bool on_device(const torch::stable::Tensor& tensor) {
  return tensor.is_cpu();
}

class DeviceScope {
 public:
  explicit DeviceScope(const torch::stable::Tensor&) {}

  cudaStream_t stream() const {
    return nullptr;
  }

  torch::stable::Device device() const {
    return torch::stable::Device(torch::headeronly::DeviceType::CPU);
  }

  int64_t max_shared() const {
    return emulator::controls.max_shared;
  }

  int multiprocessors() const {
    return emulator::controls.multiprocessors;
  }

  bool sm_90() const {
    return emulator::controls.sm_90;
  }

  template <typename Kernel>
  int active_clusters(Kernel*, int, int64_t, int blocks) const {
    return emulator::controls.cluster_blocks / blocks;
  }
};

template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, int64_t shared_bytes, cudaStream_t,
            const Arguments&... arguments) {
  emulator::run(grid, block, shared_bytes, 1, false, [&] { kernel(static_cast<Parameters>(arguments)...); });
}

template <typename... Parameters, typename... Arguments>
void launch_early(void (*kernel)(Parameters...), dim3 grid, dim3 block, int64_t shared_bytes, int cluster,
                  const DeviceScope& scope, const Arguments&... arguments) {
  emulator::run(grid, block, shared_bytes, cluster, begins_early(scope, grid),
                [&] { kernel(static_cast<Parameters>(arguments)...); });
}

}  // namespace liteseg
