// Where and how a kernel of this folder is launched. Included as <liteseg/launch.cuh>: a test that runs the same
// kernels on the CPU puts a file of this name earlier on the include path.
#pragma once

#include <cuda_runtime.h>

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>

#include "common/stable_compat.h"

// the dispatch key that this folder registers its kernels for
#define LITESEG_DEVICE_KEY CUDA

namespace liteseg {

inline bool on_device(const torch::stable::Tensor& tensor) {
  return tensor.is_cuda();
}

// Makes the device of a tensor the current one while it lives, and names the stream that torch works on there.
class DeviceScope {
 public:
  explicit DeviceScope(const torch::stable::Tensor& tensor)
      : guard_(tensor.get_device_index()), stream_(current_stream(tensor.get_device_index())) {}

  cudaStream_t stream() const {
    return stream_;
  }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_;
};

// Launches on a stream and reports a launch that was refused. Each argument is converted to the kernel's parameter
// type.
template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, cudaStream_t stream, const Arguments&... arguments) {
  kernel<<<grid, block, 0, stream>>>(static_cast<Parameters>(arguments)...);
  LITESEG_CUDA_CHECK(cudaGetLastError());
}

}  // namespace liteseg
