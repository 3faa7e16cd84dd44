#include "engine/kernels/upsample_concat.h"
#include "engine/plan/layers.h"
#include "engine/runtime/isa.h"

namespace liteseg::cpu {

// bilinear; with a second map, that one behind it along the channels
void graph_resize(Builder& b) {
  auto g = std::make_shared<UpsampleConcatArgs>();
  const size_t from = b.source();
  const Map map = b.map(from);
  g->oh = b.size_argument();
  g->ow = b.size_argument();
  const bool align_corners = b.code().flag();
  const bool concat = b.code().flag();
  const size_t skip = concat ? b.source() : from;
  const Map behind = b.map(skip);
  LITESEG_CHECK(!concat || (behind.n == map.n && behind.h == g->oh && behind.w == g->ow), b.op(), "inputs",
                text("a map of ", map.n, "x", g->oh, "x", g->ow), text(behind.n, "x", behind.h, "x", behind.w));
  g->c1 = map.c;
  g->c2 = concat ? behind.c : 0;
  g->h = map.h;
  g->w = map.w;
  g->ls = innermost(map.c, map.h, map.w);
  g->ss = innermost(behind.c, behind.h, behind.w);
  const int64_t c = g->c1 + g->c2;
  const size_t to = b.add_map(map.n, c, g->oh, g->ow);
  b.map(to).strides = innermost(c, g->oh, g->ow);
  b.map(to).any_order = true;
  if (b.empty()) {
    return;
  }
  g->y = b.axis(g->h, g->oh, align_corners);
  g->x = b.axis(g->w, g->ow, align_corners);
  const UpsampleConcatTable& table = LITESEG_CHOOSE(upsample_concat_table);
  b.place([&b, g, from, skip, to] {
    g->low = b.at(from);
    g->skip = b.at(skip);
    g->out = b.at(to);
    g->os = b.map(to).strides;
  });
  g->os = {0, 0, 0, 0};  // the larger scratch is that of planes or that of channels, whatever the order will be
  UpsampleConcatArgs other = *g;
  other.os.c = 1;
  b.stage(map.n * g->oh, std::max(table.scratch_bytes(*g), table.scratch_bytes(other)),
          [g, &table](int64_t begin, int64_t end, char* scratch, bool) { table.run[kFloat](*g, begin, end, scratch); });
}

}  // namespace liteseg::cpu
