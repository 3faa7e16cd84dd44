#include "engine/kernels/upsample_concat.h"
#include "engine/plan/layers.h"
#include "engine/runtime/isa.h"

namespace liteseg::cpu {

size_t add_resized(Builder& b, size_t from, std::optional<size_t> behind, int64_t h, int64_t w, bool align_corners) {
  auto g = std::make_shared<UpsampleConcatArgs>();
  b.map(from).last = b.layer();
  ++b.map(from).reads;
  const Map map = b.map(from);
  const size_t second = behind.value_or(from);
  const Map skip = b.map(second);
  g->oh = h;
  g->ow = w;
  g->c1 = map.c;
  g->c2 = behind ? skip.c : 0;
  g->h = map.h;
  g->w = map.w;
  g->ls = innermost(map.c, map.h, map.w);
  g->ss = innermost(skip.c, skip.h, skip.w);
  const int64_t c = g->c1 + g->c2;
  const size_t to = b.add_map(map.n, c, g->oh, g->ow);
  b.map(to).strides = innermost(c, g->oh, g->ow);
  b.map(to).any_order = true;
  // floats in a bfloat16 plan too
  b.map(to).pixel = c;
  if (b.empty()) {
    return to;
  }
  g->y = b.axis(g->h, g->oh, align_corners);
  g->x = b.axis(g->w, g->ow, align_corners);
  const UpsampleConcatTable& table = LITESEG_CHOOSE(upsample_concat_float_table);
  b.place([&b, g, from, second, to] {
    g->low = b.at(from);
    g->skip = b.at(second);
    g->out = b.at(to);
    g->os = b.map(to).strides;
  });
  g->os = {0, 0, 0, 0};  // the larger scratch is that of planes or that of channels, whatever the order will be
  UpsampleConcatArgs other = *g;
  other.os.c = 1;
  b.stage(map.n * g->oh, std::max(table.scratch_bytes(*g), table.scratch_bytes(other)),
          [g, &table](int64_t begin, int64_t end, char* scratch, bool) { table.run[kFloat](*g, begin, end, scratch); });
  return to;
}

void graph_resize(Builder& b) {
  const size_t from = b.source();
  const int64_t h = b.size_argument();
  const int64_t w = b.size_argument();
  const bool align_corners = b.code().flag();
  std::optional<size_t> behind;
  if (b.code().flag()) {
    behind = b.source();
    const Map& map = b.map(*behind);
    LITESEG_CHECK(map.n == b.map(from).n && map.h == h && map.w == w, b.op(), "inputs",
                  text("a map of ", b.map(from).n, "x", h, "x", w), text(map.n, "x", map.h, "x", map.w));
  }
  add_resized(b, from, behind, h, w, align_corners);
}

}  // namespace liteseg::cpu
