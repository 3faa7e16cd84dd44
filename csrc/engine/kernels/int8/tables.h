// What the int8 layers of a plan hand to their kernels. Maps between them are [N, H, W] of pixels of byte_pixel(C)
// uint8, which stand for (value - zero point) * scale; what lies behind the last channel is never used. Hidden maps have
// the zero point 0. Weights of products are words of four int8 (gemm_int8.h, depthwise_int8.h), biases int32, both in
// the place of floats. Scales are finite and so small that no scaled sum reaches 2^31.
#pragma once

#include "engine/kernels/decoder.h"
#include "engine/kernels/sliced_daspp.h"
#include "engine/runtime/isa_list.h"
#include "engine/types.h"

namespace liteseg::cpu {

// bytes of a stored pixel: whole vectors of any instruction set
constexpr int64_t kBytePixel = 64;

// how bytes stand for numbers: (byte - zero) * scale
struct ByteGrid {
  float scale;
  int32_t zero;
};

struct Int8InvertedResidualArgs {
  const uint8_t* x;        // [N, H, W, padded C]
  const uint32_t* expand;  // panels of [hidden, C]
  const uint32_t* expand_bias;
  const float* expand_scale;
  const uint32_t* depthwise;  // as ByteRow has them, and what follows likewise
  const uint32_t* depthwise_bias;
  const float* depthwise_scale;
  const uint32_t* project;  // panels of [Co, hidden]
  const uint32_t* project_bias;
  const float* project_scale;
  uint8_t* out;  // [N, Ho, Wo, padded Co]
  int64_t n, c, h, w, hidden, co, oh, ow;
  int64_t stride, dilation;  // padding as the dilation
  int32_t in_zero, out_zero;
  bool residual;         // adds x, which then has the output's shape
  float residual_scale;  // of x in steps of the output; 16 significant bits
  int64_t tile;          // output pixels of one image worked on at a time
};

struct Int8InvertedResidualTable {
  int64_t (*scratch_bytes)(const Int8InvertedResidualArgs& args);
  // tiles [begin, end); each image has ceil(Ho * Wo / tile) of them. Unless `fresh`, `scratch` is as the same thread's
  // last call with these arguments left it, and the rows it still holds are used again
  void (*run)(const Int8InvertedResidualArgs& args, int64_t begin, int64_t end, char* scratch, bool fresh);
};

struct Int8PointwiseArgs {
  const uint8_t* x;        // [pixels][padded C]
  const uint32_t* weight;  // panels of [Co, C]
  const uint32_t* bias;
  const float* scale;
  uint8_t* out;  // [pixels][padded Co], zero point 0
  int64_t pixels, c, co;
  int64_t tile;  // pixels worked on at a time
};

struct Int8PointwiseTable {
  // tiles [begin, end) of ceil(pixels / tile)
  void (*run)(const Int8PointwiseArgs& args, int64_t begin, int64_t end);
};

// one branch of the pyramid up to the sums over its input channels
struct Int8DasppBranch {
  const uint32_t* depthwise;  // as ByteRow has them; unused where the branch's rate is 0
  const uint32_t* depthwise_bias;
  const float* depthwise_scale;
  const uint32_t* pointwise;  // panels of [F, C]
  const uint32_t* bias;
  const float* scale;  // of the sums, in float
};

struct Int8DasppArgs {
  SlicedDasppArgs sums;  // sizes, rates, `pool` and the partial sums; the groups are of whole vectors of bytes
  const uint8_t* x;      // [N, H, W, padded C], zero point 0
  float scale;           // of x
  Int8DasppBranch branches[kMaxBranches];
};

struct Int8DasppTable {
  int64_t (*scratch_bytes)(const Int8DasppArgs& args);
  // as SlicedDasppTable's, which does the rest
  void (*sum)(const Int8DasppArgs& args, int64_t begin, int64_t end, char* scratch);
};

struct Int8DecoderArgs {
  DecoderArgs sums;     // but for skip, the weights of the second convolution and out; x is float
  const uint8_t* skip;  // [N, oh, ow, padded c2]
  ByteGrid skip_grid;
  float middle_scale;         // of the first convolution's output, zero point 0
  const uint32_t* depthwise;  // as ByteRow has them, and what follows likewise
  const uint32_t* depthwise_bias;
  const float* depthwise_scale;
  const uint32_t* pointwise;  // panels of [f2, f1]; what it gives has the zero point 0, and its scale is part of
  const uint32_t* bias;       // the classifier's weights
  const float* scale;
  // one of the two: float at the strides sums.os, or bf16 likewise
  float* scores;
  bf16* logits;
};

struct Int8DecoderTable {
  int64_t (*scratch_bytes)(const Int8DecoderArgs& args);
  // as DecoderTable
  void (*lift)(const Int8DecoderArgs& args, int64_t begin, int64_t end);
  void (*run)(const Int8DecoderArgs& args, int64_t begin, int64_t end, char* scratch, bool fresh);
};

struct ConvertArgs {
  const void* from;
  void* to;
  int64_t c;
  int64_t from_pixel, to_pixel;  // elements from one pixel to the next
  ByteGrid grid;
  bool half;  // whether the numbers are bf16, else float
};

struct ConvertTable {
  // pixels [begin, end) to bytes: value / scale to the nearest, ties to even, at most 255 steps; NaN is the least
  void (*quantise)(const ConvertArgs& args, int64_t begin, int64_t end);
  // and back
  void (*dequantise)(const ConvertArgs& args, int64_t begin, int64_t end);
};

}  // namespace liteseg::cpu

// Beside the sets that every kernel is compiled for there is one with products of bytes.
#if defined(__x86_64__)
#define LITESEG_BYTES_TABLE(Type, table) \
  LITESEG_TABLE(Type, table)             \
  LITESEG_DECLARE_TABLE(avx512vnni, , Type, table)
#define LITESEG_CHOOSE_BYTES(table) \
  (::liteseg::cpu::has_byte_products() ? ::liteseg::avx512vnni::table : LITESEG_CHOOSE(table))
#else
#define LITESEG_BYTES_TABLE(Type, table) LITESEG_TABLE(Type, table)
#define LITESEG_CHOOSE_BYTES(table) LITESEG_CHOOSE(table)
#endif

LITESEG_BYTES_TABLE(Int8InvertedResidualTable, int8_inverted_residual_table)
LITESEG_BYTES_TABLE(Int8PointwiseTable, int8_pointwise_table)
LITESEG_BYTES_TABLE(Int8DasppTable, int8_daspp_table)
LITESEG_BYTES_TABLE(Int8DecoderTable, int8_decoder_table)
LITESEG_BYTES_TABLE(ConvertTable, convert_table)
