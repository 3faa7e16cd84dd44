// Registration of liteseg_cpu::fingerprint.
#include "torch/tensors.h"

namespace liteseg::cpu {
namespace {

// A number that changes when weights are written to behind torch's version counters (`parameter.data`): made of places
// and of some values of each, because reading all of them would cost as much as a layer.
int64_t fingerprint(std::vector<Tensor> weights) {
  constexpr int64_t most_samples = 16;
  uint64_t hash = 1469598103934665603u;
  const auto mix = [&hash](uint64_t value) { hash = (hash ^ value) * 1099511628211u; };
  for (const Tensor& weight : weights) {
    int64_t span = weight.numel() > 0 ? 1 : 0;
    for (int64_t d = 0; d < weight.dim() && span > 0; ++d) {
      span += (weight.size(d) - 1) * weight.stride(d);
    }
    LITESEG_CHECK(weight.scalar_type() == ScalarType::Float && span == weight.numel(), "fingerprint", "weights",
                  "dense float32", text(dtype_text(weight.scalar_type()), " ", shape_text(weight)));
    const auto* bits = static_cast<const uint32_t*>(read_of(weight));
    mix(reinterpret_cast<uintptr_t>(bits));
    const int64_t count = weight.numel();
    const int64_t samples = std::min(count, most_samples);
    for (int64_t i = 0; i < samples; ++i) {
      mix(bits[i * count / samples]);
    }
  }
  return static_cast<int64_t>(hash);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(liteseg_cpu, CPU, m) {
  m.impl("fingerprint", TORCH_BOX(&fingerprint));
}

}  // namespace liteseg::cpu
