#include "adapters.h"

#include <algorithm>
#include <cstring>

#include "memory.h"

namespace genserve {

void StackedModule::write(const float* rows, int first, int count) {
  const int blocks = (outputs + BLOCK - 1) / BLOCK;
  if (b == nullptr) {
    const size_t bytes = static_cast<size_t>(blocks) * ranks * BLOCK * sizeof(float);
    b = std::reinterpret_pointer_cast<float>(allocate_weights(bytes));
    std::memset(b.get(), 0, bytes);  // beside the last block's outputs too
  }
  for (int block = 0; block < blocks; ++block)
    for (int row = 0; row < count; ++row) {
      const int column = block * BLOCK, size = std::min(BLOCK, outputs - column);
      float* to = b.get() + (static_cast<size_t>(block) * ranks + first + row) * BLOCK;
      std::memcpy(to, rows + static_cast<size_t>(row) * outputs + column, size * sizeof(float));
    }
}

}  // namespace genserve
