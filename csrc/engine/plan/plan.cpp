#include "engine/plan/plan.h"

#include "engine/plan/layers.h"
#include "engine/runtime/isa.h"

namespace liteseg::cpu {
namespace {

void read_layer(Builder& b) {
  const int64_t kind = b.code().word();
  switch (kind) {
#define LITESEG_READ_LAYER(number, layer, has_bf16)                                                                   \
  case number:                                                                                                        \
    LITESEG_CHECK(b.bf16_tables() == nullptr || has_bf16, b.op(), "program", "a layer with a bfloat16 kernel", kind); \
    plan_##layer(b);                                                                                                  \
    break;
    LITESEG_PLAN_LAYERS(LITESEG_READ_LAYER)
#undef LITESEG_READ_LAYER
    default:
      LITESEG_CHECK(false, b.op(), "program", "a known layer", "another one");
  }
}

}  // namespace

const Bf16Tables* bf16_tables() {
#if defined(__x86_64__)
#define LITESEG_TABLES_OF(name)                                                                        \
  case Isa::name: {                                                                                    \
    static constexpr Bf16Tables tables = {&name::stem_bf16_table, &name::inverted_residual_bf16_table, \
                                          &name::sliced_daspp_bf16_table, &name::decoder_bf16_table};  \
    return &tables;                                                                                    \
  }
  switch (isa()) {
    LITESEG_TABLES_OF(avx512bf16)
    LITESEG_TABLES_OF(amx)
    default:
      break;
  }
#undef LITESEG_TABLES_OF
#endif
  return nullptr;
}

const Bf16Tables* plan_tables(bool bf16) {
  const Bf16Tables* here = bf16 ? bf16_tables() : nullptr;
  LITESEG_CHECK(!bf16 || here != nullptr, kRunPlan, "x", "float32, or bfloat16 on a processor with AVX512_BF16 or AMX",
                "bfloat16");
  return here;
}

size_t read_plan_layers(Builder& b) {
  const int64_t version = b.bf16_tables() == nullptr ? kPlanVersion : kBf16PlanVersion;
  LITESEG_CHECK(b.code().word() == version, b.op(), "program", text("version ", version, " for this dtype of x"),
                "another one");
  b.check_panel();
  const int64_t layers = b.code().word("a number of layers", 1, 1000);
  const Input& x = b.inputs().front();
  Map& first = b.map(b.add_map(x.n, x.c, x.h, x.w));
  first.stored = x.data == nullptr;
  first.dense = false;
  first.input = x.data;
  first.strides = x.strides;
  for (int64_t i = 0; i < layers; ++i) {
    read_layer(b);
    b.next_layer();
  }
  LITESEG_CHECK(b.code().done(), b.op(), "program", text("no words after ", layers, " layers"), "some");
  const size_t last = b.map_count() - 1;
  LITESEG_CHECK(!b.map(last).bytes, b.op(), "program", "numbers at its end", "a map of bytes");
  LITESEG_CHECK(b.bf16_tables() == nullptr || b.map(last).scores, b.op(), "program", "a decoder at its end",
                "another layer");
  return last;
}

void read_plan(Builder& b, const std::vector<int64_t>& size, bool channels_last) {
  const size_t last = read_plan_layers(b);
  if (size.empty()) {
    b.add_result(last, b.bf16_tables() == nullptr ? Result::kFloats : Result::kBf16, channels_last);
    return;
  }
  LITESEG_CHECK(size.size() == 2 && size[0] > 0 && size[1] > 0, kRunPlan, "size", "none or two numbers of at least 1",
                size.size());
  b.add_labels(last, Result::kBytes, size[0], size[1], true);
}

}  // namespace liteseg::cpu
