// Registration of liteseg_cpu::upsample_cross_entropy, its map of losses and its backward; the kernels are described in
// engine/kernels/upsample_cross_entropy.cpp.
#include "engine/kernels/upsample_cross_entropy.h"

#include "engine/resample.h"
#include "engine/runtime/isa.h"
#include "torch/tensors.h"

namespace liteseg::cpu {
namespace {

constexpr const char* kOp = "upsample_cross_entropy";
// rough cost of one class of one output pixel, in the multiply-adds that `parallel` counts
constexpr int64_t kClassCost = 8;

// arguments of a call, with everything that the pointers inside of them need
struct Call {
  UpsampleCrossEntropyArgs args{};
  DType dtype;
  int64_t n;
  std::vector<float> weight;
  Axis y, x;

  Call(const Tensor& logits, const Tensor& target, const std::optional<Tensor>& weight, int64_t ignore_index,
       double label_smoothing, bool align_corners);
};

void check(const Tensor& logits, const Tensor& target, const std::optional<Tensor>& weight) {
  check_4d(kOp, "logits", logits);
  LITESEG_CHECK(logits.size(1) > 0 && logits.size(2) > 0 && logits.size(3) > 0, kOp, "logits",
                "at least one class, row and column", shape_text(logits));
  LITESEG_CHECK(target.dim() == 3 && target.size(0) == logits.size(0) && target.size(1) > 0 && target.size(2) > 0, kOp,
                "target", text("[", logits.size(0), ", H, W]"), shape_text(target));
  if (weight.has_value()) {
    check_shape(kOp, "weight", *weight, {logits.size(1)});
  }
}

TargetType target_type(const Tensor& target) {
  switch (target.scalar_type()) {
    case ScalarType::Byte:
      return kTargetUint8;
    case ScalarType::Int:
      return kTargetInt32;
    default:
      LITESEG_CHECK(target.scalar_type() == ScalarType::Long, kOp, "target", "uint8, int32 or int64",
                    dtype_text(target.scalar_type()));
      return kTargetInt64;
  }
}

Call::Call(const Tensor& logits, const Tensor& target, const std::optional<Tensor>& class_weight, int64_t ignore_index,
           double label_smoothing, bool align_corners)
    : dtype(dtype_of(kOp, "logits", logits)),
      n(logits.size(0)),
      weight(class_weight.has_value() ? to_floats(*class_weight)
                                      : std::vector<float>(static_cast<size_t>(logits.size(1)), 1.0f)),
      y(logits.size(2), target.size(1), align_corners),
      x(logits.size(3), target.size(2), align_corners) {
  args.logits = read_of(logits);
  args.ls = strides_of(logits);
  args.target = read_of(target);
  args.target_type = target_type(target);
  args.tn = target.stride(0);
  args.th = target.stride(1);
  args.tw = target.stride(2);
  args.weight = weight.data();
  double sum = 0.0;
  for (const float w : weight) {
    sum += w;
  }
  args.weight_sum = static_cast<float>(sum);
  args.ignore_index = ignore_index;
  args.smoothing = static_cast<float>(label_smoothing);
  args.k = logits.size(1);
  args.h = logits.size(2);
  args.w = logits.size(3);
  args.oh = target.size(1);
  args.ow = target.size(2);
  args.y = y.view();
  args.x = x.view();
}

void run_forward(const Call& call) {
  const UpsampleCrossEntropyTable& table = LITESEG_CHOOSE(upsample_cross_entropy_table);
  const UpsampleCrossEntropyArgs& g = call.args;
  const int64_t scratch_bytes = table.scratch_bytes(g);
  parallel(call.n * g.oh, kClassCost * g.k * g.ow, [&](int64_t begin, int64_t end) {
    table.forward[call.dtype](g, begin, end, thread_buffer(Slot::kScratch, scratch_bytes));
  });
}

std::tuple<Tensor, Tensor> upsample_cross_entropy(Tensor logits, Tensor target, std::optional<Tensor> weight,
                                                  int64_t ignore_index, double label_smoothing, bool align_corners) {
  check(logits, target, weight);
  Call call(logits, target, weight, ignore_index, label_smoothing, align_corners);
  const int64_t rows = call.n * call.args.oh;
  std::vector<double> row_loss(static_cast<size_t>(rows));
  std::vector<double> row_weight(static_cast<size_t>(rows));
  call.args.row_loss = row_loss.data();
  call.args.row_weight = row_weight.data();
  Tensor losses = empty_dense({call.n}, ScalarType::Float, false);
  Tensor weights = empty_dense({call.n}, ScalarType::Float, false);
  run_forward(call);
  float* loss_out = static_cast<float*>(data_of(losses));
  float* weight_out = static_cast<float*>(data_of(weights));
  for (int64_t i = 0; i < call.n; ++i) {
    double loss_sum = 0.0;
    double weight_sum = 0.0;
    for (int64_t row = i * call.args.oh; row < (i + 1) * call.args.oh; ++row) {
      loss_sum += row_loss[static_cast<size_t>(row)];
      weight_sum += row_weight[static_cast<size_t>(row)];
    }
    loss_out[i] = static_cast<float>(loss_sum);
    weight_out[i] = static_cast<float>(weight_sum);
  }
  return {losses, weights};
}

Tensor upsample_cross_entropy_map(Tensor logits, Tensor target, std::optional<Tensor> weight, int64_t ignore_index,
                                  double label_smoothing, bool align_corners) {
  check(logits, target, weight);
  Call call(logits, target, weight, ignore_index, label_smoothing, align_corners);
  Tensor map = empty_dense({call.n, call.args.oh, call.args.ow}, ScalarType::Float, false);
  call.args.map = static_cast<float*>(data_of(map));
  run_forward(call);
  return map;
}

Tensor upsample_cross_entropy_backward(Tensor scale, Tensor logits, Tensor target, std::optional<Tensor> weight,
                                       int64_t ignore_index, double label_smoothing, bool align_corners) {
  check(logits, target, weight);
  const int64_t n = logits.size(0);
  LITESEG_CHECK(scale.dim() == 1 || scale.dim() == 3, kOp, "scale", "[N] or [N, H, W]", shape_text(scale));
  if (scale.dim() == 1) {
    check_shape(kOp, "scale", scale, {n});
  } else {
    check_shape(kOp, "scale", scale, {n, target.size(1), target.size(2)});
  }
  Call call(logits, target, weight, ignore_index, label_smoothing, align_corners);
  UpsampleCrossEntropyArgs& g = call.args;
  Tensor grad_logits = empty_dense({n, g.k, g.h, g.w}, logits.scalar_type(), is_channels_last(logits));
  const Gather rows(call.y, g.h, g.oh);
  std::vector<float> converted;
  if (scale.scalar_type() == ScalarType::Float) {
    g.scale = static_cast<const float*>(read_of(scale));
    g.sn = scale.stride(0);
    g.sh = scale.dim() == 3 ? scale.stride(1) : 0;
    g.sw = scale.dim() == 3 ? scale.stride(2) : 0;
  } else {
    converted = to_floats(scale);
    g.scale = converted.data();
    g.sn = scale.dim() == 3 ? g.oh * g.ow : 1;
    g.sh = scale.dim() == 3 ? g.ow : 0;
    g.sw = scale.dim() == 3 ? 1 : 0;
  }
  g.gy = rows.view();
  g.longest = rows.longest();
  g.grad_logits = data_of(grad_logits);
  g.gs = dense_strides(grad_logits);
  const UpsampleCrossEntropyTable& table = LITESEG_CHOOSE(upsample_cross_entropy_table);
  const int64_t scratch_bytes = table.backward_scratch_bytes(g);
  parallel(n * g.h, kClassCost * g.k * g.ow * g.longest, [&](int64_t begin, int64_t end) {
    table.backward[call.dtype](g, begin, end, thread_buffer(Slot::kScratch, scratch_bytes));
  });
  return grad_logits;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(liteseg_cpu, CPU, m) {
  m.impl("upsample_cross_entropy", TORCH_BOX(&upsample_cross_entropy));
  m.impl("upsample_cross_entropy_map", TORCH_BOX(&upsample_cross_entropy_map));
  m.impl("upsample_cross_entropy_backward", TORCH_BOX(&upsample_cross_entropy_backward));
}

}  // namespace liteseg::cpu
