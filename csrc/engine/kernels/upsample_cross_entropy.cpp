// upsample_cross_entropy - cross-entropy of bilinearly resized logits, without the resized logits.
// Replaces: F.interpolate + F.cross_entropy, and both of their backwards
// Shapes:   logits [N, K, h, w] at any strides, target [N, H, W] uint8, int32 or int64, weight [K] or none
//           -> per image, the sum of losses and of weights [N]; or the loss of each pixel [N, H, W]
// Traffic:  minimum N*K*h*w*sizeof(T) + N*H*W*sizeof(target), backward the same and N*K*h*w*sizeof(T) written; eager
//           moves at least 6*N*K*H*W*sizeof(T) more over forward and backward
// Bound:    arithmetic: two lookups and an exponential for each output pixel and class
// Layout:   as upsample_argmax, rows of class planes; the K values of a vector of pixels stay in cache
// Backward: softmax is computed again. The gradient of an output row is summed over x into a row of h x w size; a ring
//           keeps these until every row of logits that is read by them has taken its share, so each is computed once,
//           apart from the rows that two threads share. No two threads write one place
// Numerics: fp32 coordinates as torch computes them, fp32 softmax with the maximum subtracted; losses are summed in
//           double, along each row, then over the rows; always in this order
// Limits:   float32, float16, bfloat16; a target that is no class and not ignore_index makes the loss NaN
#include "engine/kernels/upsample_cross_entropy.h"

#include "engine/blocks/output.h"
#include "engine/blocks/planes.h"

namespace liteseg::LITESEG_ISA {
namespace {

using cpu::UpsampleCrossEntropyArgs;

template <typename Target>
void copy_targets(const UpsampleCrossEntropyArgs& g, int64_t n, int64_t oy, int64_t* targets) {
  const Target* src = static_cast<const Target*>(g.target) + n * g.tn + oy * g.th;
  for (int64_t x = 0; x < g.ow; ++x) {
    targets[x] = static_cast<int64_t>(src[x * g.tw]);
  }
}

void read_targets(const UpsampleCrossEntropyArgs& g, int64_t n, int64_t oy, int64_t* targets) {
  switch (g.target_type) {
    case cpu::kTargetUint8:
      return copy_targets<uint8_t>(g, n, oy, targets);
    case cpu::kTargetInt32:
      return copy_targets<int32_t>(g, n, oy, targets);
    default:
      return copy_targets<int64_t>(g, n, oy, targets);
  }
}

// logits minus their maximum for one vector of pixels
template <bool Near>
LITESEG_INLINE void centred_logits(int64_t classes, const Samples& at, const float* blended, int64_t pitch,
                                   float* values) {
  Vec most = at.of<Near>(blended);
  store(values, most);
  for (int64_t k = 1; k < classes; ++k) {
    const Vec v = at.of<Near>(blended + k * pitch);
    store(values + k * Vec::width, v);
    most = maximum(most, v);
  }
  for (int64_t k = 0; k < classes; ++k) {
    store(values + k * Vec::width, sub(load(values + k * Vec::width), most));
  }
}

// values [K][width] of the output pixels from ox on
LITESEG_INLINE void centred_logits(const UpsampleCrossEntropyArgs& g, int64_t ox, const float* blended, int64_t pitch,
                                   float* values) {
  const Samples at(g.x, ox);
  if (near_sources(g.x, ox)) {
    centred_logits<true>(g.k, at, blended, pitch, values);
  } else {
    centred_logits<false>(g.k, at, blended, pitch, values);
  }
}

LITESEG_INLINE bool is_class(const UpsampleCrossEntropyArgs& g, int64_t target) {
  return target >= 0 && target < g.k;
}

struct Scratch {
  ScratchLayout layout;
  int64_t planes, values, targets;

  explicit Scratch(const UpsampleCrossEntropyArgs& g) {
    planes = layout.take<float>(plane_floats(g.k, g.w));
    values = layout.take<float>(g.k * Vec::width);
    targets = layout.take<int64_t>(g.ow);
  }
};

template <typename T>
void forward(const UpsampleCrossEntropyArgs& g, int64_t begin, int64_t end, char* scratch) {
  constexpr int64_t w = Vec::width;
  const Scratch s(g);
  const Image logits{g.logits, g.ls, g.k, g.h, g.w};
  BlendedPlanes<T> planes(logits, g.y, at_offset<float>(scratch, s.planes));
  float* values = at_offset<float>(scratch, s.values);
  int64_t* targets = at_offset<int64_t>(scratch, s.targets);
  const float smooth = g.smoothing / static_cast<float>(g.k);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t n = row / g.oh;
    const int64_t oy = row - n * g.oh;
    planes.blend(n, oy);
    read_targets(g, n, oy, targets);
    double loss_sum = 0.0;
    double weight_sum = 0.0;
    for (int64_t ox = 0; ox < g.ow; ox += w) {
      centred_logits(g, ox, planes.blended(), planes.pitch(), values);
      Vec sum = zero();
      Vec weighted = zero();
      for (int64_t k = 0; k < g.k; ++k) {
        const Vec v = load(values + k * w);
        sum = add(sum, exp_negative(v));
        if (smooth != 0.0f) {
          weighted = fma(set1(g.weight[k]), v, weighted);
        }
      }
      float sums[w];
      float weighted_sums[w];
      store(sums, sum);
      store(weighted_sums, weighted);
      for (int64_t i = 0; i < min_i(w, g.ow - ox); ++i) {
        const int64_t target = targets[ox + i];
        float loss = 0.0f;
        if (target != g.ignore_index) {
          if (is_class(g, target)) {
            const float log_sum = __builtin_logf(sums[i]);
            const float weight = g.weight[target];
            loss = (1.0f - g.smoothing) * weight * (log_sum - values[target * w + i]);
            if (smooth != 0.0f) {
              loss += smooth * (g.weight_sum * log_sum - weighted_sums[i]);
            }
            weight_sum += weight;
          } else {
            loss = from_bits(0x7fc00000u);
          }
          loss_sum += loss;
        }
        if (g.map != nullptr) {
          g.map[row * g.ow + ox + i] = loss;
        }
      }
    }
    if (g.row_loss != nullptr) {
      g.row_loss[row] = loss_sum;
      g.row_weight[row] = weight_sum;
    }
  }
}

struct BackwardScratch {
  ScratchLayout layout;
  int64_t planes, values, targets, pixels, tags, ring, sums;

  explicit BackwardScratch(const UpsampleCrossEntropyArgs& g) {
    const int64_t lds = finish_stride(g.k);
    planes = layout.take<float>(plane_floats(g.k, g.w));
    values = layout.take<float>(g.k * Vec::width);
    targets = layout.take<int64_t>(g.ow);
    pixels = layout.take<float>(Vec::width * lds);
    tags = layout.take<int64_t>(g.longest);
    ring = layout.take<float>(g.longest * g.w * lds);
    sums = layout.take<float>(g.w * lds);
  }
};

// gradient of one output row, summed over x into pixels of the logits
template <typename T>
void gradient_row(const UpsampleCrossEntropyArgs& g, int64_t n, int64_t oy, BlendedPlanes<T>& planes, float* values,
                  int64_t* targets, float* pixels, float* out) {
  constexpr int64_t w = Vec::width;
  const int64_t lds = finish_stride(g.k);
  const float smooth = g.smoothing / static_cast<float>(g.k);
  const float* scale = g.scale + n * g.sn + oy * g.sh;
  for (int64_t i = 0; i < g.w * lds; i += w) {
    store(out + i, zero());
  }
  planes.blend(n, oy);
  read_targets(g, n, oy, targets);
  for (int64_t ox = 0; ox < g.ow; ox += w) {
    const int64_t count = min_i(w, g.ow - ox);
    centred_logits(g, ox, planes.blended(), planes.pitch(), values);
    Vec sum = zero();
    for (int64_t k = 0; k < g.k; ++k) {
      const Vec e = exp_negative(load(values + k * w));
      store(values + k * w, e);
      sum = add(sum, e);
    }
    // gradient = of_softmax * softmax - of_weight * weight - of_target at the target
    float sums[w], of_softmax[w] = {}, of_weight[w] = {}, of_target[w] = {};
    store(sums, sum);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t target = targets[ox + i];
      if (target == g.ignore_index) {
        continue;
      }
      const float factor = is_class(g, target) ? scale[(ox + i) * g.sw] : from_bits(0x7fc00000u);
      of_target[i] = is_class(g, target) ? factor * (1.0f - g.smoothing) * g.weight[target] : factor;
      of_weight[i] = factor * smooth;
      of_softmax[i] = (of_target[i] + of_weight[i] * g.weight_sum) / sums[i];
    }
    const Vec softmax_factor = load(of_softmax);
    const Vec weight_factor = load(of_weight);
    for (int64_t c = 0; c < g.k; c += w) {
      Vec block[w];
      for (int64_t i = 0; i < w; ++i) {
        block[i] = zero();
        if (c + i < g.k) {
          const Vec smoothed = mul(weight_factor, set1(-g.weight[c + i]));
          block[i] = fma(softmax_factor, load(values + (c + i) * w), smoothed);
        }
      }
      transpose(block);
      for (int64_t i = 0; i < w; ++i) {
        store(pixels + i * lds + c, block[i]);
      }
    }
    for (int64_t i = 0; i < count; ++i) {
      const int64_t target = targets[ox + i];
      if (target == g.ignore_index) {
        continue;
      }
      float* gradient = pixels + i * lds;
      if (is_class(g, target)) {
        gradient[target] -= of_target[i];
      }
      const int64_t at = ox + i;
      const Vec w0 = set1(g.x.w0[at]);
      const Vec w1 = set1(g.x.w1[at]);
      float* first = out + g.x.i0[at] * lds;
      float* second = out + g.x.i1[at] * lds;
      for (int64_t c = 0; c < g.k; c += w) {
        const Vec v = load(gradient + c);
        store(first + c, fma(w0, v, load(first + c)));
        store(second + c, fma(w1, v, load(second + c)));
      }
    }
  }
}

template <typename T>
void backward(const UpsampleCrossEntropyArgs& g, int64_t begin, int64_t end, char* scratch) {
  const BackwardScratch s(g);
  const int64_t lds = finish_stride(g.k);
  const Image logits{g.logits, g.ls, g.k, g.h, g.w};
  BlendedPlanes<T> planes(logits, g.y, at_offset<float>(scratch, s.planes));
  int64_t* tags = at_offset<int64_t>(scratch, s.tags);
  float* ring = at_offset<float>(scratch, s.ring);
  float* sums = at_offset<float>(scratch, s.sums);
  clear_tags(tags, g.longest);
  const Output<T> out{static_cast<T*>(g.grad_logits), g.gs, nullptr, {}, g.k, g.h, g.w, cpu::kNone, 0.0f};
  for (int64_t row = begin; row < end; ++row) {
    const int64_t n = row / g.h;
    const int64_t y = row - n * g.h;
    for (int64_t i = 0; i < g.w * lds; i += Vec::width) {
      store(sums + i, zero());
    }
    for (int64_t oy = g.gy.begin[y]; oy < g.gy.end[y]; ++oy) {
      const int64_t slot = oy % g.longest;
      float* held = ring + slot * g.w * lds;
      if (tags[slot] != n * g.oh + oy) {
        tags[slot] = n * g.oh + oy;
        gradient_row(g, n, oy, planes, at_offset<float>(scratch, s.values), at_offset<int64_t>(scratch, s.targets),
                     at_offset<float>(scratch, s.pixels), held);
      }
      const Vec weight = set1(share(g.y, y, oy));
      for (int64_t i = 0; i < g.w * lds; i += Vec::width) {
        store(sums + i, fma(weight, load(held + i), load(sums + i)));
      }
    }
    finish_row(out, sums, lds, n, y, 0, g.w);
  }
}

int64_t scratch_bytes(const UpsampleCrossEntropyArgs& args) {
  return Scratch(args).layout.bytes();
}

int64_t backward_scratch_bytes(const UpsampleCrossEntropyArgs& args) {
  return BackwardScratch(args).layout.bytes();
}

}  // namespace

const cpu::UpsampleCrossEntropyTable upsample_cross_entropy_table = {
    scratch_bytes,
    {forward<float>, forward<f16>, forward<bf16>},
    backward_scratch_bytes,
    {backward<float>, backward<f16>, backward<bf16>},
};

}  // namespace liteseg::LITESEG_ISA
