// run_plan: a whole network of one input, as liteseg_kernels/plan writes it.
#pragma once

#include "engine/plan/builder.h"

namespace liteseg::cpu {

constexpr const char* kRunPlan = "run_plan";

// what a builder of a plan is given for an x of bfloat16, or of float; an error where the processor has no products of
// bf16
const Bf16Tables* plan_tables(bool bf16);

// Reads the whole program; the map of the scores that it ends with. An input without data lies in the arena, for a stage
// of the caller's in front to fill.
size_t read_plan_layers(Builder& b);

// The same with its result. size: none for logits, which channels_last orders, or height and width of uint8 labels.
void read_plan(Builder& b, const std::vector<int64_t>& size, bool channels_last);

}  // namespace liteseg::cpu
