// MobileNetV2's block in bfloat16: expand, depthwise and project in one pass over rows.
// Replaces: conv2d(1x1), activation, conv2d(groups), activation, conv2d(1x1), add (neither wide map is ever stored)
// Shapes:   x [N, H, W, C] -> out [N, Ho, Wo, Co], 3x3, padding = dilation
// Traffic:  minimum (N*C*H*W + N*Co*Ho*Wo) * 2 + weights
// Bound:    arithmetic, once the wide rows stay in the second level of cache
// Layout:   the expanded map is kept as pair rows (pairs.h), which the product writes two rows at a time. Where all of
//           it is small enough for the caches it is filled first and once; else a ring of each thread keeps the pairs
//           that a tile of output pixels reaches, and the threads compute the pairs at the edges of their parts twice.
//           Pairs are expanded together, so narrow maps read their weights once for several rows
// Numerics: fp32 sums in one fixed order per output, whatever the tiling and the number of threads; the two maps in
//           between are rounded to bf16. A value that is not finite spreads one row further than the window
// Limits:   3x3, one stride and one dilation for both axes
#include "engine/kernels/bf16/tables.h"

#include "engine/blocks/output.h"
#include "engine/blocks/pairs.h"
#include "engine/blocks/rows.h"

namespace liteseg::LITESEG_ISA {
namespace {

using Args = cpu::InvertedResidualBf16Args;

struct Shape {
  int64_t ldx, ldh, ldo;
  int64_t pad;  // zero columns on either side of a pair row
  int64_t pairs;
  int64_t row;  // words of one pair row

  explicit Shape(const Args& g) : ldx(padded(g.c)), ldh(padded(g.hidden)), ldo(padded(g.co)) {
    // a dilation beyond the width only ever reads zeros, so this many zero columns are enough
    pad = min_i(g.dilation, g.w);
    pairs = div_up(g.h, 2);
    row = (g.w + 2 * pad) * ldh;
  }
};

struct Scratch {
  ScratchLayout layout;
  int64_t slots = 0;  // pair rows of the ring
  int64_t a, ring, tags, missing;

  Scratch(const Args& g, const Shape& s) {
    if (!g.whole) {
      const int64_t span = min_i(g.oh, div_up(g.tile - 1, g.ow) + 1);
      slots = min_i(s.pairs, ((span - 1) * g.stride + 2 * g.dilation) / 2 + 2);
    }
    a = layout.take<bf16>(g.tile * s.ldh);
    ring = layout.take<Word>(slots * s.row);
    tags = layout.take<int64_t>(slots);
    missing = layout.take<int64_t>(slots);
  }
};

// expands the pairs pair_at(i), i < count, of image n into row_at(i)
template <typename PairAt, typename RowAt>
void expand_pairs(const Args& g, const Shape& s, int64_t n, int64_t count, const PairAt& pair_at, const RowAt& row_at) {
  for (int64_t i = 0; i < count; ++i) {
    zero_words(row_at(i), s.pad * s.ldh);
    zero_words(row_at(i) + (s.pad + g.w) * s.ldh, s.pad * s.ldh);
  }
  const auto rows_of = [&](int64_t q, const bf16** even, const bf16** odd) {
    *even = g.x + (n * g.h + 2 * q) * g.w * s.ldx;
    // the last row of an odd height has no partner; any readable row stands in, and its sums are not stored
    *odd = 2 * q + 1 < g.h ? *even + g.w * s.ldx : *even;
  };
  if (g.expand == nullptr) {
    for (int64_t i = 0; i < count; ++i) {
      const bf16* even;
      const bf16* odd;
      rows_of(pair_at(i), &even, &odd);
      const __mmask16 has_odd = odd != even ? 0xffff : 0;
      Word* to = row_at(i) + s.pad * s.ldh;
      for (int64_t at = 0; at < g.w * s.ldh; at += Vec::width) {
        const __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(even + at));
        const __m256i high = _mm256_maskz_loadu_epi16(has_odd, odd + at);
        _mm512_storeu_si512(to + at, interleave(_mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1)));
      }
    }
    return;
  }
  const int64_t words = words_of(g.c);
  for (int64_t column = 0; column < g.hidden; column += kPanel) {
    for (int64_t i = 0; i < count; ++i) {
      const bf16* even;
      const bf16* odd;
      rows_of(pair_at(i), &even, &odd);
      Word* to = row_at(i) + s.pad * s.ldh;
      dot_columns<true>(
          column, g.hidden, g.w, Left{&even, &odd, 1, words, s.ldx}, g.expand + column * words, g.expand_bias,
          [&](int64_t at, int64_t cols) { return StorePairs(to + at, s.ldh, g.activation, odd != even, cols); });
    }
  }
}

void expand(const Args& g, int64_t begin, int64_t end) {
  const Shape s(g);
  while (begin < end) {
    const int64_t n = begin / s.pairs;
    const int64_t first = begin - n * s.pairs;
    const int64_t count = min_i(end - begin, s.pairs - first);
    expand_pairs(
        g, s, n, count, [&](int64_t i) { return first + i; },
        [&](int64_t i) { return g.expanded + (begin + i) * s.row; });
    begin += count;
  }
}

class Rows {
 public:
  Rows(const Args& g, const Shape& s, const Scratch& scratch, char* memory, bool fresh)
      : g_(g),
        s_(s),
        slots_(scratch.slots),
        ring_(at_offset<Word>(memory, scratch.ring)),
        tags_(at_offset<int64_t>(memory, scratch.tags)),
        missing_(at_offset<int64_t>(memory, scratch.missing)) {
    if (fresh) {
      clear_tags(tags_, slots_);
    }
  }

  const Word* row(int64_t n, int64_t q) const {
    return g_.whole ? g_.expanded + (n * s_.pairs + q) * s_.row : ring_ + q % slots_ * s_.row;
  }

  // makes sure of all pairs that the output rows [first, last] reach
  void prepare(int64_t n, int64_t first, int64_t last) {
    if (g_.whole) {
      return;
    }
    int64_t count = 0;
    const int64_t low = max_i(0, first * g_.stride - g_.dilation);
    const int64_t high = min_i(g_.h - 1, last * g_.stride + g_.dilation);
    for (int64_t q = low / 2; q <= high / 2; ++q) {
      if (tags_[q % slots_] != n * s_.pairs + q) {
        tags_[q % slots_] = n * s_.pairs + q;
        missing_[count++] = q;
      }
    }
    expand_pairs(
        g_, s_, n, count, [&](int64_t i) { return missing_[i]; },
        [&](int64_t i) { return ring_ + missing_[i] % slots_ * s_.row; });
  }

 private:
  const Args& g_;
  const Shape& s_;
  int64_t slots_;
  Word* ring_;
  int64_t* tags_;
  int64_t* missing_;
};

void run(const Args& g, int64_t begin, int64_t end, char* memory, bool fresh) {
  const Shape s(g);
  const Scratch scratch(g, s);
  Rows source(g, s, scratch, memory, fresh);
  bf16* a = at_offset<bf16>(memory, scratch.a);
  const PairRow geometry{g.hidden, s.ldh, g.stride, s.pad, g.depthwise_bias, g.activation};
  const int64_t plane = g.oh * g.ow;
  const int64_t tiles = div_up(plane, g.tile);
  for (int64_t t = begin; t < end; ++t) {
    const int64_t image = t / tiles;
    const int64_t p0 = image * plane + (t - image * tiles) * g.tile;
    const int64_t p1 = min_i(p0 + g.tile, (image + 1) * plane);
    source.prepare(image, (p0 - image * plane) / g.ow, (p1 - 1 - image * plane) / g.ow);
    for_each_row(p0, p1, g.oh, g.ow, [&](int64_t n, int64_t oy, int64_t ox, int64_t count, int64_t offset) {
      PairTap taps[3];
      const int64_t tap_count = pair_taps(
          oy * g.stride, g.dilation, g.h, g.depthwise, s.ldh, [&](int64_t q) { return source.row(n, q); }, taps);
      depthwise_pairs(taps, tap_count, geometry, ox * g.stride, count, a + offset * s.ldh, s.ldh);
    });
    const bf16* residual = g.residual ? g.x + p0 * s.ldx : nullptr;
    dot_to_half(p1 - p0, g.co, g.hidden, a, s.ldh, g.project, g.project_bias, g.out + p0 * s.ldo, s.ldo, residual,
                s.ldx, cpu::kNone);
  }
}

int64_t scratch_bytes(const Args& args) {
  return Scratch(args, Shape(args)).layout.bytes();
}

}  // namespace

const cpu::InvertedResidualBf16Table inverted_residual_bf16_table = {scratch_bytes, expand, run};

}  // namespace liteseg::LITESEG_ISA
