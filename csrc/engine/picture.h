// Where the values of a normalised picture come from, computed once per call for the kernel `preprocess`.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/kernels/preprocess.h"
#include "engine/resample.h"

namespace liteseg::cpu {

// the arrays behind PreprocessColumns; whole vectors can be read at the end of each run
class PictureColumns {
 public:
  // x: from w columns to ow; mean and std: one a channel, for values in 0..1
  PictureColumns(const Axis& x, int64_t w, int64_t ow, const std::vector<double>& mean, const std::vector<double>& std,
                 bool channels_last);
  PreprocessColumns view() const {
    return {i0_.data(), i1_.data(), w0_.data(), w1_.data(), shift_.data(), runs_, length_, pitch_, in_place_};
  }

 private:
  std::vector<int32_t> i0_, i1_;
  std::vector<float> w0_, w1_, shift_;
  int64_t runs_, length_, pitch_;
  bool in_place_;
};

}  // namespace liteseg::cpu
