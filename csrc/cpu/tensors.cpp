#include "cpu/tensors.h"

#include "cpu/guard.h"
#include "cpu/vec.h"

namespace liteseg::cpu {
namespace {

constexpr size_t kAlignment = 64;
// larger buffers go back to the system after the call that needed them, when the next smaller request comes
constexpr int64_t kKeep = int64_t{16} << 20;

struct Buffer {
  char* data = nullptr;
  int64_t size = 0;

  ~Buffer() {
    std::free(data);
  }
  char* at_least(int64_t bytes) {
    if (bytes > size || (size > kKeep && bytes <= kKeep)) {
      std::free(data);
      data = nullptr;
      size = 0;
      const int64_t rounded = (bytes + 4095) / 4096 * 4096;
      data = static_cast<char*>(std::aligned_alloc(kAlignment, static_cast<size_t>(rounded)));
      if (data == nullptr) {
        throw std::bad_alloc();
      }
      size = rounded;
    }
    allow_only(data, bytes, size);
    return data;
  }
};

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

char* thread_buffer(Slot slot, int64_t bytes) {
  static thread_local Buffer buffers[static_cast<int>(Slot::kCount)];
  return buffers[static_cast<int>(slot)].at_least(std::max<int64_t>(bytes, 1));
}

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
