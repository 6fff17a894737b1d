// Products with packed matrices. Activations come as tiles (column, row); outputs are lanes.
//
// One multiply-add chain runs over the columns for every output of every row, so a row's result does not know its
// tile. Weights are turned to floats in registers, each once for all rows of a tile.
#pragma once
#include "kernels.h"
#include "rows.h"

namespace genserve::ISA {

constexpr int VECS = BLOCK / LANES;  // vectors in a block
constexpr int MAX_WIDTH = REGISTERS == 32 ? 24 : 10;

// Vectors of outputs a tile keeps at once: as many sums as there are registers.
constexpr int vectors_for(int width) { return width <= (REGISTERS == 32 ? 12 : 4) ? 2 : 1; }

INLINE Vec load_scale(const uint8_t* p, int lane, Format format) {
  if (format == Format::float16) return load(reinterpret_cast<const uint16_t*>(p) + lane);
  if (format == Format::bfloat16) return load_bfloat(reinterpret_cast<const uint16_t*>(p) + lane);
  return load(reinterpret_cast<const float*>(p) + lane);
}
INLINE int scale_bytes(Format format) { return BLOCK * (format == Format::float32 ? 4 : 2); }

// The sums of one tile, (WIDTH, NV vectors), all in registers.
template <int NV, int WIDTH>
struct Sums {
  Vec at[NV][WIDTH];

  ALWAYS_INLINE void clear() {
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v)
#pragma GCC unroll 24
      for (int m = 0; m < WIDTH; ++m) at[v][m] = zero();
  }
  ALWAYS_INLINE void step(const Vec* w, const float* x) {
#pragma GCC unroll 24
    for (int m = 0; m < WIDTH; ++m) {
      Vec each = broadcast(x[m]);
#pragma GCC unroll 2
      for (int v = 0; v < NV; ++v) at[v][m] = fma(w[v], each, at[v][m]);
    }
  }
  ALWAYS_INLINE void flush(float* out, bool is_first) const {  // out (WIDTH, BLOCK)
#pragma GCC unroll 24
    for (int m = 0; m < WIDTH; ++m)
#pragma GCC unroll 2
      for (int v = 0; v < NV; ++v) {
        float* p = out + m * BLOCK + v * LANES;
        store(p, is_first ? at[v][m] : add(load(p), at[v][m]));
      }
  }
};

// Calls step(w, k) for each of a unit's columns in turn, w being NV vectors of weights.
template <int BITS, int NV, class Step>
INLINE void each_column(const uint8_t* words, const Vec* scale, const Vec* bias, const Step& step) {
  Vec w[NV];
  if constexpr (BITS == 8) {
    for (int k = 0; k < UNIT; ++k) {
#pragma GCC unroll 2
      for (int v = 0; v < NV; ++v) w[v] = fma(load(words + k * BLOCK + v * LANES), scale[v], bias[v]);
      step(w, k);
    }
  } else {
    constexpr int LOW = BITS >= 4 ? 4 : 2, HIGH = BITS - LOW, RUN = 32 / LOW;
    const uint32_t* low = reinterpret_cast<const uint32_t*>(words);
    const uint32_t* high = low + LOW * BLOCK;  // what is above the low bits
    Words l[NV], h[NV] = {};
    for (int run = 0; run < LOW; ++run) {
#pragma GCC unroll 2
      for (int v = 0; v < NV; ++v) {
        l[v] = load_words(low + run * BLOCK + v * LANES);
        if constexpr (HIGH > 0) {
          if (run * RUN % (32 / HIGH) == 0) h[v] = load_words(high + run * RUN * HIGH / 32 * BLOCK + v * LANES);
        }
      }
#pragma GCC unroll 2
      for (int j = 0; j < RUN; ++j) {
#pragma GCC unroll 2
        for (int v = 0; v < NV; ++v) {
          if constexpr (HIGH > 0) {
            w[v] = fma(low_bits<LOW, HIGH>(l[v], h[v]), scale[v], bias[v]);
            h[v] = shift_right<HIGH>(h[v]);
          } else {
            w[v] = fma(low_bits<LOW>(l[v]), scale[v], bias[v]);
          }
          l[v] = shift_right<LOW>(l[v]);
        }
        step(w, run * RUN + j);
      }
    }
  }
}

template <int BITS, int WIDTH>
void quantized_tile(const Matrix& w, const uint8_t* block, const float* x, float* out) {
  constexpr int NV = vectors_for(WIDTH);
  const int scales = scale_bytes(w.scales);
  for (int lane = 0; lane < BLOCK; lane += NV * LANES) {
    const uint8_t* p = block;
    const float* column = x;
    const int lane_bytes = lane * (BITS == 8 ? 1 : 4);
    for (int first = 0; first < w.columns; first += SEGMENT) {
      const int last = first + SEGMENT < w.columns ? first + SEGMENT : w.columns;
      Sums<NV, WIDTH> sums;
      sums.clear();
      for (int k = first; k < last; k += w.group) {
        Vec scale[NV], bias[NV];
        for (int v = 0; v < NV; ++v) {
          scale[v] = load_scale(p, lane + v * LANES, w.scales);
          bias[v] = load_scale(p + scales, lane + v * LANES, w.scales);
        }
        p += 2 * scales;
        for (int unit = 0; unit < w.group; unit += UNIT) {
          each_column<BITS, NV>(
              p + lane_bytes, scale, bias,
              [&](const Vec* weights, int j) ALWAYS_INLINE { sums.step(weights, column + j * WIDTH); });
          p += BITS * BLOCK * 4;
          column += UNIT * WIDTH;
        }
      }
      sums.flush(out + lane, first == 0);
    }
  }
}

template <Format FORMAT>
INLINE Vec load_float(const uint8_t* block, size_t index) {
  if constexpr (FORMAT == Format::float16) return load(reinterpret_cast<const uint16_t*>(block) + index);
  if constexpr (FORMAT == Format::bfloat16) return load_bfloat(reinterpret_cast<const uint16_t*>(block) + index);
  return load(reinterpret_cast<const float*>(block) + index);
}

template <Format FORMAT, int WIDTH>
void float_tile(const Matrix& w, const uint8_t* block, const float* x, float* out) {
  constexpr int NV = vectors_for(WIDTH);
  for (int lane = 0; lane < BLOCK; lane += NV * LANES)
    for (int first = 0; first < w.columns; first += SEGMENT) {
      const int last = first + SEGMENT < w.columns ? first + SEGMENT : w.columns;
      Sums<NV, WIDTH> sums;
      sums.clear();
#pragma GCC unroll 2
      for (int k = first; k < last; ++k) {
        Vec weights[NV];
        for (int v = 0; v < NV; ++v)
          weights[v] = load_float<FORMAT>(block, static_cast<size_t>(k) * BLOCK + lane + v * LANES);
        sums.step(weights, x + static_cast<size_t>(k) * WIDTH);
      }
      sums.flush(out + lane, first == 0);
    }
}

using TileFunction = void (*)(const Matrix&, const uint8_t* block, const float* x, float* out);

template <int WIDTH>
TileFunction tile_of_width(const Matrix& w) {
  switch (w.format) {
    case Format::float32: return float_tile<Format::float32, WIDTH>;
    case Format::float16: return float_tile<Format::float16, WIDTH>;
    case Format::bfloat16: return float_tile<Format::bfloat16, WIDTH>;
    default: break;
  }
  switch (w.bits) {
    case 2: return quantized_tile<2, WIDTH>;
    case 3: return quantized_tile<3, WIDTH>;
    case 4: return quantized_tile<4, WIDTH>;
    case 5: return quantized_tile<5, WIDTH>;
    case 6: return quantized_tile<6, WIDTH>;
    default: return quantized_tile<8, WIDTH>;
  }
}

#if GENSERVE_WIDE_TILES
#define GENSERVE_WIDTHS(X) X(1) X(2) X(3) X(4) X(6) X(8) X(10) X(12) X(16) X(20) X(24)
#else
#define GENSERVE_WIDTHS(X) X(1) X(2) X(3) X(4) X(6) X(8) X(10)
#endif

INLINE TileFunction tile_function(const Matrix& w, int width) {
#define GENSERVE_CASE(W) \
  if (width == W) return tile_of_width<W>(w);
  GENSERVE_WIDTHS(GENSERVE_CASE)
#undef GENSERVE_CASE
  return nullptr;
}

// The narrowest tile that holds some rows.
int width(int rows) {
#define GENSERVE_CASE(W) \
  if (rows <= W) return W;
  GENSERVE_WIDTHS(GENSERVE_CASE)
#undef GENSERVE_CASE
  return MAX_WIDTH;
}

}  // namespace genserve::ISA
