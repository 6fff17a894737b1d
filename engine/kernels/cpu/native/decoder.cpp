// Entry points: each takes a turn of the pool for one job.
#include <algorithm>
#include <iterator>

#include "forward.h"

namespace genserve {

namespace {

size_t most_ranks(const Adapters* adapters) {
  int ranks = 0;
  if (adapters != nullptr)
    for (const auto& layer : adapters->layers)
      for (const StackedModule& module : layer) ranks = std::max(ranks, module.ranks);
  return static_cast<size_t>(ranks);
}

// Each adapter of the rows once.
std::vector<int32_t> present(const int32_t* adapter_of, int rows) {
  std::vector<int32_t> found;
  std::copy_if(adapter_of, adapter_of + rows, std::back_inserter(found), [](int32_t adapter) { return adapter >= 0; });
  std::sort(found.begin(), found.end());
  found.erase(std::unique(found.begin(), found.end()), found.end());
  return found;
}

// A row of floats for each thread.
std::vector<float*> rows_of_threads(Pool::Turn& turn, size_t size) {
  auto& threads = turn.space().threads;
  threads.resize(std::max(threads.size(), static_cast<size_t>(turn.size())));
  std::vector<float*> rows;
  for (Workspace::Thread& thread : threads) rows.push_back(thread.row.take(size));
  return rows;
}

Memory reserve(Pool::Turn& turn, const Pass& pass) {
  const Shape& shape = pass.decoder->shape;
  const size_t rows = pass.batch.rows, attended = static_cast<size_t>(shape.num_heads) * shape.head_dim;
  const size_t kv = static_cast<size_t>(shape.kv_heads) * shape.head_dim, partials = pass.plan.num_partials;
  const int widest = std::max(shape.hidden, static_cast<int>(attended));
  Workspace& space = turn.space();
  Memory memory;
  memory.tiles = space.tiles.take(pass.tiles.size(widest));
  memory.activated = space.activated.take(pass.tiles.size(shape.intermediate));
  memory.queries = space.queries.take(rows * attended);
  memory.keys = space.keys.take(rows * kv);
  memory.values = space.values.take(rows * kv);
  memory.attended = space.attended.take(rows * attended);
  static_assert(sizeof(Partial) == 2 * sizeof(float));
  memory.partials = reinterpret_cast<Partial*>(space.partials.take(2 * partials));
  memory.partial_out = space.partial_out.take(partials * pass.padded_head);
  for (int i = 0; i < 3; ++i) memory.low[i] = space.low[i].take(rows * most_ranks(pass.adapters.get()));
  const std::vector<float*> row_buffers = rows_of_threads(turn, std::max(widest, shape.intermediate));
  for (size_t i = 0; i < row_buffers.size(); ++i) {
    Workspace::Thread& thread = space.threads[i];
    memory.threads.push_back(
        {row_buffers[i], thread.scores.take(static_cast<size_t>(MAX_QUERIES) * SPLIT),
         thread.spare.take(spare_size(pass.padded_head)),
         thread.out.take(static_cast<size_t>(3 * MAX_QUERIES) * pass.padded_head)});
  }
  return memory;
}

}  // namespace

void run_halves(
    const std::shared_ptr<Decoder>& decoder, int first, int last, float* x, const Batch& batch,
    std::vector<Cache> caches, std::shared_ptr<const Adapters> adapters) {
  if (batch.rows == 0) return;
  Pool::Turn turn = Pool::instance().turn();
  decoder->large_pages.serve(batch, decoder->shape.block_size, caches);
  const int lanes = decoder->kernels->lanes;
  auto pass = std::make_shared<Pass>();
  pass->decoder = decoder;
  pass->adapters = std::move(adapters);
  pass->batch = batch;
  pass->caches = std::move(caches);
  pass->x = x;
  pass->tiles = decoder->kernels->cut(batch.rows);
  if (pass->adapters != nullptr && batch.adapter_of != nullptr) pass->present = present(batch.adapter_of, batch.rows);
  pass->padded_head = (decoder->shape.head_dim + lanes - 1) / lanes * lanes;
  if (!pass->caches.empty()) {
    pass->plan = plan_attention(decoder->shape, batch, turn.size());
    for (int row = 0; row < batch.rows; ++row) pass->rotations.push_back(decoder->rotation.at(batch.positions[row]));
  }
  pass->memory = reserve(turn, *pass);
  turn.run([pass, first, last](Worker& worker) {
    size_t cache = 0;
    for (int half = first; half < last; ++half) {
      if (half % 2 == 0)
        pass->attention(worker, half / 2, pass->caches[cache++]);
      else
        pass->feed_forward(worker, half / 2);
    }
  });
}

void multiply(const Kernels& kernels, const Matrix& w, const float* x, int rows, float* out) {
  if (rows == 0) return;
  Pool::Turn turn = Pool::instance().turn();
  const Tiles tiles = kernels.cut(rows);
  float* tiled = turn.space().tiles.take(tiles.size(w.columns));
  turn.run([=, &kernels](Worker& worker) {
    worker.share(rows, [&](int row) { put_row(tiles, tiled, row, w.columns, x + static_cast<size_t>(row) * w.columns); });
    worker.share(w.num_blocks(), [&](int block) {
      kernels.product({w, nullptr, nullptr}, block, tiles, tiled, {out, static_cast<size_t>(w.rows), nullptr});
    });
  });
}

void multiply_back(const Kernels& kernels, const Matrix& w, const float* dy, int rows, float* dx) {
  if (rows == 0) return;
  Pool::Turn turn = Pool::instance().turn();
  const Tiles tiles = kernels.cut(rows);
  float* tiled = turn.space().tiles.take(tiles.size(w.rows));
  turn.run([=, &kernels](Worker& worker) {
    worker.share(rows, [&](int row) { put_row(tiles, tiled, row, w.rows, dy + static_cast<size_t>(row) * w.rows); });
    worker.share((w.columns + w.run() - 1) / w.run(), [&](int run) { kernels.product_back(w, run, tiles, tiled, dx); });
  });
}

void look_up(const Kernels& kernels, const Matrix& table, const int32_t* indices, int count, float* out) {
  Pool::instance().turn().run([=, &kernels](Worker& worker) {
    worker.share(count, [&](int i) { kernels.embed(table, indices[i], out + static_cast<size_t>(i) * table.columns); });
  });
}

void head(
    const Kernels& kernels, const Matrix& w, const float* norm, float eps, const float* x, const int32_t* rows,
    int count, float* out) {
  if (count == 0) return;
  Pool::Turn turn = Pool::instance().turn();
  const Tiles tiles = kernels.cut(count);
  float* tiled = turn.space().tiles.take(tiles.size(w.columns));
  const std::vector<float*> own = rows_of_threads(turn, w.columns);
  turn.run([=, &kernels](Worker& worker) {
    float* row = own[worker.id];
    worker.share(count, [&](int i) {
      kernels.normalize(x + static_cast<size_t>(rows[i]) * w.columns, norm, eps, w.columns, row);
      put_row(tiles, tiled, i, w.columns, row);
    });
    worker.share(w.num_blocks(), [&](int block) {
      kernels.product({w, nullptr, nullptr}, block, tiles, tiled, {out, static_cast<size_t>(w.rows), nullptr});
    });
  });
}

void draw(
    const Kernels& kernels, const float* logits, int rows, int size, const float* knobs, bool is_greedy, int32_t* out) {
  if (rows == 0) return;
  Pool::Turn turn = Pool::instance().turn();
  const std::vector<float*> own = rows_of_threads(turn, draw_size(size));
  turn.run([=, &kernels](Worker& worker) {
    worker.share(rows, [&](int row) {
      const float* logits_of_row = logits + static_cast<size_t>(row) * size;
      out[row] = is_greedy ? kernels.argmax(logits_of_row, size, own[worker.id])
                           : kernels.draw(logits_of_row, size, knobs + static_cast<size_t>(row) * 5, own[worker.id]);
    });
  });
}

}  // namespace genserve
