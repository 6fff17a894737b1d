// Products with packed matrices. Activations come as tiles (column, row); outputs are lanes.
//
// An output of a row is one chain of multiply-adds over each SEGMENT of columns, and the segments' sums in order: so a
// row's result does not know its tile. Few rows meet the weights as they are turned to floats, in registers. For many
// rows that work would be done again for each tile: a segment of weights becomes floats in the nearest cache first,
// once for some dozens of rows.
#pragma once
#include "kernels.h"
#include "rows.h"

namespace genserve::ISA {

constexpr int DIRECT_ROWS = REGISTERS == 32 ? 8 : 4;  // rows that are few
constexpr int WIDEST = REGISTERS == 32 ? 12 : 6;      // rows of a tile
constexpr int CROWD = 96;                             // rows for which weights are turned to floats together

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
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v)
#pragma GCC unroll 12
      for (int m = 0; m < WIDTH; ++m) at[v][m] = zero();
  }
  ALWAYS_INLINE void step(const Vec* w, const float* x) {
#pragma GCC unroll 12
    for (int m = 0; m < WIDTH; ++m) {
      Vec each = broadcast(x[m]);
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) at[v][m] = fma(w[v], each, at[v][m]);
    }
  }
  ALWAYS_INLINE void flush(float* out, bool is_first) const {  // out (WIDTH, BLOCK)
#pragma GCC unroll 12
    for (int m = 0; m < WIDTH; ++m)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) {
        float* p = out + m * BLOCK + v * LANES;
        store(p, is_first ? at[v][m] : add(load(p), at[v][m]));
      }
  }
};

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
  return static_cast<size_t>(first / w.group) * 2 * scale_bytes(w.scales) + static_cast<size_t>(first) * w.bits * BLOCK / 8;
}

// Calls step(w, k) for each of a block's columns [first, last), k counted from `first`, w being NV vectors of weights
// of outputs from `lane` on.
template <int BITS, int NV, class Step>
INLINE void each_quantized(const Matrix& w, const uint8_t* block, int lane, int first, int last, const Step& step) {
  const int lane_bytes = lane * (BITS == 8 ? 1 : 4);
  const uint8_t* p = block + offset_of(w, first);
  for (int k = first; k < last; k += w.group) {
    const Scales<low_width(BITS), NV> scales(p, lane, w.scales);
    p += 2 * scale_bytes(w.scales);
    for (int unit = 0; unit < w.group; unit += UNIT) {
      const int start = k - first + unit;
      each_column<BITS, NV>(
          p + lane_bytes, scales, [&](const Vec* weights, int j) ALWAYS_INLINE { step(weights, start + j); });
      p += BITS * BLOCK * 4;
    }
  }
}
template <Format FORMAT, int NV, class Step>
INLINE void each_float(const uint8_t* block, int lane, int first, int last, const Step& step) {
  for (int k = first; k < last; ++k) {
    Vec weights[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v)
      weights[v] = load_float<FORMAT>(block, static_cast<size_t>(k) * BLOCK + lane + v * LANES);
    step(weights, k - first);
  }
}

// Calls `each<NV>(step)` with the reader of the matrix' columns, whatever its format.
template <int NV, class Step>
INLINE void each_weight(const Matrix& w, const uint8_t* block, int lane, int first, int last, const Step& step) {
  switch (w.format) {
    case Format::float32: return each_float<Format::float32, NV>(block, lane, first, last, step);
    case Format::float16: return each_float<Format::float16, NV>(block, lane, first, last, step);
    case Format::bfloat16: return each_float<Format::bfloat16, NV>(block, lane, first, last, step);
    default: break;
  }
  switch (w.bits) {
    case 2: return each_quantized<2, NV>(w, block, lane, first, last, step);
    case 3: return each_quantized<3, NV>(w, block, lane, first, last, step);
    case 4: return each_quantized<4, NV>(w, block, lane, first, last, step);
    case 5: return each_quantized<5, NV>(w, block, lane, first, last, step);
    case 6: return each_quantized<6, NV>(w, block, lane, first, last, step);
    default: return each_quantized<8, NV>(w, block, lane, first, last, step);
  }
}

// Vectors of outputs kept at once: a row alone needs four chains of additions, so as not to wait for each.
constexpr int direct_vectors(int width) { return width == 1 && BLOCK / LANES >= 4 ? 4 : 2; }

// Few rows, x (columns, WIDTH): out (WIDTH, BLOCK).
template <int WIDTH>
void direct_tile(const Matrix& w, const uint8_t* block, const float* x, float* out) {
  constexpr int NV = direct_vectors(WIDTH);
  for (int lane = 0; lane < BLOCK; lane += NV * LANES)
    for (int first = 0; first < w.columns; first += SEGMENT) {
      const int last = first + SEGMENT < w.columns ? first + SEGMENT : w.columns;
      const float* columns = x + static_cast<size_t>(first) * WIDTH;
      Sums<NV, WIDTH> sums;
      sums.clear();
      each_weight<NV>(w, block, lane, first, last, [&](const Vec* weights, int k) ALWAYS_INLINE {
        sums.step(weights, columns + k * WIDTH);
      });
      sums.flush(out + lane, first == 0);
    }
}

// Columns [first, last) of a block as floats: panel (columns, BLOCK).
INLINE void widen_weights(const Matrix& w, const uint8_t* block, int first, int last, float* panel) {
  constexpr int NV = 2;
  for (int lane = 0; lane < BLOCK; lane += NV * LANES)
    each_weight<NV>(w, block, lane, first, last, [&](const Vec* weights, int k) ALWAYS_INLINE {
#pragma GCC unroll 2
      for (int v = 0; v < NV; ++v) store(panel + k * BLOCK + lane + v * LANES, weights[v]);
    });
}

// One segment of a tile of many: x (columns, WIDTH), out (WIDTH, BLOCK).
template <int WIDTH>
void panel_tile(const float* panel, int columns, const float* x, float* out, bool is_first) {
  for (int lane = 0; lane < BLOCK; lane += 2 * LANES) {
    Sums<2, WIDTH> sums;
    sums.clear();
    for (int k = 0; k < columns; ++k) {
      const Vec weights[2] = {load(panel + k * BLOCK + lane), load(panel + k * BLOCK + lane + LANES)};
      sums.step(weights, x + k * WIDTH);
    }
    sums.flush(out + lane, is_first);
  }
}

using DirectTile = void (*)(const Matrix&, const uint8_t* block, const float* x, float* out);
using PanelTile = void (*)(const float* panel, int columns, const float* x, float* out, bool is_first);

#if GENSERVE_WIDE_TILES
#define GENSERVE_DIRECT_WIDTHS(X) X(1) X(2) X(3) X(4) X(6) X(8)
#define GENSERVE_PANEL_WIDTHS(X) X(1) X(2) X(3) X(4) X(6) X(8) X(10) X(12)
#else
#define GENSERVE_DIRECT_WIDTHS(X) X(1) X(2) X(3) X(4)
#define GENSERVE_PANEL_WIDTHS(X) X(1) X(2) X(3) X(4) X(5) X(6)
#endif

INLINE DirectTile direct_tile_of(int width) {
#define GENSERVE_CASE(W) \
  if (width == W) return direct_tile<W>;
  GENSERVE_DIRECT_WIDTHS(GENSERVE_CASE)
#undef GENSERVE_CASE
  return nullptr;
}
INLINE PanelTile panel_tile_of(int width) {
#define GENSERVE_CASE(W) \
  if (width == W) return panel_tile<W>;
  GENSERVE_PANEL_WIDTHS(GENSERVE_CASE)
#undef GENSERVE_CASE
  return nullptr;
}

INLINE int narrowest_panel(int rows) {
#define GENSERVE_CASE(W) \
  if (rows <= W) return W;
  GENSERVE_PANEL_WIDTHS(GENSERVE_CASE)
#undef GENSERVE_CASE
  return WIDEST;
}

// What a column of a tile costs: below four rows each addition waits for the one before it.
INLINE int cost_of(int width) { return (width < 4 ? 4 : width) + 1; }

// The tiles of some rows: one if they are few, else those that cost the least, the higher ones first.
Tiles cut(int rows) {
  Tiles tiles{rows, 1, rows < 1 ? 1 : rows, 1};
  if (rows <= DIRECT_ROWS) {
#define GENSERVE_CASE(W) \
  if (rows <= W && tiles.last_width < rows) tiles.last_width = W;
    GENSERVE_DIRECT_WIDTHS(GENSERVE_CASE)
#undef GENSERVE_CASE
    return tiles;
  }
  int least = 0;
#define GENSERVE_CASE(W)                                                            \
  if (W >= DIRECT_ROWS) {                                                           \
    const int whole = (rows - 1) / W, last_width = narrowest_panel(rows - whole * W); \
    const int cost = whole * cost_of(W) + cost_of(last_width);                      \
    if (least == 0 || cost <= least) {                                              \
      least = cost;                                                                 \
      tiles = {rows, whole + 1, W, last_width};                                     \
    }                                                                               \
  }
  GENSERVE_PANEL_WIDTHS(GENSERVE_CASE)
#undef GENSERVE_CASE
  return tiles;
}

constexpr int MOST_SUMS = (CROWD + WIDEST) * BLOCK;

// How many tiles are taken together.
INLINE int crowd_of(const Tiles& tiles) { return (CROWD + tiles.height - 1) / tiles.height; }

INLINE const uint8_t* block_of(const Matrix& w, int block) { return w.data + static_cast<size_t>(block) * w.block_bytes; }

// The products of tiles [first_tile, last_tile), a crowd at most, with one block: sums (tiles, width, BLOCK).
INLINE void multiply_block(
    const Linear& linear, int block, const Tiles& tiles, const float* x, int first_tile, int last_tile, float* sums) {
  const Matrix& w = linear.weight;
  if (tiles.rows <= DIRECT_ROWS) return direct_tile_of(tiles.last_width)(w, block_of(w, block), x, sums);
  const PanelTile run = panel_tile_of(tiles.height), run_last = panel_tile_of(tiles.last_width);
  alignas(64) float widened[SEGMENT * BLOCK];
  const int steps = (w.columns + SEGMENT - 1) / SEGMENT * (last_tile - first_tile);
  int step = 0;
  for (int first = 0; first < w.columns; first += SEGMENT) {
    const int last = first + SEGMENT < w.columns ? first + SEGMENT : w.columns;
    const float* panel = widened;
    if (w.format == Format::float32)
      panel = reinterpret_cast<const float*>(block_of(w, block)) + static_cast<size_t>(first) * BLOCK;
    else
      widen_weights(w, block_of(w, block), first, last, widened);
    const uint8_t* following = block_of(w, block) + offset_of(w, last);  // weights, of this block or the next
    const size_t bytes = offset_of(w, SEGMENT);
    for (int tile = first_tile; tile < last_tile; ++tile, ++step) {
      const int width = tiles.width_of(tile), i = tile - first_tile, n = last_tile - first_tile;
      if (linear.next_lora != nullptr) bring_near(*linear.next_lora, w, block, step, steps);
      for (size_t at = bytes * i / n / LINE * LINE; at < bytes * (i + 1) / n; at += LINE)
        prefetch_far(following + at);
      (tile + 1 == tiles.count ? run_last : run)(
          panel, last - first, x + tiles.begin(tile, w.columns) + static_cast<size_t>(first) * width,
          sums + static_cast<size_t>(i) * tiles.height * BLOCK, first == 0);
    }
  }
}

}  // namespace genserve::ISA
