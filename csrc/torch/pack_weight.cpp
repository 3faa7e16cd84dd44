// Registration of liteseg_cpu::pack_weight: one weight of a program as the kernels read it (engine/plan/weights.h).
#include "engine/kernels/pack.h"
#include "engine/plan/weights.h"
#include "engine/runtime/isa.h"
#include "torch/tensors.h"

namespace liteseg::cpu {
namespace {

constexpr const char* kOp = "pack_weight";

Tensor pack(Tensor plain, int64_t kind, std::vector<int64_t> dims, bool bf16) {
  LITESEG_CHECK(plain.scalar_type() == ScalarType::Float && plain.is_contiguous(), kOp, "plain",
                "a dense float32 tensor", dtype_text(plain.scalar_type()));
  LITESEG_CHECK(dims.size() == kWeightDims, kOp, "dims", text(kWeightDims, " numbers"), dims.size());
  const Weight weight = checked_weight(kOp, kind, dims.data());
  LITESEG_CHECK(plain.numel() == plain_floats(weight), kOp, "plain", text(plain_floats(weight), " values"),
                plain.numel());
  const int64_t panel = LITESEG_CHOOSE(pack_table).panel;
  Tensor out = empty_dense({packed_floats(weight, panel, bf16)}, ScalarType::Float, false);
  pack_weight(weight, static_cast<const float*>(read_of(plain)), panel, bf16, static_cast<float*>(data_of(out)));
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(liteseg_cpu, CPU, m) {
  m.impl("pack_weight", TORCH_BOX(&pack));
}

}  // namespace liteseg::cpu
