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

// A cached vector of one head.
template <Format FORMAT, int SIZE>
struct CachedVector {
  const typename Element<FORMAT>::Type* data;
  float scale;
  HeadSize<SIZE> size;

  ALWAYS_INLINE Vec at(int i) const {
    Vec x;
    if (SIZE || i + LANES <= size) {
      x = load(data + i);
    } else {
      typename Element<FORMAT>::Type some[LANES] = {};
      __builtin_memcpy(some, data + i, (size - i) * sizeof some[0]);
      x = load(some);
    }
    if constexpr (FORMAT == Format::int8) x = mul(x, broadcast(scale));
    return x;
  }
};

// The vectors of some heads, by slot. Who works on a key asks for the same head's vector of a later one. (Asking for
// those of all heads at once was slower, and so was copying some keys near first, in the cache's own order.)
template <Format FORMAT, int SIZE>
struct Cached {
  const typename Element<FORMAT>::Type* data;
  const float* scales;
  const int32_t* slots;
  int heads, head;
  HeadSize<SIZE> size;

  ALWAYS_INLINE size_t index(int key, int h) const { return static_cast<size_t>(slots[key]) * heads + head + h; }
  ALWAYS_INLINE void ask(int key, int h) const {
    const auto* p = reinterpret_cast<const char*>(data + index(key, h) * size);
    for (size_t i = 0; i < size * sizeof *data; i += LINE) prefetch(p + i);
  }
  ALWAYS_INLINE CachedVector<FORMAT, SIZE> operator()(int key, int h) const {
    const size_t at = index(key, h);
    return {data + at * size, FORMAT == Format::int8 ? scales[at] : 1.0f, size};
  }
};
// One head's as floats, side by side.
template <int SIZE>
struct Widened {
  const float* data;
  HeadSize<SIZE> size;
  ALWAYS_INLINE void ask(int, int) const {}
  ALWAYS_INLINE CachedVector<Format::float32, SIZE> operator()(int key, int) const {
    return {data + static_cast<size_t>(key) * size, 1.0f, size};
  }
};

}  // namespace genserve::ISA
