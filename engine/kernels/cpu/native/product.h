// Products with packed matrices. Activations come as tiles (column, row); outputs are lanes.
//
// An output of a row is one chain of multiply-adds over each SEGMENT of columns, and the segments' sums in order: so a
// row's result does not know its tile. Few rows meet the weights as they are turned to floats, in registers. For many
// rows that work would be done again for each tile: a segment of weights becomes floats in the nearest cache first,
// once for some dozens of rows.
#pragma once
#include "columns.h"
#include "kernels.h"
#include "rows.h"

namespace genserve::ISA {

constexpr int DIRECT_ROWS = REGISTERS == 32 ? 8 : 4;  // rows that are few
constexpr int WIDEST = REGISTERS == 32 ? 12 : 6;      // rows of a tile
constexpr int CROWD = 96;                             // rows for which weights are turned to floats together

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
      each_weight<NV, Pace::MEMORY>(w, block, lane, first, last, [&](const Vec* weights, int k) ALWAYS_INLINE {
        sums.step(weights, columns + k * WIDTH);
      });
      sums.flush(out + lane, first == 0);
    }
}

// Columns [first, last) of a block as floats: panel (columns, BLOCK).
INLINE void widen_weights(const Matrix& w, const uint8_t* block, int first, int last, float* panel) {
  constexpr int NV = 2;
  for (int lane = 0; lane < BLOCK; lane += NV * LANES)
    each_weight<NV, Pace::OWN>(w, block, lane, first, last, [&](const Vec* weights, int k) ALWAYS_INLINE {
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

INLINE const uint8_t* block_of(const Matrix& w, int block) {
  return w.data + static_cast<size_t>(block) * w.block_bytes;
}

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
      if (linear.lora != nullptr) bring_near(*linear.lora, block, step, steps);
      if (linear.ahead != nullptr && last_tile == tiles.count)  // earlier crowds' successors would drive it out again
        bring_near(*linear.ahead, linear.first_block + block, step, steps);
      for (size_t at = bytes * i / n / LINE * LINE; at < bytes * (i + 1) / n; at += LINE)
        prefetch_far(following + at);
      (tile + 1 == tiles.count ? run_last : run)(
          panel, last - first, x + tiles.begin(tile, w.columns) + static_cast<size_t>(first) * width,
          sums + static_cast<size_t>(i) * tiles.height * BLOCK, first == 0);
    }
  }
}

}  // namespace genserve::ISA
