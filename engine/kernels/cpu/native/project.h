// Whole blocks of outputs: the product of every tile, and what becomes of it.
#pragma once
#include "kernels.h"
#include "product.h"
#include "rows.h"

namespace genserve::ISA {

// BLOCK outputs of every row, into y.
void product(const Linear& linear, int block, const Tiles& tiles, const float* x, const Target& target) {
  const Matrix& w = linear.weight;
  const int column = block * BLOCK, size = w.rows - column < BLOCK ? w.rows - column : BLOCK;
  alignas(64) float sums[MOST_SUMS];
  for (int tile = 0; tile < tiles.count; tile += crowd_of(tiles)) {
    const int last = tile + crowd_of(tiles) < tiles.count ? tile + crowd_of(tiles) : tiles.count;
    multiply_block(linear, block, tiles, x, tile, last, sums);
    const int first_row = tile * tiles.height, rows = last == tiles.count ? tiles.rows : last * tiles.height;
    for (int row = first_row; row < rows; ++row) {
      float* own = sums + static_cast<size_t>(row - first_row) * BLOCK;
      add_bias_and_adapter(own, linear, row, block);
      const size_t at = static_cast<size_t>(row) * target.stride + column;
      for (int i = 0; i < size; i += LANES) {
        const int n = size - i < LANES ? size - i : LANES;
        Vec y = load(own + i);
        if (target.residual != nullptr) y = add(load_first(target.residual + at + i, n), y);
        store_first(target.y + at + i, n, y);
      }
    }
  }
}

// silu(gate) * up of BLOCK outputs of every row, stored as tiles for the product that follows.
void gated_product(
    const Linear& gate, const Linear& up, int block, const Tiles& tiles, const float* x, float* activated) {
  const Matrix& g = gate.weight;
  const int column = block * BLOCK, size = g.rows - column < BLOCK ? g.rows - column : BLOCK;
  alignas(64) float gates[MOST_SUMS], ups[MOST_SUMS];
  for (int tile = 0; tile < tiles.count; tile += crowd_of(tiles)) {
    const int last = tile + crowd_of(tiles) < tiles.count ? tile + crowd_of(tiles) : tiles.count;
    multiply_block(gate, block, tiles, x, tile, last, gates);
    multiply_block(up, block, tiles, x, tile, last, ups);
    const int first_row = tile * tiles.height, rows = last == tiles.count ? tiles.rows : last * tiles.height;
    for (int row = first_row; row < rows; ++row) {
      float *left = gates + (row - first_row) * BLOCK, *right = ups + (row - first_row) * BLOCK;
      add_bias_and_adapter(left, gate, row, block);
      add_bias_and_adapter(right, up, row, block);
      for (int i = 0; i < BLOCK; i += LANES) store(left + i, gated(load(left + i), load(right + i)));
      const int width = tiles.width_of(row / tiles.height);
      float* out = tiles.at(activated, row, g.rows) + static_cast<size_t>(column) * width;
      for (int i = 0; i < size; ++i) out[i * width] = left[i];
    }
  }
}

// A row of the matrix as floats: what an embedding looks up.
void embed(const Matrix& w, int row, float* out) {
  alignas(64) float panel[SEGMENT * BLOCK];
  for (int first = 0; first < w.columns; first += SEGMENT) {
    const int last = first + SEGMENT < w.columns ? first + SEGMENT : w.columns;
    widen_weights(w, block_of(w, row / BLOCK), first, last, panel);
    for (int k = first; k < last; ++k) out[k] = panel[(k - first) * BLOCK + row % BLOCK];
  }
}

// dx = dy @ w for the columns of `run`. The roles turn round: columns are lanes, and rows are what is summed over.
void product_back(const Matrix& w, int run, const Tiles& tiles, const float* dy, float* dx) {
  alignas(64) float panel[SEGMENT * BLOCK], turned[BLOCK * BLOCK] = {}, sums[WIDEST * BLOCK];
  const int begin = run * w.run(), end = begin + w.run() < w.columns ? begin + w.run() : w.columns;
  for (int block = 0; block < w.num_blocks(); ++block) {
    const int depth = w.rows - block * BLOCK < BLOCK ? w.rows - block * BLOCK : BLOCK;
    widen_weights(w, block_of(w, block), begin, end, panel);
    for (int first = begin; first < end; first += BLOCK) {
      const int count = end - first < BLOCK ? end - first : BLOCK;
      for (int k = 0; k < count; ++k)
        for (int n = 0; n < BLOCK; ++n) turned[n * BLOCK + k] = panel[(first - begin + k) * BLOCK + n];
      for (int tile = 0; tile < tiles.count; ++tile) {
        const int width = tiles.width_of(tile);
        const float* rows = dy + tiles.begin(tile, w.rows) + static_cast<size_t>(block) * BLOCK * width;
        panel_tile_of(width)(turned, depth, rows, sums, true);
        for (int m = 0; m < tiles.height_of(tile); ++m) {
          float* out = dx + static_cast<size_t>(tile * tiles.height + m) * w.columns + first;
          for (int i = 0; i < count; ++i) out[i] = (block == 0 ? 0.0f : out[i]) + sums[m * BLOCK + i];
        }
      }
    }
  }
}

}  // namespace genserve::ISA
