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
};

struct Adapters {
  std::vector<std::vector<StackedModule>> layers;  // NUM_MODULES of them each
  int count = 0;
};

}  // namespace genserve
