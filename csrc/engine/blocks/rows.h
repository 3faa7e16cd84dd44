// Rows of pixels with dense channels, read in place or transposed, and the layout of a thread's scratch memory.
#pragma once

#include "engine/blocks/copy.h"
#include "engine/runtime/guard.h"

namespace liteseg::LITESEG_ISA {

// Hands out offsets of a buffer that is allocated once the total is known. Under the address sanitizer each piece has a
// fence in front, which stands from the first `at_offset` of the piece on until the buffer is asked for again.
class ScratchLayout {
 public:
  template <typename Element>
  int64_t take(int64_t count) {
    const int64_t start = bytes_ + cpu::kFenceBytes;
    bytes_ = start + div_up(count * static_cast<int64_t>(sizeof(Element)), kAlignment) * kAlignment;
    return start;
  }
  int64_t bytes() const {
    return bytes_;
  }

 private:
  static constexpr int64_t kAlignment = 64;
  int64_t bytes_ = 0;
};

template <typename Element>
LITESEG_INLINE Element* at_offset(char* scratch, int64_t offset) {
  if (offset > 0) {
    cpu::forbid(scratch + offset - cpu::kFenceBytes, cpu::kFenceBytes);
  }
  return reinterpret_cast<Element*>(scratch + offset);
}

// a map [N, C, H, W] of T
struct Image {
  const void* data;
  cpu::Strides4 strides;
  int64_t c, h, w;

  LITESEG_INLINE bool dense_channels() const {
    return strides.c == 1 || c == 1;
  }
  template <typename T>
  LITESEG_INLINE const T* row(int64_t n, int64_t y) const {
    return static_cast<const T*>(data) + n * strides.n + y * strides.h;
  }
};

// reads rows of an image with dense channels in place
template <typename T>
struct DirectRows {
  using Element = T;
  const Image& image;

  int64_t pixel_stride() const {
    return image.strides.w;
  }
  const T* row(int64_t n, int64_t y) {
    return image.row<T>(n, y);
  }
};

// Transposes rows of any other layout into a ring; a row stays until a later one takes its slot.
template <typename T>
struct RingRows {
  using Element = float;
  const Image& image;
  int64_t slots;
  int64_t* tags;  // [slots], -1 where nothing is held
  float* ring;    // [slots][W][C]

  int64_t pixel_stride() const {
    return image.c;
  }
  const float* row(int64_t n, int64_t y) {
    const int64_t slot = y % slots;
    float* dst = ring + slot * image.w * image.c;
    if (tags[slot] != n * image.h + y) {
      tags[slot] = n * image.h + y;
      transpose_copy(image.row<T>(n, y), image.strides.c, image.strides.w, image.c, image.w, dst, image.c);
    }
    return dst;
  }
};

LITESEG_INLINE void clear_tags(int64_t* tags, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    tags[i] = -1;
  }
}

}  // namespace liteseg::LITESEG_ISA
