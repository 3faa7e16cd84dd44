// Registration of liteseg_cpu::program_constants, and what the ops that run programs share.
#include "torch/program.h"

#include <string>

#include "engine/kernels/convolution.h"
#include "engine/kernels/sliced_daspp.h"
#include "engine/plan/program.h"
#include "engine/plan/weights.h"

namespace liteseg::cpu {
namespace {

ScalarType dtype_of(Result::Type type) {
  switch (type) {
    case Result::kBf16:
      return ScalarType::BFloat16;
    case Result::kBytes:
      return ScalarType::Byte;
    case Result::kInt64:
      return ScalarType::Long;
    default:
      return ScalarType::Float;
  }
}

// "name=value" for each number that writers of programs need, one a line
std::string program_constants() {
  std::string lines;
  const auto add = [&lines](const char* name, int64_t value) { lines += text(name, '=', value, '\n'); };
#define LITESEG_ADD_PLAN_LAYER(number, layer, bf16) add("plan." #layer, number);
#define LITESEG_ADD_GRAPH_LAYER(number, layer, bf16) add("graph." #layer, number);
  LITESEG_PLAN_LAYERS(LITESEG_ADD_PLAN_LAYER)
  LITESEG_GRAPH_LAYERS(LITESEG_ADD_GRAPH_LAYER)
  add("version.plan", kPlanVersion);
  add("version.bf16_plan", kBf16PlanVersion);
  add("bf16_plans", bf16_tables() != nullptr ? 1 : 0);
  add("version.graph", kGraphVersion);
  add("activation.none", kNone);
  add("activation.relu", kRelu);
  add("activation.relu6", kRelu6);
  add("activation.leaky_relu", kLeakyRelu);
  add("activation.hardswish", kHardswish);
  add("activation.silu", kSilu);
  add("activation.hardsigmoid", kHardsigmoid);
  add("activation.sigmoid", kSigmoid);
  add("combine.add", kAdd);
  add("combine.multiply", kMultiply);
  add("result.planar", kPlanar);
  add("result.innermost", kInnermost);
  add("result.labels", kLabels);
  add("packing.vector", kWidestVector);
#define LITESEG_ADD_WEIGHT_KIND(number, kind) add("weight." #kind, number);
  LITESEG_WEIGHT_KINDS(LITESEG_ADD_WEIGHT_KIND)
  add("weight.dims", kWeightDims);
  add("most.branches", kMaxBranches);
  add("most.dense_taps", kMostTaps);
  add("most.depthwise_taps", kMostDepthwiseTaps);
  add("most.stride", kMostStride);
  add("most.stem_stride", kMostStemStride);
  add("most.classes", kMostClasses);
  return lines;
}

}  // namespace

Program program_of(const char* op, const Tensor& packed, const Tensor& program) {
  LITESEG_CHECK(packed.dim() == 1 && packed.stride(0) == 1 && packed.scalar_type() == ScalarType::Float, op, "packed",
                "a dense float32 vector", shape_text(packed));
  LITESEG_CHECK(program.dim() == 1 && program.stride(0) == 1 && program.scalar_type() == ScalarType::Long, op,
                "program", "a dense int64 vector", shape_text(program));
  return {op, static_cast<const int64_t*>(read_of(program)), program.numel(),
          static_cast<const float*>(read_of(packed)), packed.numel()};
}

Input input_of(const Tensor& x) {
  return {read_of(x), x.size(0), x.size(1), x.size(2), x.size(3), strides_of(x)};
}

std::vector<Tensor> execute(Builder& b, std::vector<double>* seconds) {
  std::vector<Tensor> tensors;
  for (Result& result : b.results()) {
    const std::vector<int64_t> shape = result.is_labels()
                                           ? std::vector<int64_t>{result.n, result.h, result.w}
                                           : std::vector<int64_t>{result.n, result.c, result.h, result.w};
    tensors.push_back(empty_dense(shape, dtype_of(result.type), result.channels_last));
    result.data = data_of(tensors.back());
  }
  b.execute(seconds);
  return tensors;
}

Tensor seconds_tensor(const std::vector<double>& seconds) {
  Tensor out = empty_dense({static_cast<int64_t>(seconds.size())}, ScalarType::Double, false);
  std::copy(seconds.begin(), seconds.end(), static_cast<double*>(data_of(out)));
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(liteseg_cpu, CompositeExplicitAutograd, m) {
  m.impl("program_constants", TORCH_BOX(&program_constants));
}

}  // namespace liteseg::cpu
