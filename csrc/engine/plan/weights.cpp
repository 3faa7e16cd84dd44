#include "engine/plan/weights.h"

#include <vector>

#include "engine/blocks/grouped_pointwise.h"
#include "engine/geometry.h"
#include "engine/kernels/int8/tables.h"
#include "engine/simd/base.h"

namespace liteseg::cpu {
namespace {

constexpr int64_t kMostDim = int64_t{1} << 20;
constexpr int64_t kMostFloats = int64_t{1} << 40;

// a word of two bf16, the first in the lower half, in the place of a float
float word(float low, float high) {
  bf16 halves[2];
  scalar::narrow(low, &halves[0]);
  scalar::narrow(high, &halves[1]);
  return scalar::from_bits(static_cast<uint32_t>(halves[1].bits) << 16 | halves[0].bits);
}

// plain [columns][rows] -> [columns / panel][rows][panel]
void pack_matrix(const float* plain, int64_t columns, int64_t rows, int64_t panel, float* out) {
  for (int64_t n = 0; n < columns; ++n) {
    float* column = out + n / panel * panel * rows + n % panel;
    for (int64_t k = 0; k < rows; ++k) {
      column[k * panel] = plain[n * rows + k];
    }
  }
}

// the same with words of two neighbouring rows; each stretch of rows starts in a word of its own
void pack_words(const float* plain, int64_t columns, int64_t stretches, int64_t length, int64_t panel, float* out) {
  const int64_t words = div_up(length, 2);
  for (int64_t n = 0; n < columns; ++n) {
    float* column = out + n / panel * panel * stretches * words + n % panel;
    for (int64_t s = 0; s < stretches; ++s) {
      const float* rows = plain + (n * stretches + s) * length;
      for (int64_t k = 0; k < words; ++k) {
        column[(s * words + k) * panel] = word(rows[2 * k], 2 * k + 1 < length ? rows[2 * k + 1] : 0.0f);
      }
    }
  }
}

// Winograd's points besides the one at infinity, by the side of a tile of outputs; the kernels have the same ones. 3/4
// and 3/2 halve the error of the usual 1 and 2.
constexpr double kPoints2[] = {0.0, 1.0, -1.0};
constexpr double kPoints4[] = {0.0, 0.75, -0.75, 1.5, -1.5};

// [output + 2][3]: the values of a filter, as a polynomial, at the points, and its last coefficient
std::vector<double> winograd_transform(int64_t output) {
  const double* points = output == 2 ? kPoints2 : kPoints4;
  std::vector<double> rows;
  for (int64_t i = 0; i <= output; ++i) {
    double scale = 1.0;
    for (int64_t j = 0; j <= output; ++j) {
      scale *= j == i ? 1.0 : points[i] - points[j];
    }
    rows.insert(rows.end(), {1.0 / scale, points[i] / scale, points[i] * points[i] / scale});
  }
  rows.insert(rows.end(), {0.0, 0.0, 1.0});
  return rows;
}

// plain [columns][9][c] -> [columns / panel][(output + 2)^2][c][panel]
void pack_winograd(const float* plain, int64_t columns, int64_t c, int64_t output, int64_t panel, float* out) {
  const int64_t side = output + 2;
  const std::vector<double> transform = winograd_transform(output);
  for (int64_t n = 0; n < columns; ++n) {
    float* column = out + n / panel * panel * side * side * c + n % panel;
    for (int64_t k = 0; k < c; ++k) {
      const float* filter = plain + n * 9 * c + k;
      double rows[6][3];
      for (int64_t i = 0; i < side; ++i) {
        const double* t = transform.data() + 3 * i;
        for (int64_t x = 0; x < 3; ++x) {
          rows[i][x] = t[0] * filter[x * c] + t[1] * filter[(3 + x) * c] + t[2] * filter[(6 + x) * c];
        }
      }
      for (int64_t i = 0; i < side; ++i) {
        for (int64_t j = 0; j < side; ++j) {
          const double* t = transform.data() + 3 * j;
          const double value = t[0] * rows[i][0] + t[1] * rows[i][1] + t[2] * rows[i][2];
          column[((i * side + j) * c + k) * panel] = static_cast<float>(value);
        }
      }
    }
  }
}

// plain [groups][columns][rows] -> for each group panels of kGroupedVectors vectors and what is left, [rows][panel]
void pack_grouped(const float* plain, int64_t groups, int64_t columns, int64_t rows, int64_t vector, float* out) {
  const int64_t padded = round_up(columns, vector);
  for (int64_t g = 0; g < groups; ++g) {
    for (int64_t n = 0; n < columns; ++n) {
      const int64_t first = n - n % (kGroupedVectors * vector);
      const int64_t panel = std::min(kGroupedVectors * vector, padded - first);
      float* column = out + (g * padded + first) * rows + n - first;
      for (int64_t k = 0; k < rows; ++k) {
        column[k * panel] = plain[(g * columns + n) * rows + k];
      }
    }
  }
}

// plain [c][taps] -> [taps][room]
void pack_depthwise(const float* plain, int64_t c, int64_t taps, int64_t room, float* out) {
  for (int64_t i = 0; i < c; ++i) {
    for (int64_t t = 0; t < taps; ++t) {
      out[t * room + i] = plain[i * taps + t];
    }
  }
}

constexpr int64_t kTapSets = 8;

// plain [c][9] -> sets of pair rows [kTapSets][3 columns][c up to whole vectors] of words: the taps that the even and
// the odd row of a pair meet, in the order of TapSet in blocks/pairs.h
void pack_pairs(const float* plain, int64_t c, float* out) {
  // rows of the filter; the fourth is zero: no tap
  constexpr int64_t even_and_odd[kTapSets][2] = {{3, 0}, {1, 2}, {0, 1}, {2, 3}, {0, 3}, {1, 3}, {3, 1}, {3, 2}};
  const int64_t room = round_up(c, kWidestVector);
  for (int64_t set = 0; set < kTapSets; ++set) {
    for (int64_t x = 0; x < 3; ++x) {
      for (int64_t i = 0; i < c; ++i) {
        const auto tap = [&](int64_t row) { return row == 3 ? 0.0f : plain[i * 9 + row * 3 + x]; };
        out[(set * 3 + x) * room + i] = word(tap(even_and_odd[set][0]), tap(even_and_odd[set][1]));
      }
    }
  }
}

// what a file holds may be any number
int32_t whole(float value, float most) {
  return value >= -most && value <= most ? static_cast<int32_t>(value) : 0;
}

float word(const int8_t (&bytes)[4]) {
  float packed;
  static_assert(sizeof(packed) == sizeof(bytes));
  std::memcpy(&packed, bytes, sizeof(packed));
  return packed;
}

float integer(float value) {
  return scalar::from_bits(static_cast<uint32_t>(whole(value, 1 << 24)));
}

constexpr float kMostWeight = 127.0f;

// plain [columns][rows] -> [columns / panel][words of four rows][panel]
void pack_bytes(const float* plain, int64_t columns, int64_t rows, int64_t panel, float* out) {
  const int64_t words = div_up(rows, 4);
  for (int64_t n = 0; n < columns; ++n) {
    float* column = out + n / panel * panel * words + n % panel;
    for (int64_t k = 0; k < words; ++k) {
      int8_t bytes[4] = {};
      for (int64_t i = 0; i < std::min<int64_t>(4, rows - 4 * k); ++i) {
        bytes[i] = static_cast<int8_t>(whole(plain[n * rows + 4 * k + i], kMostWeight));
      }
      column[k * panel] = word(bytes);
    }
  }
}

// place of a channel in the order of `columns` in simd/bytes.h, for vectors of `vector` floats
int64_t lane_of(int64_t channel, int64_t vector) {
  const int64_t group = channel / (4 * vector) * (4 * vector);
  const int64_t quarter = (channel - group) / 16;
  const int64_t inside = channel % 16;
  return group + inside / 4 * vector + quarter * 4 + inside % 4;
}

// plain [c][9] -> [3 columns][lanes] of words (w0, w1, w2, 0) of a column
void pack_byte_depthwise(const float* plain, int64_t c, int64_t vector, float* out) {
  const int64_t room = round_up(c, kBytePixel);
  for (int64_t x = 0; x < 3; ++x) {
    for (int64_t i = 0; i < c; ++i) {
      const auto tap = [&](int64_t y) { return static_cast<int8_t>(whole(plain[i * 9 + y * 3 + x], kMostWeight)); };
      const int8_t bytes[4] = {tap(0), tap(1), tap(2), 0};
      out[x * room + lane_of(i, vector)] = word(bytes);
    }
  }
}

}  // namespace

Weight checked_weight(const char* op, int64_t kind, const int64_t* dims) {
  switch (kind) {
#define LITESEG_KNOWN_KIND(number, name) case number:
    LITESEG_WEIGHT_KINDS(LITESEG_KNOWN_KIND)
#undef LITESEG_KNOWN_KIND
    break;
    default:
      LITESEG_CHECK(false, op, "weight", "a known kind", kind);
  }
  Weight weight{static_cast<WeightKind>(kind), {1, 1, 1}};
  // what no packing goes beyond: columns up to a panel, taps of Winograd, sets of taps
  int64_t floats = 1 << 6;
  for (int i = 0; i < kWeightDims; ++i) {
    LITESEG_CHECK(dims[i] >= 0 && dims[i] <= kMostDim, op, "weight", text("dims of 0 to ", kMostDim), dims[i]);
    weight.dims[i] = dims[i];
    floats *= round_up(dims[i], i == 0 ? 4 * kWidestVector : 1);
    LITESEG_CHECK(floats <= kMostFloats, op, "weight", "fewer values", "too many");
  }
  if (weight.kind == WeightKind::winograd) {
    LITESEG_CHECK(dims[2] == 2 || dims[2] == 4, op, "weight", "tiles of 2 or 4 outputs", dims[2]);
  }
  if (weight.kind == WeightKind::depthwise) {
    LITESEG_CHECK(dims[2] == dims[0] || dims[2] == round_up(dims[0], kWidestVector), op, "weight",
                  "room for its channels or for whole vectors of them", dims[2]);
  }
  return weight;
}

int64_t plain_floats(const Weight& weight) {
  const int64_t* d = weight.dims;
  switch (weight.kind) {
    case WeightKind::winograd:
      return 9 * d[0] * d[1];
    case WeightKind::depthwise:
      return d[0] * d[1];
    case WeightKind::inner_depthwise:
    case WeightKind::byte_depthwise:
      return 9 * d[0];
    default:
      return d[0] * d[1] * d[2];
  }
}

int64_t packed_floats(const Weight& weight, int64_t panel, bool bf16) {
  const int64_t* d = weight.dims;
  const auto floats = [&] {
    switch (weight.kind) {
      case WeightKind::vector:
      case WeightKind::integers:
        return round_up(d[0], panel);
      case WeightKind::float_matrix:
        return round_up(d[0], panel) * d[1];
      case WeightKind::byte_matrix:
        return round_up(d[0], panel) * div_up(d[1], 4);
      case WeightKind::byte_depthwise:
        return 3 * round_up(d[0], kBytePixel);
      case WeightKind::lane_integers:
      case WeightKind::lane_vector:
        return round_up(d[0], kBytePixel);
      case WeightKind::matrix:
        return round_up(d[0], panel) * d[1] * (bf16 ? div_up(d[2], 2) : d[2]);
      case WeightKind::winograd:
        return round_up(d[0], panel) * (d[2] + 2) * (d[2] + 2) * d[1];
      case WeightKind::grouped_matrix:
      case WeightKind::grouped_vector:
        return d[0] * round_up(d[1], panel / 2) * d[2];
      case WeightKind::depthwise:
        return d[1] * d[2];
      case WeightKind::inner_depthwise:
        return bf16 ? kTapSets * 3 * round_up(d[0], kWidestVector) : 9 * d[0];
    }
    return int64_t{0};
  };
  return round_up(floats(), kWidestVector);
}

void pack_weight(const Weight& weight, const float* plain, int64_t panel, bool bf16, float* out) {
  const int64_t* d = weight.dims;
  std::fill_n(out, packed_floats(weight, panel, bf16), 0.0f);
  switch (weight.kind) {
    case WeightKind::vector:
      std::copy_n(plain, d[0], out);
      break;
    case WeightKind::integers:
      std::transform(plain, plain + d[0], out, integer);
      break;
    case WeightKind::float_matrix:
      pack_matrix(plain, d[0], d[1], panel, out);
      break;
    case WeightKind::byte_matrix:
      pack_bytes(plain, d[0], d[1], panel, out);
      break;
    case WeightKind::byte_depthwise:
      pack_byte_depthwise(plain, d[0], panel / 2, out);
      break;
    case WeightKind::lane_integers:
      for (int64_t i = 0; i < d[0]; ++i) {
        out[lane_of(i, panel / 2)] = integer(plain[i]);
      }
      break;
    case WeightKind::lane_vector:
      for (int64_t i = 0; i < d[0]; ++i) {
        out[lane_of(i, panel / 2)] = plain[i];
      }
      break;
    case WeightKind::matrix:
      if (bf16) {
        pack_words(plain, d[0], d[1], d[2], panel, out);
      } else {
        pack_matrix(plain, d[0], d[1] * d[2], panel, out);
      }
      break;
    case WeightKind::winograd:
      pack_winograd(plain, d[0], d[1], d[2], panel, out);
      break;
    case WeightKind::grouped_matrix:
      pack_grouped(plain, d[0], d[1], d[2], panel / 2, out);
      break;
    case WeightKind::grouped_vector:
      pack_grouped(plain, d[0], d[1], 1, panel / 2, out);
      break;
    case WeightKind::depthwise:
      pack_depthwise(plain, d[0], d[1], d[2], out);
      break;
    case WeightKind::inner_depthwise:
      if (bf16) {
        pack_pairs(plain, d[0], out);
      } else {
        pack_depthwise(plain, d[0], 9, d[0], out);
      }
      break;
  }
}

}  // namespace liteseg::cpu
