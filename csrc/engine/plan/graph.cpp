#include "engine/plan/graph.h"

#include "engine/plan/layers.h"

namespace liteseg::cpu {
namespace {

void read_layer(Builder& b) {
  switch (b.code().word()) {
#define LITESEG_READ_LAYER(number, layer, has_bf16) \
  case number:                                      \
    return graph_##layer(b);
    LITESEG_GRAPH_LAYERS(LITESEG_READ_LAYER)
#undef LITESEG_READ_LAYER
    default:
      LITESEG_CHECK(false, kRunGraph, "program", "a known layer", "another one");
  }
}

void read_result(Builder& b) {
  const size_t map = static_cast<size_t>(b.code().word("a map", 0, b.layer() - 1));
  const int64_t format = b.code().word("a format", kPlanar, kLabels);
  if (format != kLabels) {
    b.add_result(map, Result::kFloats, format == kInnermost);
    return;
  }
  const bool resizes = b.code().flag();
  const int64_t h = resizes ? b.size_argument() : b.map(map).h;
  const int64_t w = resizes ? b.size_argument() : b.map(map).w;
  const bool align_corners = b.code().flag();
  b.add_labels(map, Result::kInt64, h, w, align_corners);
}

}  // namespace

void read_graph(Builder& b) {
  LITESEG_CHECK(b.code().word() == kGraphVersion, kRunGraph, "program", text("version ", kGraphVersion), "another one");
  b.check_panel();
  const int64_t layers = b.code().word("a number of layers", 1, 100000);
  for (int64_t i = 0; i < layers; ++i) {
    read_layer(b);
    LITESEG_CHECK(static_cast<int64_t>(b.map_count()) == i + 1, kRunGraph, "program", "a map a layer",
                  "another number");
    b.next_layer();
  }
  // a map may be several of them
  const int64_t results = b.code().word("a number of results", 1, 100000);
  for (int64_t i = 0; i < results; ++i) {
    read_result(b);
  }
  LITESEG_CHECK(b.code().done(), kRunGraph, "program", "no words after the results", "some");
}

}  // namespace liteseg::cpu
