// What the registered op hands to the kernel of the chosen instruction set.
#pragma once

#include "engine/runtime/isa_list.h"
#include "engine/types.h"

namespace liteseg::cpu {

// Where the values of an output row come from, in the order in which they are stored: `runs` runs (one with channels
// innermost, else one a channel) of `length` values, `pitch` apart in these arrays. value = w0 * row[i0] + w1 * row[i1]
// + shift, with the pixels' weights and the normalisation's factor multiplied beforehand.
struct PreprocessColumns {
  const int32_t* i0;  // into a row of W * C values
  const int32_t* i1;
  const float* w0;
  const float* w1;
  const float* shift;
  int64_t runs, length, pitch;
  bool in_place;  // i0 counts up from 0 and w1 is 0
};

struct PreprocessArgs {
  const uint8_t* image;                        // [N, H, W, C]
  int64_t image_n, image_h, image_w, image_c;  // its strides
  void* out;                                   // [N, C, Ho, Wo] of T
  int64_t out_n, out_h, out_run;               // strides of images, rows and runs; the values of a run are neighbours
  int64_t h, w, c, oh;
  AxisView y;
  PreprocessColumns columns;
};

struct PreprocessTable {
  int64_t (*scratch_bytes)(const PreprocessArgs& args);
  // output rows [begin, end) of the flattened N x Ho
  void (*run[kNumDTypes])(const PreprocessArgs& args, int64_t begin, int64_t end, char* scratch);
};

}  // namespace liteseg::cpu

LITESEG_TABLE(PreprocessTable, preprocess_table)
