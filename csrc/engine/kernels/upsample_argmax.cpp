// upsample_argmax - bilinear upsampling of class logits and the best class of every output pixel, in one pass.
// Replaces: F.interpolate(logits, size, mode="bilinear").argmax(1).to(uint8)
// Shapes:   logits [N, K, h, w], K <= 256 -> out uint8 [N, H, W]; logits at any strides
// Traffic:  minimum N*K*h*w*sizeof(T) + N*H*W; eager adds 2*N*K*H*W*sizeof(T) and an int64 map
// Bound:    arithmetic: two lookups, a multiply-add and a compare for each output pixel and class
// Layout:   two rows of logits are kept as floats, class by class; each output row blends them once (w values a class)
//           and then samples along x. The source pixels of one vector of outputs fit into one register when enlarging,
//           so the lookup is an in-register permutation; a gather serves the rest
// Numerics: fp32 coordinates as torch computes them; ties go to the lowest class; NaN counts as the largest value, the
//           first NaN wins. Rows with a value that is not finite take a scalar path
// Limits:   float32, float16, bfloat16
#include "engine/kernels/upsample_argmax.h"

#include "engine/blocks/planes.h"

namespace liteseg::LITESEG_ISA {
namespace {

using cpu::UpsampleArgmaxArgs;

int64_t scratch_bytes(const UpsampleArgmaxArgs& g) {
  return plane_floats(g.k, g.w) * static_cast<int64_t>(sizeof(float));
}

template <bool Near, int P>
void best_of(const UpsampleArgmaxArgs& g, const float* blended, int64_t pitch, int64_t ox, uint8_t* out) {
  constexpr int64_t w = Vec::width;
  Samples at[P];
  Vec best[P], label[P];
  for (int p = 0; p < P; ++p) {
    at[p] = Samples(g.x, ox + p * w);
    label[p] = zero();
    best[p] = at[p].template of<Near>(blended);
  }
  for (int64_t k = 1; k < g.k; ++k) {
    const Vec index = set1(static_cast<float>(k));
    for (int p = 0; p < P; ++p) {
      const Vec v = at[p].template of<Near>(blended + k * pitch);
      label[p] = where_greater(v, best[p], index, label[p]);
      best[p] = maximum(v, best[p]);
    }
  }
  for (int p = 0; p < P; ++p) {
    float labels[w];
    store(labels, label[p]);
    for (int64_t i = 0; i < min_i(w, g.ow - ox - p * w); ++i) {
      out[ox + p * w + i] = static_cast<uint8_t>(static_cast<int32_t>(labels[i]));
    }
  }
}

// the same for any values
void best_of_row_scalar(const UpsampleArgmaxArgs& g, const float* blended, int64_t pitch, uint8_t* out) {
  for (int64_t ox = 0; ox < g.ow; ++ox) {
    float best = 0.0f;
    int64_t label = -1;
    for (int64_t k = 0; k < g.k; ++k) {
      const float* row = blended + k * pitch;
      const float v = g.x.w0[ox] * row[g.x.i0[ox]] + g.x.w1[ox] * row[g.x.i1[ox]];
      if (label < 0 || (best == best && !(v <= best))) {
        best = v;
        label = k;
      }
    }
    out[ox] = static_cast<uint8_t>(label);
  }
}

template <typename T>
void run(const UpsampleArgmaxArgs& g, int64_t begin, int64_t end, char* scratch) {
  constexpr int64_t w = Vec::width;
  const Image logits{g.logits, g.ls, g.k, g.h, g.w};
  BlendedPlanes<T> planes(logits, g.y, at_offset<float>(scratch, 0));
  const int64_t pitch = planes.pitch();
  for (int64_t row = begin; row < end; ++row) {
    uint8_t* out = g.out + row * g.ow;
    const bool finite = planes.blend(row / g.oh, row % g.oh);
    const float* blended = planes.blended();
    if (!finite) {
      best_of_row_scalar(g, blended, pitch, out);
      continue;
    }
    for (int64_t ox = 0; ox < g.ow;) {
      if (ox + w < g.ow && near_sources(g.x, ox) && near_sources(g.x, ox + w)) {
        best_of<true, 2>(g, blended, pitch, ox, out);
        ox += 2 * w;
      } else if (near_sources(g.x, ox)) {
        best_of<true, 1>(g, blended, pitch, ox, out);
        ox += w;
      } else {
        best_of<false, 1>(g, blended, pitch, ox, out);
        ox += w;
      }
    }
  }
}

}  // namespace

const cpu::UpsampleArgmaxTable upsample_argmax_table = {
    scratch_bytes,
    {run<float>, run<f16>, run<bf16>},
};

const cpu::UpsampleArgmaxTable upsample_argmax_float_table = {
    scratch_bytes,
    {run<float>},
};

}  // namespace liteseg::LITESEG_ISA
