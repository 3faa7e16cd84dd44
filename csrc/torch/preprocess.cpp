// Registration of liteseg_cpu::preprocess; the kernel is described in engine/kernels/preprocess.cpp.
#include "engine/kernels/preprocess.h"

#include <limits>

#include "engine/picture.h"
#include "engine/resample.h"
#include "engine/runtime/isa.h"
#include "torch/tensors.h"

namespace liteseg::cpu {
namespace {

constexpr const char* kOp = "preprocess";

Tensor preprocess(Tensor image, std::vector<int64_t> size, std::vector<double> mean, std::vector<double> std,
                  ScalarType dtype, bool channels_last) {
  check_4d(kOp, "image", image);
  LITESEG_CHECK(image.scalar_type() == ScalarType::Byte, kOp, "image", "uint8", dtype_text(image.scalar_type()));
  const int64_t n = image.size(0);
  PreprocessArgs g{};
  g.h = image.size(1);
  g.w = image.size(2);
  g.c = image.size(3);
  g.oh = size[0];
  const int64_t ow = size[1];
  LITESEG_CHECK(g.h > 0 && g.w > 0, kOp, "image", "a height and width of at least 1", shape_text(image));
  LITESEG_CHECK(g.oh > 0 && ow > 0, kOp, "size", "at least 1 x 1", text(g.oh, " x ", ow));
  LITESEG_CHECK(g.w * g.c <= std::numeric_limits<int32_t>::max(), kOp, "image", "rows of less than 2^31 values",
                shape_text(image));
  for (const std::vector<double>* values : {&mean, &std}) {
    LITESEG_CHECK(static_cast<int64_t>(values->size()) == g.c, kOp, "mean and std", text(g.c, " numbers"),
                  values->size());
  }
  Tensor out = empty_dense({n, g.c, g.oh, ow}, dtype, channels_last);
  const DType kind = dtype_of(kOp, "dtype", out);
  if (out.numel() == 0) {
    return out;
  }
  const Axis y(g.h, g.oh, false);
  const Axis x(g.w, ow, false);
  const PictureColumns columns(x, g.w, ow, mean, std, channels_last);
  g.image = static_cast<const uint8_t*>(read_of(image));
  g.image_n = image.stride(0);
  g.image_h = image.stride(1);
  g.image_w = image.stride(2);
  g.image_c = image.stride(3);
  g.out = data_of(out);
  g.out_n = g.c * g.oh * ow;
  g.out_h = channels_last ? ow * g.c : ow;
  g.out_run = g.oh * ow;
  g.y = y.view();
  g.columns = columns.view();
  const PreprocessTable& table = LITESEG_CHOOSE(preprocess_table);
  const int64_t scratch_bytes = table.scratch_bytes(g);
  parallel(n * g.oh, 4 * g.c * (ow + g.w), [&](int64_t begin, int64_t end) {
    table.run[kind](g, begin, end, thread_buffer(Slot::kScratch, scratch_bytes));
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(liteseg_cpu, CPU, m) {
  m.impl("preprocess", TORCH_BOX(&preprocess));
}

}  // namespace liteseg::cpu
