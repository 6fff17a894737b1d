// All adapters of a model as the kernels read them, made once for a set of them.
#pragma once
#include <memory>
#include <vector>

#include "kernels.h"

namespace genserve {

// One module's, side by side along the rank, as `LowRank` has them.
struct StackedModule {
  std::shared_ptr<uint8_t> a, b;
  std::vector<float> scale;
  std::vector<int32_t> starts;
  int ranks = 0, columns = 0, outputs = 0;

  StackedModule() = default;
  // a (ranks, columns), b (ranks, outputs)
  StackedModule(
      const float* a, const float* b, int columns, int outputs, std::vector<float> scale, std::vector<int32_t> starts);

  size_t num_bytes_of(int adapter) const;
};

struct Adapters {
  std::vector<std::vector<StackedModule>> layers;  // NUM_MODULES of them each
  int count = 0;

  // Each adapter of the rows once; none if a layer of theirs is more than a cache keeps until the next layer's turn.
  std::vector<int32_t> present(const int32_t* adapter_of, int rows) const;
};

}  // namespace genserve
