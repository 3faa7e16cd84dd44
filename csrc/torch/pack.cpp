#include "torch/pack.h"

#include "engine/kernels/pack.h"
#include "engine/runtime/isa.h"

namespace liteseg::cpu {
namespace {

int64_t whole_panels(int64_t channels) {
  const int64_t panel = LITESEG_CHOOSE(pack_table).panel;
  return (channels + panel - 1) / panel * panel;
}

}  // namespace

int64_t pointwise_floats(int64_t out_channels, int64_t in_channels) {
  return whole_panels(out_channels) * in_channels;
}

int64_t bias_floats(int64_t channels) {
  return whole_panels(channels);
}

PackedWeights::PackedWeights(int64_t floats)
    : next_(reinterpret_cast<float*>(thread_buffer(Slot::kPacked, floats * static_cast<int64_t>(sizeof(float))))) {}

float* PackedWeights::take(int64_t floats) {
  float* start = next_;
  next_ += floats;
  return start;
}

const float* PackedWeights::panels(const Tensor& weight, int n_dim, int k_dim) {
  const int64_t n = weight.size(n_dim);
  const int64_t k = weight.size(k_dim);
  float* out = take(pointwise_floats(n, k));
  const PackTable& table = LITESEG_CHOOSE(pack_table);
  const DType dtype = dtype_of("liteseg_cpu", "weight", weight);
  table.pack[dtype](read_of(weight), weight.stride(n_dim), weight.stride(k_dim), n, k, out);
  return out;
}

const float* PackedWeights::pointwise(const Tensor& weight) {
  return panels(weight, 0, 1);
}

const float* PackedWeights::pointwise_transposed(const Tensor& weight) {
  return panels(weight, 1, 0);
}

const float* PackedWeights::bias(const std::optional<Tensor>& bias, int64_t channels) {
  float* out = take(bias_floats(channels));
  std::fill_n(out, bias_floats(channels), 0.0f);
  if (bias.has_value()) {
    const std::vector<float> values = to_floats(*bias);
    std::copy(values.begin(), values.end(), out);
  }
  return out;
}

const float* PackedWeights::depthwise(const Tensor& weight, bool flipped) {
  const int64_t c = weight.size(0);
  const int64_t taps = weight.size(2) * weight.size(3);
  const std::vector<float> values = to_floats(weight);
  float* out = take(taps * c);
  for (int64_t i = 0; i < c; ++i) {
    for (int64_t t = 0; t < taps; ++t) {
      out[(flipped ? taps - 1 - t : t) * c + i] = values[i * taps + t];
    }
  }
  return out;
}

}  // namespace liteseg::cpu
