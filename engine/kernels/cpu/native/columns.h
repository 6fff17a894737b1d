// The columns of a packed matrix, one after the other, as floats in registers.
#pragma once
#include "kernels.h"

namespace genserve::ISA {

INLINE Vec load_scale(const uint8_t* p, int lane, Format format) {
  if (format == Format::float16) return load(reinterpret_cast<const uint16_t*>(p) + lane);
  if (format == Format::bfloat16) return load_bfloat(reinterpret_cast<const uint16_t*>(p) + lane);
  return load(reinterpret_cast<const float*>(p) + lane);
}
INLINE int scale_bytes(Format format) { return BLOCK * (format == Format::float32 ? 4 : 2); }

// The same thing, which the compiler does not know to be the same: so its parts are not kept in registers.
template <class T>
INLINE const T& forgotten(const T& thing) {
  const T* p = &thing;
  asm("" : "+r"(p));
  return *p;
}

// The scales and biases of a group, for NV vectors of outputs. Bits are taken where they lie in a word, up to PLACES
// steps above the lowest ones; the scale is as much smaller, a power of two, so the product is the same.
template <int STEP, int NV>
struct Scales {
  Vec scale[PLACES][NV], bias[NV];

  ALWAYS_INLINE Scales(const uint8_t* p, int lane, Format format) {
    for (int v = 0; v < NV; ++v) {
      scale[0][v] = load_scale(p, lane + v * LANES, format);
      bias[v] = load_scale(p + scale_bytes(format), lane + v * LANES, format);
      for (int place = 1; place < PLACES; ++place)
        scale[place][v] = mul(scale[place - 1][v], broadcast(1.0f / (1 << STEP)));
    }
  }
};

constexpr int low_width(int bits) { return bits == 8 ? 8 : bits >= 4 ? 4 : 2; }

// Calls step(w, k) for each of a unit's columns in turn, w being NV vectors of weights.
template <int BITS, int NV, class Step>
INLINE void each_column(const uint8_t* words, const Scales<low_width(BITS), NV>& scales, const Step& step) {
  Vec w[NV];
  if constexpr (BITS == 8) {
    for (int k = 0; k < UNIT; ++k) {
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) w[v] = fma(load(words + k * BLOCK + v * LANES), scales.scale[0][v], scales.bias[v]);
      step(w, k);
    }
  } else {
    constexpr int LOW = low_width(BITS), HIGH = BITS - LOW, RUN = 32 / LOW;
    const uint32_t* low = reinterpret_cast<const uint32_t*>(words);
    const uint32_t* high = low + LOW * BLOCK;  // what is above the low bits
    Words l[NV], h[NV] = {};
    for (int run = 0; run < LOW; ++run) {
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) {
        l[v] = load_words(low + run * BLOCK + v * LANES);
        if constexpr (HIGH > 0) {
          if (run * RUN % (32 / HIGH) == 0) h[v] = load_words(high + run * RUN * HIGH / 32 * BLOCK + v * LANES);
        }
      }
      if constexpr (HIGH > 0) {
#pragma GCC unroll 2
        for (int j = 0; j < RUN; ++j) {
#pragma GCC unroll 4
          for (int v = 0; v < NV; ++v) {
            w[v] = fma(low_bits<LOW, HIGH>(l[v], h[v]), scales.scale[0][v], scales.bias[v]);
            l[v] = shift_right<LOW>(l[v]);
            h[v] = shift_right<HIGH>(h[v]);
          }
          step(w, run * RUN + j);
        }
      } else {
#pragma GCC unroll 2
        for (int j = 0; j < RUN; j += PLACES) {
#pragma GCC unroll 2
          for (int place = 0; place < PLACES; ++place) {
            // A row alone has sums, words and biases in registers, and no room for more.
            const auto& own = NV * 4 >= REGISTERS ? forgotten(scales) : scales;
#pragma GCC unroll 4
            for (int v = 0; v < NV; ++v)
              w[v] = fma(bits_at<LOW>(l[v], place), own.scale[place][v], scales.bias[v]);
            step(w, run * RUN + j + place);
          }
#pragma GCC unroll 4
          for (int v = 0; v < NV; ++v) l[v] = shift_right<LOW * PLACES>(l[v]);
        }
      }
    }
  }
}

template <Format FORMAT>
INLINE Vec load_float(const uint8_t* block, size_t index) {
  if constexpr (FORMAT == Format::float16) return load(reinterpret_cast<const uint16_t*>(block) + index);
  if constexpr (FORMAT == Format::bfloat16) return load_bfloat(reinterpret_cast<const uint16_t*>(block) + index);
  return load(reinterpret_cast<const float*>(block) + index);
}

// Where the columns [first, ...) of a block begin; first is a multiple of the group or of SEGMENT.
INLINE size_t offset_of(const Matrix& w, int first) {
  if (w.format != Format::quantized) return static_cast<size_t>(first) * scale_bytes(w.format);
  const size_t scales = static_cast<size_t>(first / w.group) * 2 * scale_bytes(w.scales);
  return scales + static_cast<size_t>(first) * w.bits * BLOCK / 8;
}

// Whoever does little with a weight reads as fast as memory gives it, and asks for a page more: by itself the machine
// reads ahead to a page's end, and waits there. It asks for every line, scales too: those left out are waited for.
enum class Pace { OWN, MEMORY };
constexpr int BYTES_AHEAD = 4096;
template <Pace PACE>
INLINE void ask_ahead(const uint8_t* weights, int lane, int bytes) {
  if (PACE == Pace::MEMORY && lane == 0)
    for (int at = 0; at < bytes; at += LINE) prefetch(weights + BYTES_AHEAD + at);
}

// Calls step(w, k) for each of a block's columns [first, last), k counted from `first`, w being NV vectors of weights
// of outputs from `lane` on.
template <int BITS, int NV, Pace PACE, class Step>
INLINE void each_quantized(const Matrix& w, const uint8_t* block, int lane, int first, int last, const Step& step) {
  const int lane_bytes = lane * (BITS == 8 ? 1 : 4);
  const uint8_t* p = block + offset_of(w, first);
  for (int k = first; k < last; k += w.group) {
    const Scales<low_width(BITS), NV> scales(p, lane, w.scales);
    ask_ahead<PACE>(p, lane, 2 * scale_bytes(w.scales));
    p += 2 * scale_bytes(w.scales);
    for (int unit = 0; unit < w.group; unit += UNIT) {
      const int start = k - first + unit;
      ask_ahead<PACE>(p, lane, BITS * BLOCK * 4);
      each_column<BITS, NV>(
          p + lane_bytes, scales, [&](const Vec* weights, int j) ALWAYS_INLINE { step(weights, start + j); });
      p += BITS * BLOCK * 4;
    }
  }
}
template <Format FORMAT, int NV, Pace PACE, class Step>
INLINE void each_float(const uint8_t* block, int lane, int first, int last, const Step& step) {
  const int bytes = scale_bytes(FORMAT);  // of a column
  for (int k = first; k < last; ++k) {
    ask_ahead<PACE>(block + static_cast<size_t>(k) * bytes, lane, bytes);
    Vec weights[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v)
      weights[v] = load_float<FORMAT>(block, static_cast<size_t>(k) * BLOCK + lane + v * LANES);
    step(weights, k - first);
  }
}

// Calls `each<NV>(step)` with the reader of the matrix' columns, whatever its format.
template <int NV, Pace PACE, class Step>
INLINE void each_weight(const Matrix& w, const uint8_t* block, int lane, int first, int last, const Step& step) {
  switch (w.format) {
    case Format::float32: return each_float<Format::float32, NV, PACE>(block, lane, first, last, step);
    case Format::float16: return each_float<Format::float16, NV, PACE>(block, lane, first, last, step);
    case Format::bfloat16: return each_float<Format::bfloat16, NV, PACE>(block, lane, first, last, step);
    default: break;
  }
  switch (w.bits) {
    case 2: return each_quantized<2, NV, PACE>(w, block, lane, first, last, step);
    case 3: return each_quantized<3, NV, PACE>(w, block, lane, first, last, step);
    case 4: return each_quantized<4, NV, PACE>(w, block, lane, first, last, step);
    case 5: return each_quantized<5, NV, PACE>(w, block, lane, first, last, step);
    case 6: return each_quantized<6, NV, PACE>(w, block, lane, first, last, step);
    default: return each_quantized<8, NV, PACE>(w, block, lane, first, last, step);
  }
}

}  // namespace genserve::ISA
