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

// A cached vector of one head. IS_WHOLE: its size fills its last vector register.
template <Format FORMAT, bool IS_WHOLE>
struct CachedVector {
  const typename Element<FORMAT>::Type* data;
  float scale;
  int size;

  ALWAYS_INLINE Vec at(int i) const {
    Vec x;
    if (IS_WHOLE || i + LANES <= size) {
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

// The vectors of some heads, by slot. Who works on a key asks for the same head's vector of a later one. (Copying some
// keys near first, in the cache's own order, was slower.)
template <Format FORMAT, bool IS_WHOLE>
struct Cached {
  const typename Element<FORMAT>::Type* data;
  const float* scales;
  const int32_t* slots;
  int heads, head, size;
  int end;  // of the keys

  size_t index(int key, int h) const { return static_cast<size_t>(slots[key]) * heads + head + h; }
  ALWAYS_INLINE void ask(int key, int h) const {
    if (key >= end) return;
    const auto* p = reinterpret_cast<const char*>(data + index(key, h) * size);
    for (size_t i = 0; i < size * sizeof *data; i += LINE) prefetch(p + i);
  }
  ALWAYS_INLINE CachedVector<FORMAT, IS_WHOLE> operator()(int key, int h) const {
    const size_t at = index(key, h);
    return {data + at * size, FORMAT == Format::int8 ? scales[at] : 1.0f, size};
  }
};
// One head's as floats, side by side.
struct Widened {
  const float* data;
  int size;
  ALWAYS_INLINE void ask(int, int) const {}
  ALWAYS_INLINE CachedVector<Format::float32, true> operator()(int key, int) const {
    return {data + static_cast<size_t>(key) * size, 1.0f, size};
  }
};

}  // namespace genserve::ISA
