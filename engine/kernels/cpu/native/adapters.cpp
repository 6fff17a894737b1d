#include "adapters.h"

#include <algorithm>
#include <cstring>
#include <unistd.h>

#include "memory.h"

namespace genserve {

namespace {

// Half of the last cache, or of a small one where the system does not say.
size_t kept_bytes() {
  constexpr long SMALL = 8 << 20;
#if defined(_SC_LEVEL3_CACHE_SIZE)
  static const long last_cache = sysconf(_SC_LEVEL3_CACHE_SIZE);
  return static_cast<size_t>(last_cache > 0 ? last_cache : SMALL) / 2;
#else
  return SMALL / 2;
#endif
}

}  // namespace

StackedModule::StackedModule(
    const float* a, const float* b, int columns, int outputs, std::vector<float> scale, std::vector<int32_t> starts)
    : scale(std::move(scale)), starts(std::move(starts)), ranks(static_cast<int>(this->scale.size())),
      columns(columns), outputs(outputs) {
  const size_t a_bytes = static_cast<size_t>(ranks) * columns * sizeof(float);
  const int num_blocks = (outputs + BLOCK - 1) / BLOCK;
  const size_t b_bytes = static_cast<size_t>(num_blocks) * ranks * BLOCK * sizeof(float);
  this->a = allocate_weights(a_bytes);
  this->b = allocate_weights(b_bytes);
  std::memcpy(this->a.get(), a, a_bytes);
  auto* to = reinterpret_cast<float*>(this->b.get());
  for (int block = 0; block < num_blocks; ++block)
    for (int r = 0; r < ranks; ++r, to += BLOCK) {
      const int first = block * BLOCK, count = std::min(BLOCK, outputs - first);
      std::copy_n(b + static_cast<size_t>(r) * outputs + first, count, to);
      std::fill(to + count, to + BLOCK, 0.0f);
    }
}

size_t StackedModule::num_bytes_of(int adapter) const {
  if (ranks == 0) return 0;
  return static_cast<size_t>(starts[adapter + 1] - starts[adapter]) * (columns + outputs) * sizeof(float);
}

std::vector<int32_t> Adapters::present(const int32_t* adapter_of, int rows) const {
  std::vector<int32_t> found;
  std::copy_if(adapter_of, adapter_of + rows, std::back_inserter(found), [](int32_t adapter) { return adapter >= 0; });
  std::sort(found.begin(), found.end());
  found.erase(std::unique(found.begin(), found.end()), found.end());
  for (const auto& layer : layers) {
    size_t bytes = 0;
    for (const StackedModule& module : layer)
      for (const int32_t adapter : found) bytes += module.num_bytes_of(adapter);
    if (bytes > kept_bytes()) return {};
  }
  return found;
}

}  // namespace genserve
