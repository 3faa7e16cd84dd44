// The functions that read one layer of a program each and add its maps and stages: layers/<layer>.cpp.
#pragma once

#include <optional>

#include "engine/plan/builder.h"
#include "engine/plan/program.h"

namespace liteseg::cpu {

#define LITESEG_DECLARE_PLAN_LAYER(number, layer, bf16) void plan_##layer(Builder& b);
#define LITESEG_DECLARE_GRAPH_LAYER(number, layer, bf16) void graph_##layer(Builder& b);
LITESEG_PLAN_LAYERS(LITESEG_DECLARE_PLAN_LAYER)
LITESEG_GRAPH_LAYERS(LITESEG_DECLARE_GRAPH_LAYER)

// in place where `from` is `to`
void activate_stage(Builder& b, size_t from, size_t to, int activation, float slope);

// The map `from` resized to h x w, bilinear; where there is one, with the map `behind` following along the channels.
size_t add_resized(Builder& b, size_t from, std::optional<size_t> behind, int64_t h, int64_t w, bool align_corners);

}  // namespace liteseg::cpu
