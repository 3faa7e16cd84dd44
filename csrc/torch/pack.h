// Weights of one call in the order the kernels read them, as floats, in the calling thread's buffer.
#pragma once

#include "torch/tensors.h"

namespace liteseg::cpu {

// floats that the packed form takes
int64_t pointwise_floats(int64_t out_channels, int64_t in_channels);
int64_t bias_floats(int64_t channels);

class PackedWeights {
 public:
  explicit PackedWeights(int64_t floats);

  const float* pointwise(const Tensor& weight);                            // [Co, C, 1, 1] -> panels
  const float* pointwise_transposed(const Tensor& weight);                 // [Co, C, 1, 1] -> panels of [C, Co]
  const float* bias(const std::optional<Tensor>& bias, int64_t channels);  // zeros up to whole panels
  const float* depthwise(const Tensor& weight, bool flipped = false);      // [C, 1, kh, kw] -> [kh * kw][C]

 private:
  const float* panels(const Tensor& weight, int n_dim, int k_dim);
  float* take(int64_t floats);

  float* next_;
};

}  // namespace liteseg::cpu
