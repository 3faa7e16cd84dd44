// What a program is made of. Its numbers stand here, and those that a kernel sets itself in that kernel's header:
// nowhere in Python, whose writers of programs (liteseg_kernels/plan, liteseg_kernels/compiler) ask for them by name
// (csrc/torch/program.cpp, liteseg_kernels/plan/contract.py).
//
// A program is a flat list of int64: its version, the panel its weights are packed for, the number of layers, then for
// each layer its number and what plan/layers/<layer>.cpp reads. Weights are offsets into one vector of packed floats.
#pragma once

#include <cstdint>

namespace liteseg::cpu {

// the first word of a program; a plan with weights for bfloat16 kernels has its own
constexpr int64_t kPlanVersion = 1;
constexpr int64_t kBf16PlanVersion = kPlanVersion + 256;
constexpr int64_t kGraphVersion = 1;

constexpr int64_t kMostStride = 64;  // of a graph's convolutions
constexpr int64_t kMostStemStride = 8;
constexpr int64_t kMostDepthwiseTaps = 31;  // along one side
// of a product of bytes: sums of more might not fit into int32
constexpr int64_t kMostByteChannels = 1 << 15;
constexpr int64_t kMostClasses = 256;  // that labels are chosen from

// how a result of a graph is written
enum Format : int64_t { kPlanar = 0, kInnermost = 1, kLabels = 2 };

}  // namespace liteseg::cpu

// X(number, layer, whether it has a bfloat16 kernel): the layers of run_plan, functions `plan_<layer>`
#define LITESEG_PLAN_LAYERS(X)        \
  X(1, stem, true)                    \
  X(2, inverted_residual, true)       \
  X(3, daspp, true)                   \
  X(4, decoder, true)                 \
  X(5, stem_pool, false)              \
  X(6, shuffle_unit, false)           \
  X(7, convolution, false)            \
  X(8, winograd, false)               \
  X(9, max_pool, false)               \
  X(10, quantise, true)               \
  X(11, dequantise, true)             \
  X(12, int8_inverted_residual, true) \
  X(13, int8_pointwise, true)         \
  X(14, int8_daspp, true)             \
  X(15, int8_decoder, true)

// the same of run_graph, functions `graph_<layer>`; layer i makes map i, and the results follow the layers
#define LITESEG_GRAPH_LAYERS(X)  \
  X(1, input, false)             \
  X(2, convolution, false)       \
  X(3, winograd, false)          \
  X(4, inverted_residual, false) \
  X(5, depthwise, false)         \
  X(6, stem, false)              \
  X(7, window, false)            \
  X(8, combine, false)           \
  X(9, mean, false)              \
  X(10, concat, false)           \
  X(11, resize, false)           \
  X(12, nearest, false)          \
  X(13, pad, false)              \
  X(14, activate, false)
