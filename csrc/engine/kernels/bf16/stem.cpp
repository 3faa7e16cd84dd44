// Stem of a network in bfloat16: dense 3x3 convolution of few channels, 3x3 depthwise, pointwise, in one pass.
// Replaces: conv2d(3x3), activation, conv2d(groups), activation, conv2d(1x1) (neither map in between is ever stored)
// Shapes:   x [N, C, H, W] -> out [N, Ho, Wo, Co]; the dense convolution has padding 1 and any stride
// Traffic:  minimum (N*C*H*W + N*Co*Ho*Wo) * 2
// Bound:    arithmetic
// Layout:   rows of x are copied, channels innermost, between zero columns; a dense output is then a product whose left
//           side is three runs of 3 * C neighbouring values, made even by a weight of zero. Two rows of the dense map
//           at a time become a pair row of a ring (pairs.h)
// Numerics: as kernels/bf16/inverted_residual.cpp
// Limits:   bfloat16
#include "engine/kernels/bf16/tables.h"

#include "engine/blocks/pairs.h"
#include "engine/blocks/rows.h"

namespace liteseg::LITESEG_ISA {
namespace {

using Args = cpu::StemBf16Args;

constexpr int64_t kTaps = 3;
constexpr int64_t kSlots = 2;  // pair rows that the window around one row reaches

struct Scratch {
  ScratchLayout layout;
  int64_t ldh;
  int64_t input_row;    // values of one copied row of x
  int64_t input_slots;  // rows of x that two rows of the dense map reach
  int64_t dense_row;
  int64_t tile;
  int64_t a, input, dense, input_tags, dense_tags;

  explicit Scratch(const Args& g) {
    ldh = padded(g.hidden);
    // if the stride does not divide the width, the last output's window ends behind the right zero column; one more
    // value because rows of the product are padded to an even length
    input_row = div_up((g.ow * g.stride + kTaps) * g.c + 1, 32) * 32;
    input_slots = g.stride + kTaps;
    dense_row = (g.ow + 2) * ldh;
    tile = 8 * kRows;
    a = layout.take<bf16>(tile * ldh);
    input = layout.take<bf16>((input_slots + 1) * input_row);
    dense = layout.take<Word>(kSlots * dense_row);
    input_tags = layout.take<int64_t>(input_slots);
    dense_tags = layout.take<int64_t>(kSlots);
  }
};

class Rows {
 public:
  Rows(const Args& g, const Scratch& s, char* memory, bool fresh)
      : g_(g),
        s_(s),
        input_(at_offset<bf16>(memory, s.input)),
        dense_(at_offset<Word>(memory, s.dense)),
        input_tags_(at_offset<int64_t>(memory, s.input_tags)),
        dense_tags_(at_offset<int64_t>(memory, s.dense_tags)) {
    if (fresh) {
      clear_tags(input_tags_, s.input_slots);
      clear_tags(dense_tags_, kSlots);
      for (int64_t i = 0; i < (s.input_slots + 1) * s.input_row; ++i) {
        input_[i].bits = 0;
      }
      zero_words(dense_, kSlots * s.dense_row);
    }
  }

  // row pair q of the dense map, its zero column first
  const Word* dense(int64_t n, int64_t q) {
    const int64_t pairs = div_up(g_.oh, 2);
    Word* row = dense_ + q % kSlots * s_.dense_row;
    if (dense_tags_[q % kSlots] == n * pairs + q) {
      return row;
    }
    dense_tags_[q % kSlots] = n * pairs + q;
    const bool has_odd = 2 * q + 1 < g_.oh;
    const bf16* rows[2][kTaps];
    for (int64_t i = 0; i < kTaps; ++i) {
      rows[0][i] = input(n, 2 * q * g_.stride - 1 + i);
    }
    for (int64_t i = 0; i < kTaps; ++i) {
      rows[1][i] = has_odd ? input(n, (2 * q + 1) * g_.stride - 1 + i) : rows[0][i];
    }
    const int64_t words = words_of(kTaps * g_.c);
    const Left left{rows[0], rows[1], kTaps, words, g_.stride * g_.c};
    for (int64_t panel = 0; panel < g_.hidden; panel += kPanel) {
      dot_columns<true>(panel, g_.hidden, g_.ow, left, g_.conv + panel * kTaps * words, g_.conv_bias,
                        [&](int64_t at, int64_t cols) {
                          return StorePairs(row + s_.ldh + at, s_.ldh, g_.conv_activation, has_odd, cols);
                        });
    }
    return row;
  }

 private:
  const bf16* input(int64_t n, int64_t y) {
    if (y < 0 || y >= g_.h) {
      return input_ + s_.input_slots * s_.input_row;  // the row of zeros behind the ring
    }
    const int64_t slot = y % s_.input_slots;
    bf16* row = input_ + slot * s_.input_row;
    if (input_tags_[slot] != n * g_.h + y) {
      input_tags_[slot] = n * g_.h + y;
      const bf16* src = g_.x + n * g_.xs.n + y * g_.xs.h;
      bf16* dst = row + g_.c;
      if (g_.xs.c == 1 && g_.xs.w == g_.c) {
        __builtin_memcpy(dst, src, static_cast<size_t>(g_.w * g_.c) * sizeof(bf16));
      } else {
        for (int64_t c = 0; c < g_.c; ++c) {
          for (int64_t x = 0; x < g_.w; ++x) {
            dst[x * g_.c + c] = src[c * g_.xs.c + x * g_.xs.w];
          }
        }
      }
    }
    return row;
  }

  const Args& g_;
  const Scratch& s_;
  bf16* input_;
  Word* dense_;
  int64_t* input_tags_;
  int64_t* dense_tags_;
};

void run(const Args& g, int64_t begin, int64_t end, char* memory, bool fresh) {
  const Scratch s(g);
  Rows source(g, s, memory, fresh);
  bf16* a = at_offset<bf16>(memory, s.a);
  const int64_t ldo = padded(g.co);
  const PairRow geometry{g.hidden, s.ldh, 1, 1, g.depthwise_bias, g.depthwise_activation};
  for (int64_t row = begin; row < end; ++row) {
    const int64_t n = row / g.oh;
    PairTap taps[3];
    const int64_t count =
        pair_taps(row - n * g.oh, 1, g.oh, g.depthwise, s.ldh, [&](int64_t q) { return source.dense(n, q); }, taps);
    for (int64_t x = 0; x < g.ow; x += s.tile) {
      const int64_t pixels = min_i(s.tile, g.ow - x);
      depthwise_pairs(taps, count, geometry, x, pixels, a, s.ldh);
      dot_to_half(pixels, g.co, g.hidden, a, s.ldh, g.project, g.project_bias, g.out + (row * g.ow + x) * ldo, ldo,
                  nullptr, 0, cpu::kNone);
    }
  }
}

int64_t scratch_bytes(const Args& args) {
  return Scratch(args).layout.bytes();
}

}  // namespace

const cpu::StemBf16Table stem_bf16_table = {scratch_bytes, run};

}  // namespace liteseg::LITESEG_ISA
