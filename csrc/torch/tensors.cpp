#include "torch/tensors.h"

#include "engine/simd/vec.h"

namespace liteseg::cpu {
namespace {

template <typename T>
void copy_floats(const Tensor& t, std::vector<float>& out) {
  const T* data = static_cast<const T*>(read_of(t));
  const int64_t dims = t.dim();
  std::vector<int64_t> index(dims, 0);
  for (float& value : out) {
    int64_t offset = 0;
    for (int64_t d = 0; d < dims; ++d) {
      offset += index[d] * t.stride(d);
    }
    if constexpr (sizeof(T) == sizeof(double)) {
      value = static_cast<float>(data[offset]);
    } else {
      value = scalar::widen(data[offset]);
    }
    for (int64_t d = dims - 1; d >= 0 && ++index[d] == t.size(d); --d) {
      index[d] = 0;
    }
  }
}

}  // namespace

std::vector<float> to_floats(const Tensor& t) {
  std::vector<float> out(static_cast<size_t>(t.numel()));
  if (t.scalar_type() == ScalarType::Double) {
    copy_floats<double>(t, out);
    return out;
  }
  switch (dtype_of("liteseg_cpu", "weight", t)) {
    case kHalf:
      copy_floats<f16>(t, out);
      break;
    case kBFloat16:
      copy_floats<bf16>(t, out);
      break;
    default:
      copy_floats<float>(t, out);
  }
  return out;
}

}  // namespace liteseg::cpu
