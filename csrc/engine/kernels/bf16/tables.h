// What a bfloat16 plan hands to its kernels. They exist for the sets that multiply bf16: AVX512_BF16 and AMX.
//
// Maps are [N, H, W] of pixels of padded(C) bf16: whole vectors of 16, zeros after the last channel. Weights of
// products and of pair rows are words of two bf16 (gemm_bf16.h, pairs.h), every other weight is float.
#pragma once

#include "engine/kernels/decoder.h"
#include "engine/kernels/sliced_daspp.h"
#include "engine/types.h"

namespace liteseg::cpu {

struct StemBf16Args {
  const bf16* x;  // [N, C, H, W]
  Strides4 xs;
  const float* conv;  // panels of [hidden, 3 rows of 3 * C, made even]
  const float* conv_bias;
  const float* depthwise;  // sets of pair rows
  const float* depthwise_bias;
  const float* project;  // panels of [Co, hidden]
  const float* project_bias;
  bf16* out;  // [N, Ho, Wo, padded(Co)]
  int64_t n, c, h, w, hidden, co, oh, ow;
  int64_t stride;  // of the dense convolution, padding 1
  int conv_activation, depthwise_activation;
};

struct StemBf16Table {
  int64_t (*scratch_bytes)(const StemBf16Args& args);
  // output rows [begin, end) of the flattened N x Ho. Unless `fresh`, `scratch` is what the same thread's last
  // call left there
  void (*run)(const StemBf16Args& args, int64_t begin, int64_t end, char* scratch, bool fresh);
};

struct InvertedResidualBf16Args {
  const bf16* x;        // [N, H, W, padded(C)]
  const float* expand;  // panels of [hidden, C], or null where hidden == C is x itself
  const float* expand_bias;
  const float* depthwise;  // sets of pair rows
  const float* depthwise_bias;
  const float* project;  // panels of [Co, hidden]
  const float* project_bias;
  bf16* out;  // [N, Ho, Wo, padded(Co)]
  // where `whole`, all of the expanded map as pair rows, [N][ceil(H / 2)][pad + W + pad][padded(hidden)] words with
  // pad = min(dilation, W); else every thread keeps the rows it needs
  uint32_t* expanded;
  bool whole;
  int64_t n, c, h, w, hidden, co, oh, ow;
  int64_t stride, dilation;  // padding as the dilation
  int activation;
  bool residual;
  int64_t tile;  // output pixels of one image worked on at a time
};

struct InvertedResidualBf16Table {
  int64_t (*scratch_bytes)(const InvertedResidualBf16Args& args);
  // fills row pairs [begin, end) of `expanded`, of the flattened N x ceil(H / 2), before any call of run
  void (*expand)(const InvertedResidualBf16Args& args, int64_t begin, int64_t end);
  // tiles [begin, end); each image has ceil(Ho * Wo / tile) of them
  void (*run)(const InvertedResidualBf16Args& args, int64_t begin, int64_t end, char* scratch, bool fresh);
};

struct SlicedDasppBf16Args {
  SlicedDasppArgs sums;  // all but x and out; what is summed on the way is float
  const bf16* x;         // [N, H, W, padded(c)]
  bf16* out;             // [N, H, W, padded(F)]
};

struct SlicedDasppBf16Table {
  int64_t (*scratch_bytes)(const SlicedDasppBf16Args& args);
  // as SlicedDasppTable
  void (*sum)(const SlicedDasppBf16Args& args, int64_t begin, int64_t end, char* scratch);
  void (*reduce)(const SlicedDasppBf16Args& args, int64_t begin, int64_t end, char* scratch);
  void (*project)(const SlicedDasppBf16Args& args, int64_t begin, int64_t end, char* scratch);
};

struct DecoderBf16Args {
  DecoderArgs sums;  // all but x, skip and out; the lifted map is float
  const bf16* x;     // [N, h, w, padded(c1)]
  const bf16* skip;  // [N, oh, ow, padded(c2)], unused where c2 == 0
  // one of the two: float [N, oh, ow, k] for labels, or bf16 [N, k, oh, ow] at the strides sums.os
  float* scores;
  bf16* logits;
};

struct DecoderBf16Table {
  int64_t (*scratch_bytes)(const DecoderBf16Args& args);
  // as DecoderTable
  void (*lift)(const DecoderBf16Args& args, int64_t begin, int64_t end);
  void (*run)(const DecoderBf16Args& args, int64_t begin, int64_t end, char* scratch, bool fresh);
};

struct Bf16Tables {
  const StemBf16Table* stem;
  const InvertedResidualBf16Table* inverted_residual;
  const SlicedDasppBf16Table* daspp;
  const DecoderBf16Table* decoder;
};

// null where the instruction set in use has no products of bf16
const Bf16Tables* bf16_tables();

}  // namespace liteseg::cpu

#define LITESEG_BF16_TABLES(name)                                           \
  namespace liteseg::name {                                                 \
  extern const cpu::StemBf16Table stem_bf16_table;                          \
  extern const cpu::InvertedResidualBf16Table inverted_residual_bf16_table; \
  extern const cpu::SlicedDasppBf16Table sliced_daspp_bf16_table;           \
  extern const cpu::DecoderBf16Table decoder_bf16_table;                    \
  }
LITESEG_BF16_TABLES(avx512bf16)
LITESEG_BF16_TABLES(amx)
#undef LITESEG_BF16_TABLES
