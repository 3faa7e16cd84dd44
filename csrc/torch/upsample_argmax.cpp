// Registration of liteseg_cpu::upsample_argmax; the kernel is described in engine/kernels/upsample_argmax.cpp.
#include "engine/kernels/upsample_argmax.h"

#include "engine/resample.h"
#include "engine/runtime/isa.h"
#include "torch/tensors.h"

namespace liteseg::cpu {
namespace {

constexpr const char* kOp = "upsample_argmax";

Tensor upsample_argmax(Tensor logits, std::vector<int64_t> size, bool align_corners) {
  check_4d(kOp, "logits", logits);
  const DType dtype = dtype_of(kOp, "logits", logits);
  UpsampleArgmaxArgs g{};
  g.k = logits.size(1);
  g.h = logits.size(2);
  g.w = logits.size(3);
  g.oh = size[0];
  g.ow = size[1];
  LITESEG_CHECK(g.k >= 1 && g.k <= 256, kOp, "logits", "1 to 256 classes", g.k);
  LITESEG_CHECK(g.h > 0 && g.w > 0, kOp, "logits", "a height and width of at least 1", shape_text(logits));
  LITESEG_CHECK(g.oh > 0 && g.ow > 0, kOp, "size", "at least 1 x 1", text(g.oh, " x ", g.ow));
  Tensor out = empty_dense({logits.size(0), g.oh, g.ow}, ScalarType::Byte, false);
  const Axis y(g.h, g.oh, align_corners);
  const Axis x(g.w, g.ow, align_corners);
  g.logits = read_of(logits);
  g.ls = strides_of(logits);
  g.out = static_cast<uint8_t*>(data_of(out));
  g.y = y.view();
  g.x = x.view();
  const UpsampleArgmaxTable& table = LITESEG_CHOOSE(upsample_argmax_table);
  const int64_t scratch_bytes = table.scratch_bytes(g);
  parallel(logits.size(0) * g.oh, g.k * (g.ow + g.w), [&](int64_t begin, int64_t end) {
    table.run[dtype](g, begin, end, thread_buffer(Slot::kScratch, scratch_bytes));
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(liteseg_cpu, CPU, m) {
  m.impl("upsample_argmax", TORCH_BOX(&upsample_argmax));
}

}  // namespace liteseg::cpu
