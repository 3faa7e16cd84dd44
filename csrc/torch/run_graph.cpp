// Registration of liteseg_cpu::run_graph: a part of any network, from one program and one tensor of packed weights.
// Like run_plan, but the layers are those that networks in general are made of, and any number of maps comes in and
// goes out.
#include "engine/plan/graph.h"
#include "torch/program.h"

namespace liteseg::cpu {
namespace {

std::vector<Tensor> run(const std::vector<Tensor>& tensors, const Tensor& packed, const Tensor& program,
                        const std::vector<int64_t>& sizes, std::vector<double>* seconds) {
  std::vector<Input> inputs;
  for (const Tensor& x : tensors) {
    check_4d(kRunGraph, "inputs", x);
    LITESEG_CHECK(x.scalar_type() == ScalarType::Float, kRunGraph, "inputs", "float32", dtype_text(x.scalar_type()));
    inputs.push_back(input_of(x));
  }
  const TorchThreads threads;
  Builder builder(kRunGraph, inputs, sizes, program_of(kRunGraph, packed, program), threads, nullptr);
  read_graph(builder);
  return execute(builder, seconds);
}

std::vector<Tensor> run_graph(std::vector<Tensor> inputs, Tensor packed, Tensor program, std::vector<int64_t> sizes) {
  return run(inputs, packed, program, sizes, nullptr);
}

// seconds of each layer, and of what the results add
Tensor time_graph(std::vector<Tensor> inputs, Tensor packed, Tensor program, std::vector<int64_t> sizes) {
  std::vector<double> seconds;
  run(inputs, packed, program, sizes, &seconds);
  return seconds_tensor(seconds);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(liteseg_cpu, CPU, m) {
  m.impl("run_graph", TORCH_BOX(&run_graph));
  m.impl("time_graph", TORCH_BOX(&time_graph));
}

}  // namespace liteseg::cpu
