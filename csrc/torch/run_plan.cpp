// Registration of liteseg_cpu::run_plan: a whole network from one program and one tensor of packed weights. The op
// keeps no state: its arguments can be copied, pickled and used by several threads at once.
#include "engine/plan/plan.h"
#include "torch/program.h"

namespace liteseg::cpu {
namespace {

Tensor run(const Tensor& x, const Tensor& packed, const Tensor& program, const std::vector<int64_t>& size,
           std::vector<double>* seconds) {
  check_4d(kRunPlan, "x", x);
  LITESEG_CHECK(x.scalar_type() == ScalarType::Float || x.scalar_type() == ScalarType::BFloat16, kRunPlan, "x",
                "float32 or bfloat16", dtype_text(x.scalar_type()));
  LITESEG_CHECK(x.size(1) > 0 && x.size(2) > 0 && x.size(3) > 0, kRunPlan, "x", "a channel and a pixel", shape_text(x));
  const std::vector<Input> inputs = {input_of(x)};
  const TorchThreads threads;
  const std::vector<int64_t> sizes;
  Builder builder(kRunPlan, inputs, sizes, program_of(kRunPlan, packed, program), threads,
                  plan_tables(x.scalar_type() == ScalarType::BFloat16));
  read_plan(builder, size, is_channels_last(x));
  Tensor out = execute(builder, seconds).front();
  if (seconds != nullptr && size.empty()) {
    // what the logits' order costs counts as the last layer's
    const double rest = seconds->back();
    seconds->pop_back();
    seconds->back() += rest;
  }
  return out;
}

Tensor run_plan(Tensor x, Tensor packed, Tensor program, std::vector<int64_t> size) {
  return run(x, packed, program, size, nullptr);
}

// seconds of each layer, and of the labels where a size is given
Tensor time_plan(Tensor x, Tensor packed, Tensor program, std::vector<int64_t> size) {
  std::vector<double> seconds;
  run(x, packed, program, size, &seconds);
  return seconds_tensor(seconds);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(liteseg_cpu, CPU, m) {
  m.impl("run_plan", TORCH_BOX(&run_plan));
  m.impl("time_plan", TORCH_BOX(&time_plan));
}

}  // namespace liteseg::cpu
