// Aligned memory: buffers that grow, and weights side by side on large pages.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace genserve {

// Floats on a cache line's boundary. Growing forgets what was there.
class Buffer {
 public:
  float* take(size_t size);
  float* data() const { return data_.get(); }

 private:
  struct Free {
    void operator()(float* p) const;
  };
  std::unique_ptr<float, Free> data_;
  size_t size_ = 0;
};

// What one job needs besides its rows. Belongs to whose turn it is; jobs get plain pointers.
struct Workspace {
  Buffer tiles, activated, queries, keys, values, attended, partials, partial_out, low[3];
  struct Thread {
    Buffer row, scores, spare, out;
  };
  std::vector<Thread> threads;
};

// Memory for one matrix; it lives as long as the pointer. Small ones share a chunk, and its large pages.
std::shared_ptr<uint8_t> allocate_weights(size_t bytes);

constexpr size_t LARGE_PAGE = size_t{2} << 20;

// Where the first large page from `memory` on begins, or may.
inline uintptr_t next_large_page(const uint8_t* memory) {
  return (reinterpret_cast<uintptr_t>(memory) + LARGE_PAGE - 1) / LARGE_PAGE * LARGE_PAGE;
}

// Where pages are not used yet they come as large ones, if the system has such and was not told to never use them.
void expect_large_pages(uint8_t* memory, size_t bytes);
// Makes one of what is used already: of the first whole one from `memory` on.
void make_large_page(uint8_t* memory, const uint8_t* end);

}  // namespace genserve
