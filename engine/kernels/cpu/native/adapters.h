// All adapters of a model as the kernels read them.
#pragma once
#include <memory>
#include <vector>

#include "kernels.h"

namespace genserve {

// One module's, side by side along the rank, as `LowRank` has them; alive as long as `owner`.
struct StackedModule {
  const float *a = nullptr, *b = nullptr, *scale = nullptr;
  const int32_t* starts = nullptr;
  int ranks = 0, inputs = 0, outputs = 0;
  std::shared_ptr<void> owner;

  size_t num_bytes_of(int adapter) const;
};

struct Adapters {
  std::vector<std::vector<StackedModule>> layers;  // NUM_MODULES of them each
  int count = 0;

  // Each adapter of the rows once; none if a layer of theirs is more than a cache keeps until the next layer's turn.
  std::vector<int32_t> present(const int32_t* adapter_of, int rows) const;
};

}  // namespace genserve
