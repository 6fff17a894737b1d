// All adapters of a model as the kernels read them.
#pragma once
#include <memory>
#include <vector>

#include "kernels.h"

namespace genserve {

// One module's, side by side along the rank. `a` lies as `LowRank` has it and lives as long as `owner`. `b` is a copy
// by blocks of outputs: for a product goes from block to block, and what it adds there should not lie in many pages.
struct StackedModule {
  const float *a = nullptr, *scale = nullptr;
  const int32_t* starts = nullptr;
  int ranks = 0, inputs = 0, outputs = 0;
  std::shared_ptr<void> owner;
  std::shared_ptr<float> b;  // (blocks, ranks, BLOCK)

  // Rank rows [first, first + count), given as (count, outputs).
  void write(const float* rows, int first, int count);
};

struct Adapters {
  std::vector<std::vector<StackedModule>> layers;  // NUM_MODULES of them each
  int count = 0;
};

}  // namespace genserve
