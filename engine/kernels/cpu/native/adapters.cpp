#include "adapters.h"

#include <unistd.h>

#include <algorithm>
#include <iterator>

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

size_t StackedModule::num_bytes_of(int adapter) const {
  if (ranks == 0) return 0;
  return static_cast<size_t>(starts[adapter + 1] - starts[adapter]) * (inputs + outputs) * sizeof(float);
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
