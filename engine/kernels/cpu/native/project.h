// Whole blocks of outputs: the product of every tile, and what becomes of it.
#pragma once
#include "kernels.h"
#include "product.h"
#include "rows.h"

namespace genserve::ISA {

INLINE const uint8_t* block_of(const Matrix& w, int block) { return w.data + static_cast<size_t>(block) * w.block_bytes; }

// BLOCK outputs of every row, into y.
void product(const Linear& linear, int block, const Tiles& tiles, const float* x, const Target& target) {
  const Matrix& w = linear.weight;
  const TileFunction run = tile_function(w, tiles.width);
  const int column = block * BLOCK, size = w.rows - column < BLOCK ? w.rows - column : BLOCK;
  alignas(64) float sums[MAX_WIDTH * BLOCK];
  for (int tile = 0; tile < tiles.count; ++tile) {
    run(w, block_of(w, block), x + static_cast<size_t>(tile) * w.columns * tiles.width, sums);
    for (int m = 0; m < tiles.height_of(tile); ++m) {
      const int row = tile * tiles.height + m;
      add_bias_and_adapter(sums + m * BLOCK, linear, row, column, w.rows);
      const size_t at = static_cast<size_t>(row) * target.stride + column;
      for (int i = 0; i < size; i += LANES) {
        const int n = size - i < LANES ? size - i : LANES;
        Vec y = load(sums + m * BLOCK + i);
        if (target.residual != nullptr) y = add(load_first(target.residual + at + i, n), y);
        store_first(target.y + at + i, n, y);
      }
    }
  }
}

// silu(gate) * up of BLOCK outputs of every row, stored as tiles for the product that follows.
void gated_product(
    const Linear& gate, const Linear& up, int block, const Tiles& tiles, const float* x, float* activated) {
  const Matrix &g = gate.weight, &u = up.weight;
  const TileFunction run_gate = tile_function(g, tiles.width), run_up = tile_function(u, tiles.width);
  const int column = block * BLOCK, size = g.rows - column < BLOCK ? g.rows - column : BLOCK;
  alignas(64) float gates[MAX_WIDTH * BLOCK], ups[MAX_WIDTH * BLOCK];
  for (int tile = 0; tile < tiles.count; ++tile) {
    const float* rows = x + static_cast<size_t>(tile) * g.columns * tiles.width;
    run_gate(g, block_of(g, block), rows, gates);
    run_up(u, block_of(u, block), rows, ups);
    for (int m = 0; m < tiles.height_of(tile); ++m) {
      const int row = tile * tiles.height + m;
      float *left = gates + m * BLOCK, *right = ups + m * BLOCK;
      add_bias_and_adapter(left, gate, row, column, g.rows);
      add_bias_and_adapter(right, up, row, column, u.rows);
      for (int i = 0; i < BLOCK; i += LANES) store(left + i, gated(load(left + i), load(right + i)));
    }
    float* out = activated + (static_cast<size_t>(tile) * g.rows + column) * tiles.width;
    for (int i = 0; i < size; ++i)
      for (int m = 0; m < tiles.height_of(tile); ++m) out[i * tiles.width + m] = gates[m * BLOCK + i];
  }
}

// The floats of a block's columns [first, last), in a unit: out (columns, BLOCK).
template <int BITS>
INLINE void dequantize_unit(const Matrix& w, const uint8_t* words, const uint8_t* scales, float* out) {
  for (int lane = 0; lane < BLOCK; lane += LANES) {
    Vec scale = load_scale(scales, lane, w.scales), bias = load_scale(scales + scale_bytes(w.scales), lane, w.scales);
    each_column<BITS, 1>(
        words + lane * (BITS == 8 ? 1 : 4), &scale, &bias,
        [&](const Vec* weights, int j) ALWAYS_INLINE { store(out + j * BLOCK + lane, weights[0]); });
  }
}

int unpack_unit(const Matrix& w, int block, int unit, float* out) {
  const uint8_t* base = block_of(w, block);
  const int first = unit * UNIT, count = w.columns - first < UNIT ? w.columns - first : UNIT;
  if (w.format != Format::quantized) {
    const size_t at = static_cast<size_t>(first) * BLOCK;
    for (int i = 0; i < count * BLOCK; i += LANES) {
      Vec each = w.format == Format::float16    ? load_float<Format::float16>(base, at + i)
                 : w.format == Format::bfloat16 ? load_float<Format::bfloat16>(base, at + i)
                                                : load_float<Format::float32>(base, at + i);
      store(out + i, each);
    }
    return count;
  }
  const int scales = 2 * scale_bytes(w.scales), words = w.bits * BLOCK * 4, units = w.group / UNIT;
  const uint8_t* group = base + static_cast<size_t>(unit / units) * (scales + units * words);
  const uint8_t* at = group + scales + (unit % units) * words;
  switch (w.bits) {
    case 2: dequantize_unit<2>(w, at, group, out); break;
    case 3: dequantize_unit<3>(w, at, group, out); break;
    case 4: dequantize_unit<4>(w, at, group, out); break;
    case 5: dequantize_unit<5>(w, at, group, out); break;
    case 6: dequantize_unit<6>(w, at, group, out); break;
    default: dequantize_unit<8>(w, at, group, out); break;
  }
  return count;
}

// A row of the matrix as floats: what an embedding looks up.
void embed(const Matrix& w, int row, float* out) {
  alignas(64) float panel[UNIT * BLOCK];
  for (int unit = 0; unit * UNIT < w.columns; ++unit) {
    const int count = unpack_unit(w, row / BLOCK, unit, panel);
    for (int i = 0; i < count; ++i) out[unit * UNIT + i] = panel[i * BLOCK + row % BLOCK];
  }
}

// dx = dy @ w for UNIT columns of w. The roles turn round: columns are lanes, and rows are what is summed over.
void product_back(const Matrix& w, int unit, const Tiles& tiles, const float* dy, float* dx) {
  alignas(64) float panel[UNIT * BLOCK], turned[BLOCK * UNIT] = {}, sums[MAX_WIDTH * BLOCK];
  const int first = unit * UNIT, count = w.columns - first < UNIT ? w.columns - first : UNIT;
  for (int block = 0; block < w.num_blocks(); ++block) {
    const int depth = w.rows - block * BLOCK < BLOCK ? w.rows - block * BLOCK : BLOCK;
    unpack_unit(w, block, unit, panel);
    for (int k = 0; k < count; ++k)
      for (int n = 0; n < BLOCK; ++n) turned[n * UNIT + k] = panel[k * BLOCK + n];
    Matrix transposed;
    transposed.columns = depth;
    const TileFunction run = tile_function(transposed, tiles.width);
    for (int tile = 0; tile < tiles.count; ++tile) {
      const float* rows = dy + (static_cast<size_t>(tile) * w.rows + block * BLOCK) * tiles.width;
      run(transposed, reinterpret_cast<const uint8_t*>(turned), rows, sums);
      for (int m = 0; m < tiles.height_of(tile); ++m) {
        float* out = dx + static_cast<size_t>(tile * tiles.height + m) * w.columns + first;
        for (int i = 0; i < count; ++i) out[i] = (block == 0 ? 0.0f : out[i]) + sums[m * BLOCK + i];
      }
    }
  }
}

}  // namespace genserve::ISA
