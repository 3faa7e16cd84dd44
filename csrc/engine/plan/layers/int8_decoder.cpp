#include "engine/plan/layers.h"
#include "engine/runtime/isa.h"

namespace liteseg::cpu {

// bytes in, with a skip connection, and scores out
void plan_int8_decoder(Builder& b) {
  Program& code = b.code();
  auto g = std::make_shared<Int8DecoderArgs>();
  DecoderArgs& sums = g->sums;
  sums.c1 = code.channels();
  const ByteGrid grid = b.grid();
  const size_t from = b.byte_source(sums.c1, grid);
  sums.c2 = code.channels();
  g->skip_grid = b.grid();
  const size_t skip = b.byte_source(sums.c2, g->skip_grid);
  sums.f1 = code.word("a number of channels", 1, kMostByteChannels);
  sums.f2 = code.channels();
  sums.k = code.channels();
  sums.activation1 = code.activation();
  LITESEG_CHECK(sums.activation1 != kNone, b.op(), "program", "an activation of the first convolution", "none");
  const bool lifts = code.flag();
  const int64_t c = (lifts ? 0 : sums.c1) + sums.c2;
  if (lifts) {
    sums.lift = b.float_matrix(9 * sums.f1, sums.c1);
  }
  sums.depthwise1 = code.weight(9 * round_up(c, kWidestVector));
  sums.pointwise1 = b.float_matrix(sums.f1, c);
  sums.bias1 = b.bias(sums.f1);
  const ByteGrid middle = b.grid();
  LITESEG_CHECK(middle.zero == 0, b.op(), "program", "the zero point 0 behind an activation", middle.zero);
  g->middle_scale = middle.scale;
  g->depthwise = b.byte_lanes(sums.f1, 3);
  g->depthwise_bias = b.byte_lanes(sums.f1, 1);
  g->depthwise_scale = reinterpret_cast<const float*>(b.byte_lanes(sums.f1, 1));
  g->pointwise = b.byte_matrix(sums.f2, sums.f1);
  g->bias = b.integers(sums.f2);
  g->scale = b.bias(sums.f2);
  sums.classifier = b.float_matrix(sums.k, sums.f2);
  sums.classifier_bias = b.bias(sums.k);
  const Map map = b.map(from);
  const Map like = b.map(skip);
  sums.n = map.n;
  sums.h = map.h;
  sums.w = map.w;
  sums.oh = like.h;
  sums.ow = like.w;
  sums.ys = b.axis(sums.h, sums.oh, true);
  sums.xs = b.axis(sums.w, sums.ow, true);
  const int64_t pixels = sums.n * sums.h * sums.w;
  sums.lift_tile = b.balanced(48, 1, pixels);
  const auto lifted = b.temporary(lifts ? pixels * 9 * sums.f1 : 0);
  const auto numbers = b.temporary(pixels * sums.c1);
  const size_t to = b.add_map(sums.n, sums.k, sums.oh, sums.ow);
  b.map(to).strides = innermost(sums.k, sums.oh, sums.ow);
  b.map(to).any_order = true;
  b.map(to).pixel = sums.k;
  b.map(to).scores = b.bf16_tables() != nullptr;
  auto wide = std::make_shared<ConvertArgs>();
  wide->c = wide->to_pixel = sums.c1;
  wide->from_pixel = map.pixel * static_cast<int64_t>(sizeof(float));
  wide->grid = grid;
  wide->half = false;
  b.place([&b, g, wide, from, skip, to, lifted, numbers] {
    const bool half = b.bf16_tables() != nullptr && b.map(to).result >= 0;
    wide->from = b.at(from);
    wide->to = b.at(numbers);
    g->sums.x = b.at(numbers);
    g->sums.lifted = b.at(lifted);
    g->sums.os = b.map(to).strides;
    g->skip = b.bytes_at(skip);
    g->scores = half ? nullptr : b.at(to);
    g->logits = half ? b.bf16_at(to) : nullptr;
  });
  const Int8DecoderTable& table = LITESEG_CHOOSE_BYTES(int8_decoder_table);
  const ConvertTable& convert = LITESEG_CHOOSE_BYTES(convert_table);
  b.stage(div_up(pixels, sums.lift_tile), 0,
          [g, wide, pixels, lifts, &table, &convert](int64_t begin, int64_t end, char*, bool) {
            const int64_t tile = g->sums.lift_tile;
            convert.dequantise(*wide, begin * tile, std::min(end * tile, pixels));
            if (lifts) {
              table.lift(*g, begin, end);
            }
          });
  b.stage(sums.n * sums.oh, table.scratch_bytes(*g),
          [g, &table](int64_t begin, int64_t end, char* scratch, bool fresh) {
            table.run(*g, begin, end, scratch, fresh);
          });
}

}  // namespace liteseg::cpu
