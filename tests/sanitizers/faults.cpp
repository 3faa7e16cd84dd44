// Planted faults: each op is right for index 0 to 9 and wrong beyond, in a way that one of the checks must find.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <limits>

#include "engine/blocks/rows.h"
#include "engine/runtime/arena.h"
#include "torch/tensors.h"

namespace liteseg::cpu {
namespace {

constexpr int64_t kBytes = 10 * sizeof(float);

// [10]
void tensor(Tensor x, int64_t index) {
  static_cast<float*>(data_of(x))[index] = 1.0f;
}
void scratch(Tensor, int64_t index) {
  // of a larger buffer that a call before asked for
  thread_buffer(Slot::kScratch, 100 * kBytes);
  reinterpret_cast<float*>(thread_buffer(Slot::kScratch, kBytes))[index] = 1.0f;
}
void piece(Tensor, int64_t index) {
  scalar::ScratchLayout layout;
  // of whole cache lines: a shorter one ends up to 63 bytes in front of the fence
  const int64_t pieces[] = {layout.take<float>(16), layout.take<float>(16)};
  char* scratch = thread_buffer(Slot::kScratch, layout.bytes());
  float* first = scalar::at_offset<float>(scratch, pieces[0]);
  scalar::at_offset<float>(scratch, pieces[1])[15] = 1.0f;
  first[6 + index] = 1.0f;
}
void maps(Tensor, int64_t index) {
  arena(100 * kBytes);
  reinterpret_cast<float*>(arena(kBytes))[index] = 1.0f;
}
void overflow(Tensor x, int64_t index) {
  const int32_t sum = std::numeric_limits<int32_t>::max() - 9 + static_cast<int32_t>(index);
  static_cast<float*>(data_of(x))[0] = static_cast<float>(sum);
}

}  // namespace

STABLE_TORCH_LIBRARY(liteseg_faults, m) {
  m.def("tensor(Tensor(a!) x, int index) -> ()");
  m.def("scratch(Tensor(a!) x, int index) -> ()");
  m.def("piece(Tensor(a!) x, int index) -> ()");
  m.def("maps(Tensor(a!) x, int index) -> ()");
  m.def("overflow(Tensor(a!) x, int index) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(liteseg_faults, CPU, m) {
  m.impl("tensor", TORCH_BOX(&tensor));
  m.impl("scratch", TORCH_BOX(&scratch));
  m.impl("piece", TORCH_BOX(&piece));
  m.impl("maps", TORCH_BOX(&maps));
  m.impl("overflow", TORCH_BOX(&overflow));
}

}  // namespace liteseg::cpu
