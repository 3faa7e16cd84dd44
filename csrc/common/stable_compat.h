// What the CUDA files need from torch beyond the stable headers of 2.11. The three functions below live in
// libtorch_cuda. They are weak so that a CPU build of torch can still load the library and show what it registers; call
// them only through the wrappers here, which say so when one is absent.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/c/shim.h>
#include <torch/headeronly/util/shim_utils.h>

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#pragma weak aoti_torch_get_current_cuda_stream
#pragma weak torch_c10_cuda_check_msg
#pragma weak torch_c10_cuda_free_error_msg

namespace liteseg {

inline cudaStream_t current_stream(int32_t device_index) {
  if (&aoti_torch_get_current_cuda_stream == nullptr) {
    throw std::runtime_error("liteseg_cuda: torch: expected a build with CUDA, got one without libtorch_cuda");
  }
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device_index, &stream));
  return static_cast<cudaStream_t>(stream);
}

inline void check_cuda(cudaError_t status, const char* file, const char* function, int line) {
  if (status == cudaSuccess) {
    return;
  }
  // cudart keeps the error of a refused launch, and would report it again at the next one
  cudaGetLastError();
  if (&torch_c10_cuda_check_msg == nullptr || &torch_c10_cuda_free_error_msg == nullptr) {
    throw std::runtime_error(std::string("liteseg_cuda: ") + function + ": " + cudaGetErrorString(status));
  }
  char* message = nullptr;
  torch_c10_cuda_check_msg(static_cast<int32_t>(status), file, function, static_cast<uint32_t>(line), true, &message);
  std::string text = message != nullptr ? message : cudaGetErrorString(status);
  if (message != nullptr) {
    torch_c10_cuda_free_error_msg(message);
  }
  throw std::runtime_error(text);
}

}  // namespace liteseg

#define LITESEG_CUDA_CHECK(expression) ::liteseg::check_cuda((expression), __FILE__, __func__, __LINE__)
