// Vectors of the cache, read as floats whatever its format.
#pragma once
#include "kernels.h"

namespace genserve::ISA {

template <Format FORMAT>
struct Element {
  using Type = float;
};
template <>
struct Element<Format::float16> {
  using Type = uint16_t;
};
template <>
struct Element<Format::int8> {
  using Type = int8_t;
};

// How many numbers a head's vector has: known when this is compiled, or (0) only when it runs.
template <int SIZE>
struct HeadSize {
  HeadSize(int) {}
  ALWAYS_INLINE constexpr operator int() const { return SIZE; }
};
template <>
struct HeadSize<0> {
  int value;
  ALWAYS_INLINE operator int() const { return value; }
};

// A cached vector of one head, without its scale.
template <Format FORMAT, int SIZE>
struct CachedVector {
  const typename Element<FORMAT>::Type* data;
  HeadSize<SIZE> size;

  ALWAYS_INLINE Vec at(int i) const {
    if (SIZE || i + LANES <= size) return load(data + i);
    typename Element<FORMAT>::Type some[LANES] = {};
    __builtin_memcpy(some, data + i, (size - i) * sizeof some[0]);
    return load(some);
  }
};

// Asks for vectors one by one in the cache's own order, all heads' of a key before the next key's, in whatever order
// others are worked on meanwhile. The keys' slots are taken to follow each other, as they do in a block; where they do
// not, the wrong ones are asked for, which costs time alone. Who asks holds it in registers: in memory each would wait
// for the one before it.
struct Asking {
  const char* first = nullptr;
  size_t stride = 0;
  int count = 0;
  ALWAYS_INLINE void next(size_t bytes) {
    if (count == 0) return;
    for (size_t i = 0; i < bytes; i += LINE) prefetch(first + i);
    first += stride;
    --count;
  }
};

// The vectors of some heads, by slot. (Copying some keys near first, in the cache's own order, was slower.)
template <Format FORMAT, int SIZE>
struct Cached {
  static constexpr bool IS_SCALED = FORMAT == Format::int8, IS_NEAR = false;
  const typename Element<FORMAT>::Type* data;
  const float* scales;
  const int32_t* slots;
  int heads, head;
  HeadSize<SIZE> size;

  ALWAYS_INLINE size_t index(int key, int h) const { return static_cast<size_t>(slots[key]) * heads + head + h; }
  ALWAYS_INLINE size_t bytes() const { return size * sizeof *data; }
  // For keys [key, end) of `num_heads` heads, which are all or one.
  ALWAYS_INLINE Asking asking(int key, int end, int num_heads) const {
    const auto* first = reinterpret_cast<const char*>(data + index(key, 0) * size);
    return {first, num_heads == heads ? bytes() : bytes() * heads, end > key ? (end - key) * num_heads : 0};
  }
  ALWAYS_INLINE CachedVector<FORMAT, SIZE> operator()(int key, int h) const { return {data + index(key, h) * size, size}; }
  ALWAYS_INLINE float scale(int key, int h) const { return IS_SCALED ? scales[index(key, h)] : 1.0f; }
};

// One head's as floats, side by side, and their scales, which are 1 where a format has none.
template <int SIZE>
struct Widened {
  static constexpr bool IS_SCALED = true, IS_NEAR = true;
  const float *data, *scales;
  HeadSize<SIZE> size;
  ALWAYS_INLINE size_t bytes() const { return 0; }
  ALWAYS_INLINE Asking asking(int, int, int) const { return {}; }
  ALWAYS_INLINE CachedVector<Format::float32, SIZE> operator()(int key, int) const {
    return {data + static_cast<size_t>(key) * size, size};
  }
  ALWAYS_INLINE float scale(int key, int) const { return scales[key]; }
};

// The scales of one head's vectors [first, last). Single floats do not become a vector before they have left the core,
// so all heads' are found before one's are read.
template <class Vectors>
INLINE void find_scales(const Vectors& vectors, int head, int first, int last, float* out) {
  for (int key = first; key < last; ++key) *out++ = vectors.scale(key, head);
}
template <class Vectors>
INLINE Vec scaled(Vec numbers, const float* scales) {
  if constexpr (Vectors::IS_SCALED) return mul(numbers, load(scales));
  return numbers;
}

}  // namespace genserve::ISA
