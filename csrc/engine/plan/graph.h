// run_graph: a part of any network, from any number of maps to any number, as liteseg_kernels/compiler writes it.
#pragma once

#include "engine/plan/builder.h"

namespace liteseg::cpu {

constexpr const char* kRunGraph = "run_graph";

// reads the whole program
void read_graph(Builder& b);

}  // namespace liteseg::cpu
