// The weights of a program as its writer knows them, and as the kernels of one instruction set read them.
#pragma once

#include <cstdint>

namespace liteseg::cpu {

// X(number, kind): in which order a weight's values are given, and how its dims are counted
//
// vector           [C]: one value a column
// matrix           [N][stretches][length]: a product's columns, each with the rows that it sums over
// winograd         [N][9][C], output: a 3x3 convolution for Winograd's tiles of output x output
// grouped_matrix   [groups][N][K]: a matrix for each group
// grouped_vector   [groups][N]
// depthwise        [C][taps], room: one filter a channel, of which `room` have memory
// inner_depthwise  [C][9]: the same for a map that the layer itself makes
// byte_matrix      [N][K]: the same as matrix for kernels of bytes, whole numbers in -127..127
// integers         [C]: one whole number a column, below 2^24
// byte_depthwise   [C][9]: as byte_matrix, one 3x3 filter a channel
// lane_integers    [C]: as integers, for the channels of byte_depthwise
// lane_vector      [C]: as vector, likewise
// float_matrix     [N][K]: as matrix, in float whatever the plan
#define LITESEG_WEIGHT_KINDS(X) \
  X(1, vector)                  \
  X(2, matrix)                  \
  X(3, winograd)                \
  X(4, grouped_matrix)          \
  X(5, grouped_vector)          \
  X(6, depthwise)               \
  X(7, inner_depthwise)         \
  X(8, byte_matrix)             \
  X(9, integers)                \
  X(10, byte_depthwise)         \
  X(11, lane_integers)          \
  X(12, lane_vector)            \
  X(13, float_matrix)

#define LITESEG_WEIGHT_KIND(number, kind) kind = number,
enum class WeightKind : int64_t { LITESEG_WEIGHT_KINDS(LITESEG_WEIGHT_KIND) };
#undef LITESEG_WEIGHT_KIND

constexpr int kWeightDims = 3;

struct Weight {
  WeightKind kind;
  int64_t dims[kWeightDims];  // as above; those that the kind does not have are 1
};

// Refuses a kind that does not exist, and dims of which none is above 2^20 and whose product, with what packing adds,
// is not below 2^40.
Weight checked_weight(const char* op, int64_t kind, const int64_t* dims);

// floats that are given
int64_t plain_floats(const Weight& weight);

// floats that the packed weight takes, whole vectors of any instruction set
int64_t packed_floats(const Weight& weight, int64_t panel, bool bf16);

// plain [plain_floats] -> out [packed_floats], for kernels with panels of `panel` columns; bf16: those of a bfloat16
// plan, where words of two bf16 take the place of floats in matrices and inner depthwise weights
void pack_weight(const Weight& weight, const float* plain, int64_t panel, bool bf16, float* out);

}  // namespace liteseg::cpu
