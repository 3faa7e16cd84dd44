#include "engine/plan/layers.h"

namespace liteseg::cpu {

void graph_input(Builder& b) {
  const auto count = static_cast<int64_t>(b.inputs().size());
  const Input& x = b.inputs()[static_cast<size_t>(b.code().word("an input", 0, count - 1))];
  const int64_t c = b.code().channels();
  LITESEG_CHECK(x.c == c, b.op(), "inputs", text(c, " channels"), x.c);
  Map& map = b.map(b.add_map(x.n, c, x.h, x.w));
  map.stored = false;
  map.input = x.data;
  // dimensions of size 1 have any stride
  map.dense = (c == 1 || x.strides.c == 1) && (x.w == 1 || x.strides.w == c) && (x.h == 1 || x.strides.h == x.w * c) &&
              (x.n == 1 || x.strides.n == x.h * x.w * c);
  map.strides = map.dense ? Strides4{} : x.strides;
}

}  // namespace liteseg::cpu
