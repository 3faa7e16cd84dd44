// What the ops that run programs share: their arguments as the engine takes them, and their results.
#pragma once

#include "engine/plan/builder.h"
#include "torch/tensors.h"

namespace liteseg::cpu {

// the tensors outlive it
Program program_of(const char* op, const Tensor& packed, const Tensor& program);
Input input_of(const Tensor& x);
// runs what has been read
std::vector<Tensor> execute(Builder& b, std::vector<double>* seconds);
Tensor seconds_tensor(const std::vector<double>& seconds);

}  // namespace liteseg::cpu
