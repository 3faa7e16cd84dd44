#include "engine/resample.h"

#include <algorithm>

namespace liteseg::cpu {

Axis::Axis(int64_t in, int64_t out, bool align_corners) {
  const size_t size = static_cast<size_t>(out + padding);
  i0.resize(size);
  i1.resize(size);
  w0.resize(size);
  w1.resize(size);
  const float scale = align_corners ? (out > 1 ? static_cast<float>(in - 1) / static_cast<float>(out - 1) : 0.0f)
                                    : static_cast<float>(in) / static_cast<float>(out);
  for (int64_t i = 0; i < out + padding; ++i) {
    const int64_t o = std::min(i, out - 1);
    if (in == out) {
      i0[i] = i1[i] = static_cast<int32_t>(o);
      w0[i] = 1.0f;
      w1[i] = 0.0f;
      continue;
    }
    const float at = static_cast<float>(o);
    const float source = align_corners ? scale * at : std::max(scale * (at + 0.5f) - 0.5f, 0.0f);
    const int64_t first = std::min(static_cast<int64_t>(source), in - 1);
    i0[i] = static_cast<int32_t>(first);
    i1[i] = static_cast<int32_t>(std::min(first + 1, in - 1));
    w1[i] = std::min(std::max(source - static_cast<float>(first), 0.0f), 1.0f);
    w0[i] = 1.0f - w1[i];
  }
}

Gather::Gather(const Axis& axis, int64_t in, int64_t out) : begin(in, 0), end(in, 0) {
  // positions rise with the output, so the outputs of one input are neighbours
  for (int64_t o = out - 1; o >= 0; --o) {
    begin[axis.i0[o]] = begin[axis.i1[o]] = o;
  }
  for (int64_t o = 0; o < out; ++o) {
    end[axis.i0[o]] = end[axis.i1[o]] = o + 1;
  }
}

int64_t Gather::longest() const {
  int64_t most = 0;
  for (size_t i = 0; i < begin.size(); ++i) {
    most = std::max(most, end[i] - begin[i]);
  }
  return most;
}

}  // namespace liteseg::cpu
