// How the rows of a batch attend: which rows go together, and which splits of keys are one task.
#pragma once
#include <vector>

#include "model.h"

namespace genserve {

// Consecutive rows of one sequence at consecutive positions.
struct RowTile {
  int first, count, sequence, position;
};

// All key heads of a tile or one, over some splits. `partial` is where they are kept if the row is to be joined later,
// the first head's first query first.
struct AttentionTask {
  int tile, head, num_heads, first_split, last_split;
  int partial;  // -1: the task does all there is
};

// A row's partials, one a split, to be joined in order; each has one for every head.
struct JoinTask {
  int partial, count;
};

struct AttentionPlan {
  std::vector<RowTile> tiles;
  std::vector<AttentionTask> tasks;
  std::vector<JoinTask> joins;  // by row, of count 0 where there is nothing to join
  int num_partials = 0;
};

AttentionPlan plan_attention(const Shape& shape, const Batch& batch, int num_threads);

}  // namespace genserve
