#include <cmath>

#include "model.h"

namespace genserve {

Rotation::Rotation(std::vector<float> wavelengths, float magnitude)
    : wavelengths_(std::move(wavelengths)), magnitude_(magnitude) {}

const float* Rotation::at(int position) {
  const size_t half = wavelengths_.size(), page = static_cast<size_t>(position) / PAGE;
  if (page >= pages_.size()) pages_.resize(page + 1);
  if (pages_[page] == nullptr) {
    pages_[page] = std::make_unique<float[]>(2 * half * PAGE);
    for (int i = 0; i < PAGE; ++i) {
      float* out = pages_[page].get() + 2 * half * i;
      for (size_t j = 0; j < half; ++j) {
        const double angle = static_cast<double>(page * PAGE + i) / static_cast<double>(wavelengths_[j]);
        out[j] = static_cast<float>(std::cos(angle));
        out[half + j] = static_cast<float>(std::sin(angle));
      }
    }
  }
  return pages_[page].get() + 2 * half * (position % PAGE);
}

}  // namespace genserve
