#include "engine/kernels/pack.h"

#include "engine/blocks/gemm.h"

namespace liteseg::LITESEG_ISA {
namespace {

template <typename T>
void pack(const void* weight, int64_t n_stride, int64_t k_stride, int64_t n, int64_t k, float* panels) {
  pack_panels(static_cast<const T*>(weight), n_stride, k_stride, n, k, panels);
}

}  // namespace

const cpu::PackTable pack_table = {kPanel, {pack<float>, pack<f16>, pack<bf16>}};

}  // namespace liteseg::LITESEG_ISA
