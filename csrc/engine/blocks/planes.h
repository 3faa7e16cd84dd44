// Rows of a small map as float planes (channel by channel), blended vertically for one output row of a resize and
// sampled horizontally a vector of output pixels at a time.
#pragma once

#include "engine/blocks/rows.h"

namespace liteseg::LITESEG_ISA {

// floats of one channel's row: room for a whole vector that starts at the last pixel
LITESEG_INLINE int64_t plane_pitch(int64_t w) {
  return (div_up(w, Vec::width) + 1) * Vec::width;
}
// two source rows and their blend
LITESEG_INLINE int64_t plane_floats(int64_t c, int64_t w) {
  return 3 * c * plane_pitch(w);
}

template <typename T>
class BlendedPlanes {
 public:
  BlendedPlanes(const Image& image, const cpu::AxisView& y, float* scratch) : image_(image), y_(y) {
    pitch_ = plane_pitch(image.w);
    planes_[0] = scratch;
    planes_[1] = scratch + image.c * pitch_;
    blended_ = planes_[1] + image.c * pitch_;
    // the padding is read, though no result depends on it
    for (int64_t i = 0; i < 3 * image.c * pitch_; ++i) {
      scratch[i] = 0.0f;
    }
  }
  int64_t pitch() const {
    return pitch_;
  }
  const float* blended() const {
    return blended_;
  }
  // fills blended() [C][pitch] for an output row; true where all of it is finite
  bool blend(int64_t n, int64_t oy) {
    const float* r0 = fetch(n, y_.i0[oy]);
    const float* r1 = fetch(n, y_.i1[oy]);
    const Vec w0 = set1(y_.w0[oy]);
    const Vec w1 = set1(y_.w1[oy]);
    // 0 * v is 0 for finite v and NaN for the others
    Vec check = zero();
    for (int64_t i = 0; i < image_.c * pitch_; i += Vec::width) {
      const Vec v = fma(w1, load(r1 + i), mul(w0, load(r0 + i)));
      check = fma(v, zero(), check);
      store(blended_ + i, v);
    }
    float checks[Vec::width];
    store(checks, check);
    bool finite = true;
    for (const float value : checks) {
      finite = finite && value == 0.0f;
    }
    return finite;
  }

 private:
  const float* fetch(int64_t n, int64_t y) {
    const int64_t slot = y & 1;
    if (held_[slot] != n * image_.h + y) {
      held_[slot] = n * image_.h + y;
      transpose_copy(image_.row<T>(n, y), image_.strides.w, image_.strides.c, image_.w, image_.c, planes_[slot],
                     pitch_);
    }
    return planes_[slot];
  }

  const Image& image_;
  cpu::AxisView y_;
  int64_t pitch_;
  float* planes_[2];
  float* blended_;
  int64_t held_[2] = {-1, -1};
};

// the two source columns and their weights for each lane of a vector of output pixels
struct Samples {
  int32_t base;
  Index i0, i1;
  Vec w0, w1;

  Samples() = default;
  LITESEG_INLINE Samples(const cpu::AxisView& x, int64_t ox)
      : base(x.i0[ox]),
        i0(load_index(x.i0 + ox, base)),
        i1(load_index(x.i1 + ox, base)),
        w0(load(x.w0 + ox)),
        w1(load(x.w1 + ox)) {}

  template <bool Near>
  LITESEG_INLINE Vec of(const float* row) const {
    return fma(w1, lookup<Near>(row + base, i1), mul(w0, lookup<Near>(row + base, i0)));
  }
};

// whether all source columns of a vector of output pixels lie within one vector: always the case when enlarging
LITESEG_INLINE bool near_sources(const cpu::AxisView& x, int64_t ox) {
  return x.i1[ox + Vec::width - 1] - x.i0[ox] < Vec::width;
}

// the weight of input i in output o
LITESEG_INLINE float share(const cpu::AxisView& axis, int64_t i, int64_t o) {
  return (axis.i0[o] == i ? axis.w0[o] : 0.0f) + (axis.i1[o] == i ? axis.w1[o] : 0.0f);
}

}  // namespace liteseg::LITESEG_ISA
