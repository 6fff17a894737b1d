#include "memory.h"

#include <cstdlib>
#include <fstream>
#include <mutex>
#include <new>
#include <string>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace genserve {

namespace {

constexpr size_t LINE = 64, CHUNK = size_t{16} << 20;

// For sanitizers: nothing is rounded up, shared or kept, so that one step beyond a buffer is seen.
#if defined(GENSERVE_EXACT_MEMORY)
constexpr bool IS_EXACT = true;
#else
constexpr bool IS_EXACT = false;
#endif

void* allocate(size_t bytes, size_t alignment) {
  void* p = nullptr;
  if (posix_memalign(&p, alignment, IS_EXACT ? bytes : (bytes + alignment - 1) / alignment * alignment) != 0)
    throw std::bad_alloc();
  return p;
}

std::shared_ptr<uint8_t> allocate_pages(size_t bytes) {
  auto* p = static_cast<uint8_t*>(allocate(bytes, LARGE_PAGE));
  expect_large_pages(p, bytes);
  return {p, [](uint8_t* q) { std::free(q); }};
}

#if defined(__linux__)
bool may_have_large_pages() {
  static const bool may = [] {
    std::ifstream file("/sys/kernel/mm/transparent_hugepage/enabled");
    std::string choices;
    return std::getline(file, choices) && choices.find("[never]") == std::string::npos;
  }();
  return may;
}
#endif

}  // namespace

void Buffer::Free::operator()(float* p) const { std::free(p); }

float* Buffer::take(size_t size) {
  if (size > size_ || data_ == nullptr || IS_EXACT) {
    data_.reset();
    size_ = IS_EXACT ? size : size + size / 4 + LINE;
    data_.reset(static_cast<float*>(allocate(size_ * sizeof(float), LINE)));
  }
  return data_.get();
}

std::shared_ptr<uint8_t> allocate_weights(size_t bytes) {
  if (bytes > CHUNK / 4 || IS_EXACT) return allocate_pages(bytes);
  static std::mutex mutex;
  static std::weak_ptr<uint8_t> current;
  static size_t used = 0;
  std::lock_guard lock(mutex);
  std::shared_ptr<uint8_t> chunk = current.lock();
  if (chunk == nullptr || used + bytes > CHUNK) {
    chunk = allocate_pages(CHUNK);
    current = chunk;
    used = 0;
  }
  std::shared_ptr<uint8_t> part(chunk, chunk.get() + used);
  used += (bytes + LINE - 1) / LINE * LINE;
  return part;
}

void expect_large_pages(uint8_t* memory, size_t bytes) {
#if defined(__linux__)
  const uintptr_t begin = next_large_page(memory), end = reinterpret_cast<uintptr_t>(memory) + bytes;
  if (begin + LARGE_PAGE <= end)  // advice: that it fails changes nothing but speed
    madvise(reinterpret_cast<void*>(begin), (end - begin) / LARGE_PAGE * LARGE_PAGE, MADV_HUGEPAGE);
#endif
}

void make_large_page(uint8_t* memory, const uint8_t* end) {
#if defined(__linux__)
  constexpr int COLLAPSE = 25;  // MADV_COLLAPSE, of Linux 6.1: libraries may be older. It asks for no leave by itself.
  const uintptr_t begin = next_large_page(memory);
  if (begin + LARGE_PAGE <= reinterpret_cast<uintptr_t>(end) && may_have_large_pages())
    madvise(reinterpret_cast<void*>(begin), LARGE_PAGE, COLLAPSE);
#endif
}

}  // namespace genserve
