#include "large_pages.h"

#include <algorithm>

#include "memory.h"
#include "model.h"

namespace genserve {

namespace {

constexpr int LEAST = 4;  // of so many parts of a page, one is read

int64_t num_read(const Batch& batch) {
  int64_t keys = 0;
  for (int row = 0; row < batch.rows; ++row)
    if (row + 1 == batch.rows || batch.sequence_of[row + 1] != batch.sequence_of[row]) keys += batch.positions[row] + 1;
  return keys;
}

// Slots up to the last block of any sequence; those of others may lie behind.
int64_t num_used(const Batch& batch, int block_size) {
  int32_t last = 0;
  for (int row = 0; row < batch.rows; ++row) {
    const int32_t* table = batch.tables + static_cast<size_t>(batch.sequence_of[row]) * batch.table_width;
    last = std::max(last, *std::max_element(table, table + batch.positions[row] / block_size + 1));
  }
  return static_cast<int64_t>(last + 1) * block_size;
}

}  // namespace

void LargePages::serve(const Batch& batch, int block_size, const std::vector<Cache>& caches) {
  if (caches.empty() || served_.count(caches.back().keys) > 0) return;
  const size_t slot = caches[0].bytes() / caches[0].slots;
  if (num_read(batch) * slot < LARGE_PAGE / LEAST) return;
  const size_t used = num_used(batch, block_size) * slot;
  for (const Cache& cache : caches)
    if (served_.insert(cache.keys).second)
      for (uint8_t* memory : {cache.keys, cache.values}) put_on_large_pages(memory, cache.bytes(), used);
}

}  // namespace genserve
