// Registration of liteseg_cpu::upsample_concat and its backward; the kernels are described in
// engine/kernels/upsample_concat.cpp.
#include "engine/kernels/upsample_concat.h"

#include "engine/resample.h"
#include "engine/runtime/isa.h"
#include "torch/tensors.h"

namespace liteseg::cpu {
namespace {

constexpr const char* kOp = "upsample_concat";

Tensor upsample_concat(Tensor x, Tensor skip, bool align_corners) {
  check_4d(kOp, "x", x);
  check_4d(kOp, "skip", skip);
  check_same_dtype(kOp, "skip", skip, x);
  const DType dtype = dtype_of(kOp, "x", x);
  const int64_t n = x.size(0);
  UpsampleConcatArgs g{};
  g.c1 = x.size(1);
  g.h = x.size(2);
  g.w = x.size(3);
  g.c2 = skip.size(1);
  g.oh = skip.size(2);
  g.ow = skip.size(3);
  LITESEG_CHECK(skip.size(0) == n, kOp, "skip", text("batch ", n), skip.size(0));
  LITESEG_CHECK(g.h > 0 && g.w > 0, kOp, "x", "a height and width of at least 1", shape_text(x));
  LITESEG_CHECK(g.oh > 0 && g.ow > 0, kOp, "skip", "a height and width of at least 1", shape_text(skip));
  Tensor out = empty_dense({n, g.c1 + g.c2, g.oh, g.ow}, x.scalar_type(), is_channels_last(skip));
  const Axis y(g.h, g.oh, align_corners);
  const Axis along_x(g.w, g.ow, align_corners);
  g.low = read_of(x);
  g.ls = strides_of(x);
  g.skip = read_of(skip);
  g.ss = strides_of(skip);
  g.out = data_of(out);
  g.os = dense_strides(out);
  g.y = y.view();
  g.x = along_x.view();
  const UpsampleConcatTable& table = LITESEG_CHOOSE(upsample_concat_table);
  const int64_t scratch_bytes = table.scratch_bytes(g);
  parallel(n * g.oh, 8 * (g.c1 + g.c2) * g.ow, [&](int64_t begin, int64_t end) {
    table.run[dtype](g, begin, end, thread_buffer(Slot::kScratch, scratch_bytes));
  });
  return out;
}

std::tuple<Tensor, Tensor> upsample_concat_backward(Tensor grad, std::vector<int64_t> size, int64_t channels,
                                                    bool align_corners) {
  check_4d(kOp, "grad", grad);
  const DType dtype = dtype_of(kOp, "grad", grad);
  LITESEG_CHECK(channels >= 1 && channels <= grad.size(1), kOp, "channels", text("1 to ", grad.size(1)), channels);
  LITESEG_CHECK(size[0] > 0 && size[1] > 0, kOp, "size", "at least 1 x 1", text(size[0], " x ", size[1]));
  const int64_t n = grad.size(0);
  UpsampleConcatBackwardArgs g{};
  g.c1 = channels;
  g.c2 = grad.size(1) - channels;
  g.h = size[0];
  g.w = size[1];
  g.oh = grad.size(2);
  g.ow = grad.size(3);
  LITESEG_CHECK(g.oh > 0 && g.ow > 0, kOp, "grad", "a height and width of at least 1", shape_text(grad));
  const bool channels_last = is_channels_last(grad);
  Tensor grad_low = empty_dense({n, g.c1, g.h, g.w}, grad.scalar_type(), channels_last);
  Tensor grad_skip = empty_dense({n, g.c2, g.oh, g.ow}, grad.scalar_type(), channels_last);
  const Axis y(g.h, g.oh, align_corners);
  const Axis x(g.w, g.ow, align_corners);
  const Gather gather_y(y, g.h, g.oh);
  const Gather gather_x(x, g.w, g.ow);
  g.grad = read_of(grad);
  g.gs = strides_of(grad);
  g.grad_low = data_of(grad_low);
  g.ls = dense_strides(grad_low);
  g.grad_skip = data_of(grad_skip);
  g.ss = dense_strides(grad_skip);
  g.y = y.view();
  g.x = x.view();
  g.gy = gather_y.view();
  g.gx = gather_x.view();
  g.longest = gather_y.longest();
  const UpsampleConcatTable& table = LITESEG_CHOOSE(upsample_concat_table);
  const int64_t scratch_bytes = table.backward_scratch_bytes(g);
  parallel(n * g.h, 8 * g.c1 * g.ow * (g.longest + 1), [&](int64_t begin, int64_t end) {
    table.backward_low[dtype](g, begin, end, thread_buffer(Slot::kScratch, scratch_bytes));
  });
  parallel(n * g.oh, 8 * g.c2 * g.ow, [&](int64_t begin, int64_t end) { table.backward_skip[dtype](g, begin, end); });
  return {grad_low, grad_skip};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(liteseg_cpu, CPU, m) {
  m.impl("upsample_concat", TORCH_BOX(&upsample_concat));
  m.impl("upsample_concat_backward", TORCH_BOX(&upsample_concat_backward));
}

}  // namespace liteseg::cpu
