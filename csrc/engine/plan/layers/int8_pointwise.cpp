#include "engine/plan/layers.h"
#include "engine/runtime/isa.h"

namespace liteseg::cpu {

// 1x1, bytes in and out
void plan_int8_pointwise(Builder& b) {
  Program& code = b.code();
  auto g = std::make_shared<Int8PointwiseArgs>();
  g->c = code.word("a number of channels", 1, kMostByteChannels);
  const size_t from = b.byte_source(g->c, b.grid());
  g->co = code.channels();
  const ByteGrid out = b.grid();
  LITESEG_CHECK(out.zero == 0, b.op(), "program", "the zero point 0 behind an activation", out.zero);
  g->weight = b.byte_matrix(g->co, g->c);
  g->bias = b.integers(g->co);
  g->scale = b.bias(g->co);
  const Map map = b.map(from);
  g->pixels = map.n * map.h * map.w;
  g->tile = b.balanced(96, 1, g->pixels);
  const size_t to = b.add_byte_map(map.n, g->co, map.h, map.w, out);
  b.place([&b, g, from, to] {
    g->x = b.bytes_at(from);
    g->out = b.bytes_at(to);
  });
  const Int8PointwiseTable& table = LITESEG_CHOOSE_BYTES(int8_pointwise_table);
  b.stage(div_up(g->pixels, g->tile), 0,
          [g, &table](int64_t begin, int64_t end, char*, bool) { table.run(*g, begin, end); });
}

}  // namespace liteseg::cpu
