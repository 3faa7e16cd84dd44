// Bilinear resizing by PyTorch's rules, coordinates and weights in float32.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace liteseg {

// the two neighbours of an output position on one axis, and the weight of the second
struct Neighbours {
  int64_t first, second;
  float weight;
};

__device__ inline Neighbours neighbours(int64_t position, int64_t in_size, float scale, bool align_corners) {
  float source;
  if (align_corners) {
    source = scale * static_cast<float>(position);
  } else {
    source = fmaxf(scale * (static_cast<float>(position) + 0.5f) - 0.5f, 0.0f);
  }
  Neighbours result;
  // rounding of the scale may carry the last position past the edge
  result.first = min(static_cast<int64_t>(source), in_size - 1);
  result.second = min(result.first + 1, in_size - 1);
  result.weight = fminf(fmaxf(source - static_cast<float>(result.first), 0.0f), 1.0f);
  return result;
}

inline float scale_of(int64_t in_size, int64_t out_size, bool align_corners) {
  if (!align_corners) {
    return static_cast<float>(in_size) / static_cast<float>(out_size);
  }
  return out_size > 1 ? static_cast<float>(in_size - 1) / static_cast<float>(out_size - 1) : 0.0f;
}

}  // namespace liteseg
