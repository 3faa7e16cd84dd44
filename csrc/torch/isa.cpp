// Registration of what Python asks the engine about.
#include "engine/runtime/isa.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <string>

#include "engine/kernels/pack.h"

namespace liteseg::cpu {
namespace {

std::string isa_op() {
  return isa_name(isa());
}

int64_t panel() {
  return LITESEG_CHOOSE(pack_table).panel;
}

}  // namespace

// no tensor argument, so no device to dispatch on
STABLE_TORCH_LIBRARY_IMPL(liteseg_cpu, CompositeExplicitAutograd, m) {
  m.impl("isa", TORCH_BOX(&isa_op));
  m.impl("panel", TORCH_BOX(&panel));
}

}  // namespace liteseg::cpu
