// The dense 3x3 convolution of the network's input that the stems of a plan begin with.
#pragma once

#include "engine/blocks/dense_conv.h"
#include "engine/plan/builder.h"

namespace liteseg::cpu {

inline void read_dense_conv(Builder& b, DenseConv* conv, const Builder::Source& from) {
  Program& code = b.code();
  LITESEG_CHECK(from.id == 0, b.op(), "program", "a stem that reads the input", from.id);
  const Map& map = b.map(0);
  conv->c = map.c;
  LITESEG_CHECK(code.channels() == conv->c, b.op(), "x", "the plan's number of channels", conv->c);
  conv->hidden = code.channels();
  conv->stride = code.word("a stride", 1, kMostStemStride);
  conv->activation = code.activation();
  conv->weight = b.matrix(conv->hidden, 9 * conv->c, 3);
  conv->bias = b.bias(conv->hidden);
  conv->h = map.h;
  conv->w = map.w;
  conv->oh = output_size(b.op(), "x", conv->h, 3, conv->stride, 1, 1);
  conv->ow = output_size(b.op(), "x", conv->w, 3, conv->stride, 1, 1);
  conv->xs = from.strides;
}

}  // namespace liteseg::cpu
