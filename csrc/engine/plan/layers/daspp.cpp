#include "engine/kernels/sliced_daspp.h"

#include "engine/plan/layers.h"
#include "engine/runtime/isa.h"

namespace liteseg::cpu {
namespace {

// three passes, each of which needs all of the one before
template <typename Args, typename Table>
void add_stages(Builder& b, const std::shared_ptr<Args>& g, const Table& table, const SlicedDasppArgs& shape,
                int64_t scratch) {
  b.stage(shape.n * shape.groups, scratch,
          [g, &table](int64_t begin, int64_t end, char* memory, bool) { table.sum(*g, begin, end, memory); });
  b.stage(shape.n * (shape.count + 1), scratch,
          [g, &table](int64_t begin, int64_t end, char* memory, bool) { table.reduce(*g, begin, end, memory); });
  b.stage(shape.n * div_up(shape.h * shape.w, shape.tile), scratch,
          [g, &table](int64_t begin, int64_t end, char* memory, bool) { table.project(*g, begin, end, memory); });
}

DasppBranch read_branch(Builder& b, const SlicedDasppArgs& g, int64_t index) {
  Program& code = b.code();
  const int64_t f = g.filters;
  DasppBranch branch{};
  branch.rate = code.word("a rate", 0, 1 << 16);
  const bool projected = code.flag();
  const bool deep = code.flag();
  LITESEG_CHECK(projected || (index == 0 && !deep && g.count > 1), b.op(), "program", "branches with a projection",
                "none");
  branch.activation = code.activation();
  branch.pointwise = b.matrix(f, g.channels);
  branch.bias = b.bias(f);
  if (branch.rate > 0) {
    branch.depthwise = code.weight(9 * g.channels);
  }
  if (projected) {
    branch.project = b.matrix(f, f);
  }
  if (deep) {
    branch.deep_depthwise = code.weight(9 * f);
    branch.deep_pointwise = b.matrix(f, f);
    branch.deep_bias = b.bias(f);
  }
  return branch;
}

}  // namespace

void plan_daspp(Builder& b) {
  Program& code = b.code();
  auto g = std::make_shared<SlicedDasppArgs>();
  const size_t from = b.any_source().id;
  const Map map = b.map(from);
  g->c = code.channels();
  b.check_inner(from, g->c);
  const bool has_last = code.flag();
  g->channels = code.channels();
  LITESEG_CHECK(has_last || g->channels == g->c, b.op(), "program", text(g->c, " channels"), g->channels);
  g->filters = code.channels();
  g->last_activation = code.activation();
  if (has_last) {
    g->last = b.matrix(g->channels, g->c);
    g->last_bias = b.bias(g->channels);
  }
  g->count = code.word("a number of branches", 1, kMaxBranches);
  const int64_t f = g->filters;
  for (int64_t i = 0; i < g->count; ++i) {
    g->branches[i] = read_branch(b, *g, i);
  }
  g->pool = b.matrix(f, g->channels);
  g->pool_bias = b.bias(f);
  g->pool_project = b.matrix(f, f);
  g->project_bias = b.bias(f);
  g->n = map.n;
  g->h = map.h;
  g->w = map.w;
  const int64_t pixels = g->h * g->w;
  // fixed by the channels, not by the threads: the order of the sums must not depend on those
  constexpr int64_t most_groups = 4;
  g->group_channels = round_up(div_up(g->channels, most_groups), 32);
  g->groups = div_up(g->channels, g->group_channels);
  g->tile = std::min(b.balanced(48, g->n, pixels), pixels);
  const auto partial = b.temporary(g->n * g->groups * g->count * pixels * f);
  const auto reduced = b.temporary(g->n * g->count * pixels * f);
  const auto pool_partial = b.temporary(g->n * g->groups * b.panels(f));
  const auto start = b.temporary(g->n * b.panels(f));
  const size_t to = b.add_map(g->n, f, g->h, g->w);
  b.place([&b, g, from, to, partial, reduced, pool_partial, start] {
    g->x = b.at(from);
    g->out = b.at(to);
    g->partial = b.at(partial);
    g->reduced = b.at(reduced);
    g->pool_partial = b.at(pool_partial);
    g->start = b.at(start);
  });
  if (b.bf16_tables() == nullptr) {
    const SlicedDasppTable& table = LITESEG_CHOOSE(sliced_daspp_table);
    return add_stages(b, g, table, *g, table.scratch_bytes(*g));
  }
  auto half = std::make_shared<SlicedDasppBf16Args>();
  b.place([&b, g, half, from, to] { *half = {*g, b.bf16_at(from), b.bf16_at(to)}; });
  const SlicedDasppBf16Table& table = *b.bf16_tables()->daspp;
  add_stages(b, half, table, *g, table.scratch_bytes({*g, nullptr, nullptr}));
}

}  // namespace liteseg::cpu
