#include "engine/kernels/stem_pool.h"

#include "engine/plan/layers.h"
#include "engine/plan/layers/dense.h"
#include "engine/runtime/isa.h"

namespace liteseg::cpu {

void plan_stem_pool(Builder& b) {
  auto g = std::make_shared<StemPoolArgs>();
  const Builder::Source from = b.any_source();
  read_dense_conv(b, &g->conv, from);
  g->oh = output_size(b.op(), "x", g->conv.oh, 3, 2, 1, 1);
  g->ow = output_size(b.op(), "x", g->conv.ow, 3, 2, 1, 1);
  const int64_t n = b.map(from.id).n;
  const size_t to = b.add_map(n, g->conv.hidden, g->oh, g->ow);
  b.place([&b, g, from, to] {
    g->conv.x = b.at(from);
    g->out = b.at(to);
  });
  const StemPoolTable& table = LITESEG_CHOOSE(stem_pool_table);
  b.stage(n * g->oh, table.scratch_bytes(*g), [g, &table](int64_t begin, int64_t end, char* scratch, bool fresh) {
    table.run(*g, begin, end, scratch, fresh);
  });
}

}  // namespace liteseg::cpu
