#include "large_pages.h"

#include "memory.h"
#include "model.h"

namespace genserve {

namespace {

constexpr int LEAST = 4;  // of so many parts of a page, one is read

// Calls with each sequence's table and the number of its keys.
template <class Call>
void each_sequence(const Batch& batch, const Call& call) {
  for (int row = 0; row < batch.rows; ++row) {
    const int sequence = batch.sequence_of[row];
    if (row + 1 == batch.rows || batch.sequence_of[row + 1] != sequence)
      call(batch.tables + static_cast<size_t>(sequence) * batch.table_width, batch.positions[row] + 1);
  }
}

}  // namespace

void LargePages::serve(const Batch& batch, int block_size, const std::vector<Cache>& caches) {
  if (caches.empty()) return;
  const Cache& first = caches[0];
  const size_t slot = first.bytes() / first.slots;
  size_t num_read = 0;
  each_sequence(batch, [&](const int32_t*, int keys) { num_read += keys; });
  if (num_read * slot < LARGE_PAGE / LEAST) return;

  const auto [found, is_new] = moved_.try_emplace(first.keys, first.bytes() / LARGE_PAGE + 1);
  std::vector<bool>& moved = found->second;
  size_t page = moved.size();
  each_sequence(batch, [&](const int32_t* table, int keys) {
    for (int block = 0; block * block_size < keys; ++block) {
      const size_t its_page = static_cast<size_t>(table[block]) * block_size * slot / LARGE_PAGE;
      if (!moved[its_page]) page = its_page;
    }
  });
  for (const Cache& cache : caches)
    for (uint8_t* memory : {cache.keys, cache.values}) {
      if (is_new) expect_large_pages(memory, cache.bytes());
      if (page < moved.size()) make_large_page(memory + page * LARGE_PAGE, memory + cache.bytes());
    }
  if (page < moved.size()) moved[page] = true;
}

}  // namespace genserve
