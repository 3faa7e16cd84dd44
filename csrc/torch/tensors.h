// Between torch's tensors and the plain arguments of the kernels. Baseline files only: the headers of torch define
// inline functions that must not be compiled for a wider instruction set.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/MemoryFormat.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "common/tensors.h"
#include "engine/runtime/arena.h"
#include "engine/runtime/team.h"
#include "engine/types.h"

namespace liteseg::cpu {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline DType dtype_of(const char* op, const char* argument, const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return kFloat;
    case ScalarType::Half:
      return kHalf;
    case ScalarType::BFloat16:
      return kBFloat16;
    default:
      LITESEG_CHECK(false, op, argument, "float32, float16 or bfloat16", dtype_text(t.scalar_type()));
      return kFloat;
  }
}

inline Strides4 strides_of(const Tensor& t) {
  return {t.stride(0), t.stride(1), t.stride(2), t.stride(3)};
}

inline Tensor empty_dense(const std::vector<int64_t>& shape, ScalarType dtype, bool channels_last) {
  using torch::headeronly::MemoryFormat;
  return torch::stable::empty({shape.data(), shape.size()}, dtype, std::nullopt,
                              torch::stable::Device(torch::headeronly::DeviceType::CPU), std::nullopt,
                              channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

// strides of a dense result; a map of one pixel in NCHW is spelled as the same memory with channels innermost
inline Strides4 dense_strides(const Tensor& t) {
  const int64_t c = t.size(1);
  const int64_t h = t.size(2);
  const int64_t w = t.size(3);
  return t.stride(1) == 1 ? Strides4{h * w * c, 1, w * c, c} : Strides4{c * h * w, h * w, w, 1};
}

inline void* data_of(const Tensor& t) {
  return t.mutable_data_ptr();
}
inline const void* read_of(const Tensor& t) {
  return t.const_data_ptr();
}

// a small tensor of any floating dtype and strides as contiguous floats
std::vector<float> to_floats(const Tensor& t);

inline int64_t num_threads() {
  return static_cast<int64_t>(torch::stable::get_num_threads());
}

// torch's threads, for the stages of a network
class TorchThreads final : public Threads {
 public:
  int64_t count() const override {
    return num_threads();
  }
  void run(int64_t count, const std::function<void()>& body) const override {
    torch::stable::parallel_for(0, count, 1, [&](int64_t, int64_t) { body(); });
  }
};

// f(begin, end) over [0, count) on torch's threads; a thread gets at least `least_work` units of `work_each`
template <typename F>
void parallel(int64_t count, int64_t work_each, const F& f) {
  constexpr int64_t least_work = 1 << 18;
  if (count > 0) {
    torch::stable::parallel_for(0, count, std::max<int64_t>(1, least_work / std::max<int64_t>(1, work_each)), f);
  }
}

}  // namespace liteseg::cpu
