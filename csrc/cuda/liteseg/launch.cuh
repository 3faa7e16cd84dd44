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
      : index_(tensor.get_device_index()), guard_(index_), stream_(current_stream(index_)) {}

  cudaStream_t stream() const {
    return stream_;
  }

  torch::stable::Device device() const {
    return torch::stable::Device(torch::headeronly::DeviceType::CUDA, index_);
  }

  // bytes of dynamic shared memory that a block may ask for on this device
  int64_t max_shared() const {
    int bytes = 0;
    LITESEG_CUDA_CHECK(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, index_));
    return bytes;
  }

 private:
  int32_t index_;
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_;
};

// Launches on a stream and reports a launch that was refused. Each argument is converted to the kernel's parameter
// type.
template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, int64_t shared_bytes, cudaStream_t stream,
            const Arguments&... arguments) {
  // what every kernel may have without asking
  constexpr int64_t kFree = 48 * 1024;
  if (shared_bytes > kFree) {
    LITESEG_CUDA_CHECK(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes)));
  }
  kernel<<<grid, block, static_cast<size_t>(shared_bytes), stream>>>(static_cast<Parameters>(arguments)...);
  LITESEG_CUDA_CHECK(cudaGetLastError());
}

}  // namespace liteseg
