#include "forward.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace genserve {

void put_row(const Tiles& tiles, float* base, int row, int columns, const float* values) {
  float* out = tiles.at(base, row, columns);
  const int width = tiles.width_of(row / tiles.height);
  if (width == 1) {
    std::memcpy(out, values, columns * sizeof(float));
    return;
  }
  for (int k = 0; k < columns; ++k) out[static_cast<size_t>(k) * width] = values[k];
  const int place = row % tiles.height;
  const bool is_last = place + 1 == tiles.height_of(row / tiles.height);
  for (int beside = 1; is_last && place + beside < width; ++beside)
    for (int k = 0; k < columns; ++k) out[static_cast<size_t>(k) * width + beside] = 0.0f;
}

void get_row(const Tiles& tiles, const float* base, int row, int columns, float* values) {
  const float* from = tiles.at(const_cast<float*>(base), row, columns);
  const int width = tiles.width_of(row / tiles.height);
  for (int k = 0; k < columns; ++k) values[k] = from[static_cast<size_t>(k) * width];
}

LowRank Pass::low_rank(int layer, Module module, float* low) const {
  if (adapters == nullptr || batch.adapter_of == nullptr || layer >= static_cast<int>(adapters->layers.size())) return {};
  const StackedModule& stacked = adapters->layers[layer][module];
  return {stacked.a, stacked.b.get(), stacked.scale, stacked.starts, stacked.ranks, batch.adapter_of, low,
          present.data(), static_cast<int>(present.size())};
}

namespace {

const float* or_null(const std::vector<float>& values) { return values.empty() ? nullptr : values.data(); }

}  // namespace

Ahead Pass::ahead(int layer, std::initializer_list<Module> modules, int columns, int num_blocks) const {
  Ahead ahead{{}, 0, columns, num_blocks};
  for (Module module : modules)
    if (const LowRank lora = low_rank(layer, module, nullptr); lora.ranks > 0) ahead.modules[ahead.count++] = lora;
  return ahead;
}

Linear Pass::linear(int layer, Module module, const LowRank& adapted, const Ahead& ahead, int first_block) const {
  const Projection& projection = decoder->layers[layer].modules[module];
  return {projection.weight->view(), or_null(projection.bias), adapted.ranks > 0 ? &adapted : nullptr,
          ahead.count > 0 ? &ahead : nullptr, first_block};
}

int Pass::num_blocks(int layer, Module module) const {
  return decoder->layers[layer].modules[module].weight->view().num_blocks();
}

void Pass::attention(Worker& worker, int index, const Cache& cache) const {
  const Layer& layer = decoder->layers[index];
  const Kernels& kernels = *decoder->kernels;
  const Shape& shape = decoder->shape;
  const LowRank low[] = {
      low_rank(index, Q, memory.low[0]), low_rank(index, K, memory.low[1]), low_rank(index, V, memory.low[2])};
  const LowRank low_o = low_rank(index, O, memory.low[0]);
  float *tiled = memory.tiles, *row_buffer = memory.threads[worker.id].row;
  const int hidden = shape.hidden, attended = shape.num_heads * shape.head_dim, kv = shape.kv_heads * shape.head_dim;

  worker.share(batch.rows, [&](int row) {
    kernels.normalize(x + static_cast<size_t>(row) * hidden, layer.input_norm.data(), shape.eps, hidden, row_buffer);
    put_row(tiles, tiled, row, hidden, row_buffer);
    for (const LowRank& each : low)
      if (each.ranks > 0) kernels.low_rank(each, row, hidden, row_buffer);
  });

  const int q_blocks = num_blocks(index, Q), k_blocks = num_blocks(index, K), v_blocks = num_blocks(index, V);
  const Ahead for_o = ahead(index, {O}, attended, q_blocks + k_blocks + v_blocks);
  const Linear q = linear(index, Q, low[0], for_o), k = linear(index, K, low[1], for_o, q_blocks);
  const Linear v = linear(index, V, low[2], for_o, q_blocks + k_blocks);
  float *queries = memory.queries, *keys = memory.keys, *values = memory.values;
  worker.share(q_blocks + k_blocks + v_blocks, [&](int block) {
    if (block < q_blocks)
      kernels.product(q, block, tiles, tiled, {queries, static_cast<size_t>(attended), nullptr});
    else if (block < q_blocks + k_blocks)
      kernels.product(k, block - q_blocks, tiles, tiled, {keys, static_cast<size_t>(kv), nullptr});
    else
      kernels.product(v, block - q_blocks - k_blocks, tiles, tiled, {values, static_cast<size_t>(kv), nullptr});
  });

  worker.share(batch.rows, [&](int row) {
    const float* turn = rotations[row];
    const HeadRow heads = {
        queries + static_cast<size_t>(row) * attended, keys + static_cast<size_t>(row) * kv,
        values + static_cast<size_t>(row) * kv, shape.num_heads, shape.head_dim, or_null(layer.q_norm),
        or_null(layer.k_norm), shape.eps, decoder->rotation.magnitude(), 1.0f / std::sqrt(float(shape.head_dim)), turn,
        turn + shape.head_dim / 2, batch.slots[row]};
    kernels.heads(heads, cache);
  });

  worker.share(static_cast<int>(plan.tasks.size()), [&](int task) { attend(worker.id, plan.tasks[task], cache); });

  worker.share(batch.rows, [&](int row) {
    collect(row);
    const float* from = memory.attended + static_cast<size_t>(row) * attended;
    put_row(tiles, tiled, row, attended, from);
    if (low_o.ranks > 0) kernels.low_rank(low_o, row, attended, from);
  });

  const Ahead for_gate = ahead(index, {GATE, UP}, hidden, num_blocks(index, O));
  const Linear o = linear(index, O, low_o, for_gate);
  worker.share(num_blocks(index, O), [&](int block) {
    kernels.product(o, block, tiles, tiled, {x, static_cast<size_t>(hidden), x});
  });
}

void Pass::feed_forward(Worker& worker, int index) const {
  const Layer& layer = decoder->layers[index];
  const Kernels& kernels = *decoder->kernels;
  const Shape& shape = decoder->shape;
  const LowRank low_gate = low_rank(index, GATE, memory.low[0]), low_up = low_rank(index, UP, memory.low[1]);
  const LowRank low_down = low_rank(index, DOWN, memory.low[2]);
  float *tiled = memory.tiles, *activated = memory.activated;
  float* row_buffer = memory.threads[worker.id].row;
  const int hidden = shape.hidden, inner = shape.intermediate;

  worker.share(batch.rows, [&](int row) {
    kernels.normalize(x + static_cast<size_t>(row) * hidden, layer.post_norm.data(), shape.eps, hidden, row_buffer);
    put_row(tiles, tiled, row, hidden, row_buffer);
    if (low_gate.ranks > 0) kernels.low_rank(low_gate, row, hidden, row_buffer);
    if (low_up.ranks > 0) kernels.low_rank(low_up, row, hidden, row_buffer);
  });

  const Ahead for_down = ahead(index, {DOWN}, inner, num_blocks(index, GATE));
  const Linear gate = linear(index, GATE, low_gate, for_down), up = linear(index, UP, low_up, {});
  worker.share(num_blocks(index, GATE), [&](int block) {
    kernels.gated(gate, up, block, tiles, tiled, activated);
  });

  if (low_down.ranks > 0)
    worker.share(batch.rows, [&](int row) {
      if (batch.adapter_of[row] < 0) return;
      get_row(tiles, activated, row, inner, row_buffer);
      kernels.low_rank(low_down, row, inner, row_buffer);
    });

  const Ahead for_next = ahead(index + 1, {Q, K, V}, hidden, num_blocks(index, DOWN));
  const Linear down = linear(index, DOWN, low_down, for_next);
  worker.share(num_blocks(index, DOWN), [&](int block) {
    kernels.product(down, block, tiles, activated, {x, static_cast<size_t>(hidden), x});
  });
}

}  // namespace genserve
