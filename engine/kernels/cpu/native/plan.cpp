#include "plan.h"

#include <algorithm>

namespace genserve {

AttentionPlan plan_attention(const Shape& shape, const Batch& batch, int num_threads) {
  AttentionPlan plan;
  const int tile_rows = std::max(1, MAX_QUERIES / (shape.num_heads / shape.kv_heads));
  for (int row = 0; row < batch.rows; ++row) {
    const int sequence = batch.sequence_of[row], position = batch.positions[row];
    if (!plan.tiles.empty()) {
      RowTile& tile = plan.tiles.back();
      if (tile.sequence == sequence && tile.position + tile.count == position && tile.count < tile_rows) {
        ++tile.count;
        continue;
      }
    }
    plan.tiles.push_back({row, 1, sequence, position});
  }
  const auto first_split = [&](const RowTile& tile) {
    return shape.window > 0 ? std::max(0, tile.position - shape.window + 1) / SPLIT : 0;
  };
  const auto last_split = [](const RowTile& tile) { return (tile.position + tile.count - 1) / SPLIT + 1; };
  int num_splits = 0;
  for (const RowTile& tile : plan.tiles) num_splits += tile.count == 1 ? last_split(tile) - first_split(tile) : 0;

  // A row alone reads its heads together, in the cache's own order, if that leaves work for every thread, and if there are
  // not more than are attended at once.
  const int group = shape.num_heads / shape.kv_heads;
  const bool is_together = num_splits >= 2 * num_threads && shape.num_heads <= MAX_QUERIES;
  plan.joins.resize(batch.rows);
  for (int i = 0; i < static_cast<int>(plan.tiles.size()); ++i) {
    const RowTile& tile = plan.tiles[i];
    const int first = first_split(tile), last = last_split(tile);
    const int num_heads = tile.count == 1 && is_together ? shape.kv_heads : 1;
    const bool is_joined = tile.count == 1 && last - first > 1;
    if (is_joined) plan.joins[tile.first] = {plan.num_partials, last - first};
    for (int split = first; split < last; ++split) {
      for (int head = 0; head < shape.kv_heads; head += num_heads) {
        if (is_joined)
          plan.tasks.push_back({i, head, num_heads, split, split + 1, plan.num_partials + head * group});
        else
          plan.tasks.push_back({i, head, num_heads, first, last, -1});
      }
      if (!is_joined) break;
      plan.num_partials += shape.num_heads;
    }
  }
  return plan;
}

}  // namespace genserve
