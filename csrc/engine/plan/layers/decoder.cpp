#include "engine/kernels/decoder.h"

#include "engine/plan/layers.h"
#include "engine/runtime/isa.h"

namespace liteseg::cpu {
namespace {

template <typename Args, typename Table>
void add_stages(Builder& b, const std::shared_ptr<Args>& g, const Table& table, const DecoderArgs& shape,
                int64_t scratch_bytes) {
  if (shape.lift != nullptr) {
    b.stage(div_up(shape.n * shape.h * shape.w, shape.lift_tile), 0,
            [g, &table](int64_t begin, int64_t end, char*, bool) { table.lift(*g, begin, end); });
  }
  b.stage(shape.n * shape.oh, scratch_bytes, [g, &table](int64_t begin, int64_t end, char* scratch, bool fresh) {
    table.run(*g, begin, end, scratch, fresh);
  });
}

}  // namespace

void plan_decoder(Builder& b) {
  Program& code = b.code();
  auto g = std::make_shared<DecoderArgs>();
  const size_t from = b.any_source().id;
  const Map map = b.map(from);
  g->c1 = code.channels();
  b.check_inner(from, g->c1);
  const bool has_skip = code.flag();
  // without a skip connection the map still tells the size
  const size_t skip = b.any_source().id;
  const Map like = b.map(skip);
  LITESEG_CHECK(like.dense, b.op(), "program", "a skip connection from inside the network", "its input");
  g->c2 = has_skip ? like.c : 0;
  g->f1 = code.channels();
  g->f2 = code.channels();
  g->k = code.channels();
  g->activation1 = code.activation();
  g->activation2 = code.activation();
  const bool lifts = code.flag();
  const int64_t c = (lifts ? 0 : g->c1) + g->c2;
  if (lifts) {
    g->lift = b.matrix(9 * g->f1, g->c1);
  }
  g->depthwise1 = code.weight(9 * round_up(c, kWidestVector));
  g->pointwise1 = b.matrix(g->f1, c);
  g->bias1 = b.bias(g->f1);
  g->depthwise2 = code.weight(9 * round_up(g->f1, kWidestVector));
  g->pointwise2 = b.matrix(g->f2, g->f1);
  g->bias2 = b.bias(g->f2);
  g->classifier = b.matrix(g->k, g->f2);
  g->classifier_bias = b.bias(g->k);
  g->n = map.n;
  g->h = map.h;
  g->w = map.w;
  g->oh = like.h;
  g->ow = like.w;
  g->ys = b.axis(g->h, g->oh, true);
  g->xs = b.axis(g->w, g->ow, true);
  const int64_t pixels = g->n * g->h * g->w;
  g->lift_tile = b.balanced(48, 1, pixels);
  const auto lifted = b.temporary(lifts ? pixels * 9 * g->f1 : 0);
  const size_t to = b.add_map(g->n, g->k, g->oh, g->ow);
  b.map(to).strides = innermost(g->k, g->oh, g->ow);
  b.map(to).any_order = true;
  b.place([&b, g, from, skip, to, has_skip, lifted] {
    g->x = b.at(from);
    g->lifted = b.at(lifted);
    g->skip = has_skip ? b.at(skip) : nullptr;
    g->out = b.at(to);
    g->os = b.map(to).strides;
  });
  if (b.bf16_tables() == nullptr) {
    const DecoderTable& table = LITESEG_CHOOSE(decoder_table);
    return add_stages(b, g, table, *g, table.scratch_bytes(*g));
  }
  b.map(to).pixel = g->k;
  b.map(to).scores = true;
  auto half = std::make_shared<DecoderBf16Args>();
  b.place([&b, g, half, from, skip, to] {
    const bool result = b.map(to).result >= 0;
    *half = {*g, b.bf16_at(from), b.bf16_at(skip), result ? nullptr : g->out, result ? b.bf16_at(to) : nullptr};
  });
  const DecoderBf16Table& table = *b.bf16_tables()->decoder;
  add_stages(b, half, table, *g, table.scratch_bytes({*g, nullptr, nullptr, nullptr, nullptr}));
}

}  // namespace liteseg::cpu
