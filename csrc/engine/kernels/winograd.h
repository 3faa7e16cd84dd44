// What the plan hands to the Winograd kernel of the chosen instruction set.
#pragma once

#include "engine/runtime/isa_list.h"
#include "engine/types.h"

namespace liteseg::cpu {

// dense 3x3 convolution of stride 1, by tiles of output x output pixels that need (output + 2)^2 products a channel
struct WinogradArgs {
  const float* x;       // [N, H, W, C]
  const float* weight;  // [panels of Co][(output + 2)^2][C][panel], transformed
  const float* bias;    // [Co], padded with zeros to whole panels
  float* out;           // [N, oh, ow, Co]; pooled [N, oh / 2, ow / 2, Co]
  int64_t n, c, h, w, co;
  int64_t oh, ow;  // even where they are pooled
  int64_t padding, dilation;
  int64_t output;  // 2 or 4
  bool pool;       // 2x2 maxima of stride 2, dilation 1 only
  int activation;
  float slope;  // not negative where there is a pool: maxima are taken before the activation
  // every dilation-th pixel is a convolution of its own: grid_rows x grid_columns of them, each of rows x columns tiles
  int64_t grid_rows, grid_columns, rows, columns;
  int64_t first, count;  // tiles of this pass
  int64_t block;         // tiles that have room in v and m
  float* v;              // [(output + 2)^2][block][C], for the passes alone
  float* m;              // [panels][(output + 2)^2][block][panel]
};

struct WinogradTable {
  int64_t (*v_floats)(const WinogradArgs& args);
  int64_t (*m_floats)(const WinogradArgs& args, int64_t panels);
  // everything at once: blocks [begin, end) of the pass's tiles, v and m in scratch
  int64_t (*run_scratch)(const WinogradArgs& args);
  void (*run)(const WinogradArgs& args, int64_t begin, int64_t end, char* scratch);
  // or three passes, each needs all of the one before: tiles [begin, end) to v,
  int64_t (*pass_scratch)(const WinogradArgs& args);
  void (*transform)(const WinogradArgs& args, int64_t begin, int64_t end, char* scratch);
  // products, items of (output + 2)^2 * panels,
  void (*multiply)(const WinogradArgs& args, int64_t begin, int64_t end);
  // and outputs, items of panels * count
  void (*finish)(const WinogradArgs& args, int64_t begin, int64_t end);
};

}  // namespace liteseg::cpu

LITESEG_TABLE(WinogradTable, winograd_table)
