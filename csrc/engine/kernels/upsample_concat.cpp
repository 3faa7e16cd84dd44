// upsample_concat - bilinear resize of `low` to the size of `skip`, written straight into the concatenated output.
// Replaces: F.interpolate + torch.cat (the resized map is never stored on its own)
// Shapes:   low [N, C1, h, w], skip [N, C2, H, W] -> out [N, C1 + C2, H, W] in skip's format; any input strides
// Traffic:  minimum (N*C1*h*w + N*C2*H*W + N*(C1 + C2)*H*W) * sizeof(T); eager adds 2*N*C1*H*W*sizeof(T)
// Bound:    memory
// Layout:   each output row blends two rows of low once, then samples along x: over channels where they are innermost
//           in the output, over pixels with in-register lookups where the output is NCHW
// Backward: low's gradient gathers: every row of it sums the output rows that read it, first over y, then over x; no
//           two threads write one place. Skip's gradient is a copy
// Numerics: fp32 coordinates as torch computes them, fp32 sums in a fixed order
// Limits:   float32, float16, bfloat16
#include "engine/kernels/upsample_concat.h"

#include "engine/blocks/output.h"
#include "engine/blocks/planes.h"

namespace liteseg::LITESEG_ISA {
namespace {

using cpu::UpsampleConcatArgs;
using cpu::UpsampleConcatBackwardArgs;

// one row of pixels between two layouts
template <typename T>
void copy_row(const T* src, const cpu::Strides4& from, T* dst, const cpu::Strides4& to, int64_t channels,
              int64_t width) {
  if (to.c == 1) {
    for (int64_t x = 0; x < width; ++x) {
      for (int64_t c = 0; c < channels; c += Vec::width) {
        store_partial(dst + x * to.w + c, load_strided(src + x * from.w + c * from.c, from.c, channels - c),
                      channels - c);
      }
    }
    return;
  }
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t x = 0; x < width; x += Vec::width) {
      store_partial(dst + c * to.c + x, load_strided(src + c * from.c + x * from.w, from.w, width - x), width - x);
    }
  }
}

template <typename T>
void copy_skip(const UpsampleConcatArgs& g, int64_t n, int64_t oy) {
  const T* src = static_cast<const T*>(g.skip) + n * g.ss.n + oy * g.ss.h;
  T* dst = static_cast<T*>(g.out) + n * g.os.n + oy * g.os.h + g.c1 * g.os.c;
  copy_row(src, g.ss, dst, g.os, g.c2, g.ow);
}

constexpr int64_t kLowRows = 2;  // rows of low that one output row reads

struct Scratch {
  ScratchLayout layout;
  int64_t blended, tags, ring, planes;

  explicit Scratch(const UpsampleConcatArgs& g) {
    const bool innermost = g.os.c == 1;
    blended = layout.take<float>(innermost ? g.w * g.c1 : 0);
    tags = layout.take<int64_t>(kLowRows);
    ring = layout.take<float>(innermost ? kLowRows * g.w * g.c1 : 0);
    planes = layout.take<float>(innermost ? 0 : plane_floats(g.c1, g.w));
  }
};

// output with channels innermost
template <typename T, typename Rows>
void run_channels(const UpsampleConcatArgs& g, int64_t begin, int64_t end, Rows source, float* blended) {
  const int64_t pixel = source.pixel_stride();
  for (int64_t row = begin; row < end; ++row) {
    const int64_t n = row / g.oh;
    const int64_t oy = row - n * g.oh;
    const auto* r0 = source.row(n, g.y.i0[oy]);
    const auto* r1 = source.row(n, g.y.i1[oy]);
    const Vec y0 = set1(g.y.w0[oy]);
    const Vec y1 = set1(g.y.w1[oy]);
    for (int64_t x = 0; x < g.w; ++x) {
      for (int64_t c = 0; c < g.c1; c += Vec::width) {
        const int64_t left = g.c1 - c;
        store_partial(blended + x * g.c1 + c,
                      fma(y1, load_partial(r1 + x * pixel + c, left), mul(y0, load_partial(r0 + x * pixel + c, left))),
                      left);
      }
    }
    T* out = static_cast<T*>(g.out) + n * g.os.n + oy * g.os.h;
    for (int64_t ox = 0; ox < g.ow; ++ox) {
      const float* a = blended + g.x.i0[ox] * g.c1;
      const float* b = blended + g.x.i1[ox] * g.c1;
      const Vec x0 = set1(g.x.w0[ox]);
      const Vec x1 = set1(g.x.w1[ox]);
      for (int64_t c = 0; c < g.c1; c += Vec::width) {
        const int64_t left = g.c1 - c;
        store_partial(out + ox * g.os.w + c, fma(x1, load_partial(b + c, left), mul(x0, load_partial(a + c, left))),
                      left);
      }
    }
    copy_skip<T>(g, n, oy);
  }
}

template <typename T>
void run(const UpsampleConcatArgs& g, int64_t begin, int64_t end, char* scratch) {
  const Scratch s(g);
  const Image low{g.low, g.ls, g.c1, g.h, g.w};
  if (g.os.c == 1) {
    float* blended = at_offset<float>(scratch, s.blended);
    if (low.dense_channels()) {
      run_channels<T>(g, begin, end, DirectRows<T>{low}, blended);
    } else {
      int64_t* tags = at_offset<int64_t>(scratch, s.tags);
      clear_tags(tags, kLowRows);
      run_channels<T>(g, begin, end, RingRows<T>{low, kLowRows, tags, at_offset<float>(scratch, s.ring)}, blended);
    }
    return;
  }
  BlendedPlanes<T> planes(low, g.y, at_offset<float>(scratch, s.planes));
  for (int64_t row = begin; row < end; ++row) {
    const int64_t n = row / g.oh;
    const int64_t oy = row - n * g.oh;
    planes.blend(n, oy);
    T* out = static_cast<T*>(g.out) + n * g.os.n + oy * g.os.h;
    for (int64_t ox = 0; ox < g.ow; ox += Vec::width) {
      const Samples at(g.x, ox);
      const bool near = near_sources(g.x, ox);
      for (int64_t c = 0; c < g.c1; ++c) {
        const float* plane = planes.blended() + c * planes.pitch();
        store_partial(out + c * g.os.c + ox, near ? at.of<true>(plane) : at.of<false>(plane), g.ow - ox);
      }
    }
    copy_skip<T>(g, n, oy);
  }
}

struct BackwardScratch {
  ScratchLayout layout;
  int64_t columns, sums, tags, ring;

  explicit BackwardScratch(const UpsampleConcatBackwardArgs& g) {
    const bool direct = Image{g.grad, g.gs, g.c1, g.oh, g.ow}.dense_channels();
    columns = layout.take<float>(g.ow * finish_stride(g.c1));
    sums = layout.take<float>(g.w * finish_stride(g.c1));
    tags = layout.take<int64_t>(g.longest);
    ring = layout.take<float>(direct ? 0 : g.longest * g.ow * g.c1);
  }
};

template <typename T, typename Rows>
void gather_rows(const UpsampleConcatBackwardArgs& g, int64_t begin, int64_t end, Rows source, float* columns,
                 float* sums) {
  const int64_t pixel = source.pixel_stride();
  const int64_t lds = finish_stride(g.c1);
  const Output<T> out{static_cast<T*>(g.grad_low), g.ls, nullptr, {}, g.c1, g.h, g.w, cpu::kNone, 0.0f};
  for (int64_t row = begin; row < end; ++row) {
    const int64_t n = row / g.h;
    const int64_t y = row - n * g.h;
    for (int64_t i = 0; i < g.ow * lds; i += Vec::width) {
      store(columns + i, zero());
    }
    for (int64_t oy = g.gy.begin[y]; oy < g.gy.end[y]; ++oy) {
      const auto* grad = source.row(n, oy);
      const Vec weight = set1(share(g.y, y, oy));
      for (int64_t ox = 0; ox < g.ow; ++ox) {
        for (int64_t c = 0; c < g.c1; c += Vec::width) {
          float* sum = columns + ox * lds + c;
          store(sum, fma(weight, load_partial(grad + ox * pixel + c, g.c1 - c), load(sum)));
        }
      }
    }
    for (int64_t x = 0; x < g.w; ++x) {
      for (int64_t c = 0; c < g.c1; c += Vec::width) {
        Vec sum = zero();
        for (int64_t ox = g.gx.begin[x]; ox < g.gx.end[x]; ++ox) {
          sum = fma(set1(share(g.x, x, ox)), load(columns + ox * lds + c), sum);
        }
        store(sums + x * lds + c, sum);
      }
    }
    finish_row(out, sums, lds, n, y, 0, g.w);
  }
}

template <typename T>
void backward_low(const UpsampleConcatBackwardArgs& g, int64_t begin, int64_t end, char* scratch) {
  const BackwardScratch s(g);
  const Image grad{g.grad, g.gs, g.c1, g.oh, g.ow};
  float* columns = at_offset<float>(scratch, s.columns);
  float* sums = at_offset<float>(scratch, s.sums);
  if (grad.dense_channels()) {
    gather_rows<T>(g, begin, end, DirectRows<T>{grad}, columns, sums);
  } else {
    int64_t* tags = at_offset<int64_t>(scratch, s.tags);
    clear_tags(tags, g.longest);
    gather_rows<T>(g, begin, end, RingRows<T>{grad, g.longest, tags, at_offset<float>(scratch, s.ring)}, columns, sums);
  }
}

template <typename T>
void backward_skip(const UpsampleConcatBackwardArgs& g, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const int64_t n = row / g.oh;
    const int64_t oy = row - n * g.oh;
    copy_row(static_cast<const T*>(g.grad) + n * g.gs.n + oy * g.gs.h + g.c1 * g.gs.c, g.gs,
             static_cast<T*>(g.grad_skip) + n * g.ss.n + oy * g.ss.h, g.ss, g.c2, g.ow);
  }
}

int64_t scratch_bytes(const UpsampleConcatArgs& args) {
  return Scratch(args).layout.bytes();
}

int64_t backward_scratch_bytes(const UpsampleConcatBackwardArgs& args) {
  return BackwardScratch(args).layout.bytes();
}

}  // namespace

const cpu::UpsampleConcatTable upsample_concat_table = {
    scratch_bytes,
    {run<float>, run<f16>, run<bf16>},
    backward_scratch_bytes,
    {backward_low<float>, backward_low<f16>, backward_low<bf16>},
    {backward_skip<float>, backward_skip<f16>, backward_skip<bf16>},
};

const cpu::UpsampleConcatTable upsample_concat_float_table = {
    scratch_bytes,
    {run<float>},
};

}  // namespace liteseg::LITESEG_ISA
