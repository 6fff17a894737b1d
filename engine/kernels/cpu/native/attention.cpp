// One attention task, and the joining of a row's partials.
#include <algorithm>
#include <cstring>
#include <iterator>

#include "forward.h"

namespace genserve {

namespace {

// Where keys [first, last) of a sequence lie, and then again and again where the last lies: whoever takes some keys
// together does not look where they end.
void find_slots(
    const Batch& batch, int block_size, int sequence, int first, int last, int32_t (&slots)[SPLIT + AHEAD]) {
  const int32_t* table = batch.tables + static_cast<size_t>(sequence) * batch.table_width;
  int32_t* to = slots;
  for (int key = first; key < last;) {
    const int block = key / block_size, end = std::min(last, (block + 1) * block_size);
    for (int slot = table[block] * block_size + key - block * block_size; key < end; ++key) *to++ = slot++;
  }
  std::fill(to, std::end(slots), to[-1]);
}

void finish(const Partial& partial, const float* from, int size, float* out) {
  for (int i = 0; i < size; ++i) out[i] = from[i] / partial.sum;
}

}  // namespace

void Pass::attend(int worker, const AttentionTask& task, const Cache& cache) const {
  const Kernels& kernels = *decoder->kernels;
  const Shape& shape = decoder->shape;
  const RowTile& tile = plan.tiles[task.tile];
  const int group = shape.num_heads / shape.kv_heads, size = padded_head;
  const int attended = shape.num_heads * shape.head_dim;
  const Memory::Thread& own = memory.threads[worker];
  float *out = own.out, *part_out = out + static_cast<size_t>(MAX_QUERIES) * size;
  float* padded = part_out + static_cast<size_t>(MAX_QUERIES) * size;

  Queries queries;
  queries.count = task.num_heads * tile.count * group;
  const auto for_all = [&](const auto& call) {  // by key head, row and head
    int n = 0;
    for (int kv_head = task.head; kv_head < task.head + task.num_heads; ++kv_head)
      for (int row = 0; row < tile.count; ++row)
        for (int head = kv_head * group; head < (kv_head + 1) * group; ++head)
          call(n++, row, static_cast<size_t>(tile.first + row) * attended + head * shape.head_dim);
  };
  for_all([&](int n, int, size_t place) {
    float* to = padded + static_cast<size_t>(n) * size;
    std::memcpy(to, memory.queries + place, shape.head_dim * sizeof(float));
    std::fill(to + shape.head_dim, to + size, 0.0f);
    queries.q[n] = to;
  });

  const bool is_kept = task.partial >= 0;
  const bool goes_on = !is_kept || task.num_heads == shape.kv_heads;  // with the same heads of the next split
  const auto attend_to = [&](int split, Partial* partials, float* sums) {
    const int start = split * SPLIT;
    for_all([&](int n, int row, size_t) {
      const int position = tile.position + row;
      const int seen_from = shape.window > 0 ? position - shape.window + 1 : 0;
      queries.first[n] = std::clamp(seen_from - start, 0, SPLIT);
      queries.last[n] = std::clamp(position + 1 - start, 0, SPLIT);
    });
    int32_t slots[SPLIT + AHEAD];
    const int later = goes_on ? AHEAD : 0, end = std::min(start + SPLIT + later, tile.position + tile.count);
    find_slots(batch, shape.block_size, tile.sequence, start, end, slots);
    kernels.attend(
        queries, cache, task.head, task.num_heads, slots, end - start, own.scores, own.spare, partials, sums);
  };

  if (is_kept)
    return attend_to(
        task.first_split, memory.partials + task.partial,
        memory.partial_out + static_cast<size_t>(task.partial) * size);
  Partial total[MAX_QUERIES], part[MAX_QUERIES];
  attend_to(task.first_split, total, out);
  for (int split = task.first_split + 1; split < task.last_split; ++split) {
    attend_to(split, part, part_out);
    for (int n = 0; n < queries.count; ++n)
      kernels.join(
          total[n], out + static_cast<size_t>(n) * size, &part[n], part_out + static_cast<size_t>(n) * size, 1, 1, size);
  }
  for_all([&](int n, int, size_t place) {
    finish(total[n], out + static_cast<size_t>(n) * size, shape.head_dim, memory.attended + place);
  });
}

void Pass::collect(int row) const {
  const JoinTask& task = plan.joins[row];
  if (task.count == 0) return;
  const Shape& shape = decoder->shape;
  float* attended = memory.attended + static_cast<size_t>(row) * shape.num_heads * shape.head_dim;
  for (int head = 0; head < shape.num_heads; ++head) {
    const size_t first = static_cast<size_t>(task.partial) + head, second = first + shape.num_heads;
    Partial total = memory.partials[first];
    float* out = memory.partial_out + first * padded_head;
    decoder->kernels->join(
        total, out, memory.partials + second, memory.partial_out + second * padded_head, task.count - 1,
        shape.num_heads, padded_head);
    finish(total, out, shape.head_dim, attended + head * shape.head_dim);
  }
}

}  // namespace genserve
