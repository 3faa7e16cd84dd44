#include "engine/picture.h"

#include <cstddef>

namespace liteseg::cpu {

PictureColumns::PictureColumns(const Axis& x, int64_t w, int64_t ow, const std::vector<double>& mean,
                               const std::vector<double>& std, bool channels_last) {
  const int64_t c = static_cast<int64_t>(mean.size());
  runs_ = channels_last ? 1 : c;
  length_ = ow * c / runs_;
  pitch_ = length_ + Axis::padding;
  in_place_ = ow == w && (channels_last || c == 1);
  const size_t size = static_cast<size_t>(runs_ * pitch_);
  i0_.resize(size);
  i1_.resize(size);
  w0_.resize(size);
  w1_.resize(size);
  shift_.resize(size);
  for (int64_t ox = 0; ox < ow; ++ox) {
    for (int64_t k = 0; k < c; ++k) {
      const size_t at = static_cast<size_t>(channels_last ? ox * c + k : k * pitch_ + ox);
      const double factor = 1.0 / (255.0 * std[k]);
      i0_[at] = static_cast<int32_t>(x.i0[ox] * c + k);
      i1_[at] = static_cast<int32_t>(x.i1[ox] * c + k);
      w0_[at] = static_cast<float>(x.w0[ox] * factor);
      w1_[at] = static_cast<float>(x.w1[ox] * factor);
      shift_[at] = static_cast<float>(-mean[k] / std[k]);
    }
  }
}

}  // namespace liteseg::cpu
