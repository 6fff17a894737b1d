// One attention task, and the joining of a row's partials.
#include <algorithm>
#include <cstring>
#include <iterator>

#include "forward.h"

namespace genserve {

namespace {

// Where keys [first, last) of a sequence lie, and then again and again where the last lies: whoever asks for what is
// AHEAD does not look where the keys end.
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
  float *scores = own.scores, *spare = own.spare, *out = own.out;
  float* padded = out + static_cast<size_t>(2 * MAX_QUERIES) * size;

  Queries queries;
  const int each = tile.count * group;  // queries of one key head
  queries.count = each * task.num_heads;
  const auto row_of = [&](int n) { return tile.first + n % each / group; };
  const auto head_of = [&](int n) { return (task.head + n / each) * group + n % group; };
  for (int n = 0; n < queries.count; ++n) {
    const int row = row_of(n), head = head_of(n);
    const float* q = memory.queries + static_cast<size_t>(row) * attended + head * shape.head_dim;
    float* to = padded + static_cast<size_t>(n) * size;
    std::memcpy(to, q, shape.head_dim * sizeof(float));
    std::fill(to + shape.head_dim, to + size, 0.0f);
    queries.q[n] = to;
  }

  Partial total[MAX_QUERIES], part[MAX_QUERIES];
  float* part_out = out + static_cast<size_t>(MAX_QUERIES) * size;
  const bool goes_on = task.partial < 0 || task.num_heads == shape.kv_heads;  // with the same heads of the next split
  for (Partial& each : total) each = {0.0f, 0.0f};
  for (int split = task.first_split; split < task.last_split; ++split) {
    const int start = split * SPLIT;
    for (int n = 0; n < queries.count; ++n) {
      const int position = tile.position + n % each / group;
      const int seen_from = shape.window > 0 ? position - shape.window + 1 : 0;
      queries.first[n] = std::clamp(seen_from - start, 0, SPLIT);
      queries.last[n] = std::clamp(position + 1 - start, 0, SPLIT);
    }
    int32_t slots[SPLIT + AHEAD];
    const int later = goes_on ? AHEAD : 0, end = std::min(start + SPLIT + later, tile.position + tile.count);
    find_slots(batch, shape.block_size, tile.sequence, start, end, slots);
    kernels.attend(queries, cache, task.head, task.num_heads, slots, scores, spare, part, part_out);
    for (int n = 0; n < queries.count; ++n)
      kernels.join(total[n], out + static_cast<size_t>(n) * size, part[n], part_out + static_cast<size_t>(n) * size, size);
  }

  for (int n = 0; n < queries.count; ++n) {
    const float* from = out + static_cast<size_t>(n) * size;
    if (task.partial < 0) {
      const int row = row_of(n), head = head_of(n);
      finish(total[n], from, shape.head_dim,
             memory.attended + static_cast<size_t>(row) * attended + head * shape.head_dim);
    } else {
      const size_t place = static_cast<size_t>(task.partial) + n;
      memory.partials[place] = total[n];
      std::memcpy(memory.partial_out + place * size, from, size * sizeof(float));
    }
  }
}

void Pass::collect(int row) const {
  const JoinTask& task = plan.joins[row];
  if (task.count == 0) return;
  const Kernels& kernels = *decoder->kernels;
  const Shape& shape = decoder->shape;
  float* attended = memory.attended + static_cast<size_t>(row) * shape.num_heads * shape.head_dim;
  for (int head = 0; head < shape.num_heads; ++head) {
    const size_t first = static_cast<size_t>(task.partial) + head;
    Partial total = memory.partials[first];
    float* out = memory.partial_out + first * padded_head;
    for (int i = 1; i < task.count; ++i) {
      const size_t next = first + static_cast<size_t>(i) * shape.num_heads;
      kernels.join(total, out, memory.partials[next], memory.partial_out + next * padded_head, padded_head);
    }
    finish(total, out, shape.head_dim, attended + head * shape.head_dim);
  }
}

}  // namespace genserve
