// Stands in for csrc/cuda/liteseg/launch.cuh: the kernels register for CPU tensors and run on the calling thread.
#pragma once

#include <cuda_runtime.h>

#include <torch/csrc/stable/tensor.h>

#define LITESEG_DEVICE_KEY CPU

namespace liteseg {

inline bool on_device(const torch::stable::Tensor& tensor) {
  return tensor.is_cpu();
}

class DeviceScope {
 public:
  explicit DeviceScope(const torch::stable::Tensor&) {}

  cudaStream_t stream() const {
    return nullptr;
  }
};

// The last block runs first and its last thread first: results that need the usual order would show.
template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, cudaStream_t, const Arguments&... arguments) {
  gridDim = grid;
  blockDim = block;
  const auto descend = [](dim3 size, dim3& index, auto&& body) {
    for (index.z = size.z; index.z-- > 0;) {
      for (index.y = size.y; index.y-- > 0;) {
        for (index.x = size.x; index.x-- > 0;) {
          body();
        }
      }
    }
  };
  descend(grid, blockIdx, [&] { descend(block, threadIdx, [&] { kernel(static_cast<Parameters>(arguments)...); }); });
}

}  // namespace liteseg
