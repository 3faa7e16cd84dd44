#include "engine/kernels/stem.h"

#include "engine/plan/layers.h"
#include "engine/plan/layers/dense.h"
#include "engine/runtime/isa.h"

namespace liteseg::cpu {
namespace {

void add_stage(Builder& b, const std::shared_ptr<StemArgs>& g, const Builder::Source& from) {
  const int64_t n = b.map(from.id).n;
  const size_t to = b.add_map(n, g->co, g->conv.oh, g->conv.ow);
  b.place([&b, g, from, to] {
    g->conv.x = b.at(from);
    g->out = b.at(to);
  });
  const StemTable& table = LITESEG_CHOOSE(stem_table);
  b.stage(n * g->conv.oh, table.scratch_bytes(*g), [g, &table](int64_t begin, int64_t end, char* scratch, bool fresh) {
    table.run(*g, begin, end, scratch, fresh);
  });
}

void add_bf16_stage(Builder& b, const StemArgs& f, const Builder::Source& from) {
  auto g = std::make_shared<StemBf16Args>();
  g->xs = f.conv.xs;
  g->conv = f.conv.weight;
  g->conv_bias = f.conv.bias;
  g->depthwise = f.depthwise;
  g->depthwise_bias = f.depthwise_bias;
  g->project = f.project;
  g->project_bias = f.project_bias;
  g->n = b.map(from.id).n;
  g->c = f.conv.c;
  g->h = f.conv.h;
  g->w = f.conv.w;
  g->hidden = f.conv.hidden;
  g->co = f.co;
  g->oh = f.conv.oh;
  g->ow = f.conv.ow;
  g->stride = f.conv.stride;
  g->conv_activation = f.conv.activation;
  g->depthwise_activation = f.depthwise_activation;
  const size_t to = b.add_map(g->n, f.co, f.conv.oh, f.conv.ow);
  b.place([&b, g, from, to] {
    g->x = reinterpret_cast<const bf16*>(b.at(from));
    g->out = b.bf16_at(to);
  });
  const StemBf16Table& table = *b.bf16_tables()->stem;
  b.stage(g->n * g->oh, table.scratch_bytes(*g), [g, &table](int64_t begin, int64_t end, char* scratch, bool fresh) {
    table.run(*g, begin, end, scratch, fresh);
  });
}

}  // namespace

void plan_stem(Builder& b) {
  auto g = std::make_shared<StemArgs>();
  const Builder::Source from = b.any_source();
  read_dense_conv(b, &g->conv, from);
  const int64_t hidden = g->conv.hidden;
  g->co = b.code().channels();
  g->depthwise_activation = b.code().activation();
  g->depthwise = b.inner_depthwise(hidden);
  g->depthwise_bias = b.bias(hidden);
  g->project = b.matrix(g->co, hidden);
  g->project_bias = b.bias(g->co);
  if (b.bf16_tables() != nullptr) {
    return add_bf16_stage(b, *g, from);
  }
  add_stage(b, g, from);
}

void graph_stem(Builder& b) {
  auto g = std::make_shared<StemArgs>();
  const Builder::Source from = b.any_source();
  const Map map = b.map(from.id);
  g->conv.c = b.code().channels();
  b.check_channels(from.id, g->conv.c);
  const int64_t hidden = g->conv.hidden = b.code().channels();
  g->conv.stride = b.code().word("a stride", 1, kMostStemStride);
  const Edges edges = b.edges();
  LITESEG_CHECK(edges.most() <= 1, b.op(), "program", "a stem's padding of at most 1", "more");
  g->conv.less_top = 1 - edges.top;
  g->conv.less_left = 1 - edges.left;
  g->conv.activation = b.code().activation();
  g->co = b.code().channels();
  g->depthwise_activation = b.code().activation();
  g->conv.weight = b.matrix(hidden, 9 * g->conv.c);
  g->conv.bias = b.bias(hidden);
  g->depthwise = b.inner_depthwise(hidden);
  g->depthwise_bias = b.bias(hidden);
  g->project = b.matrix(g->co, hidden);
  g->project_bias = b.bias(g->co);
  g->conv.h = map.h;
  g->conv.w = map.w;
  g->conv.oh = padded_size(b, map.h, 3, g->conv.stride, 1, edges.top + edges.bottom);
  g->conv.ow = padded_size(b, map.w, 3, g->conv.stride, 1, edges.left + edges.right);
  g->conv.xs = from.strides;
  add_stage(b, g, from);
}

}  // namespace liteseg::cpu
