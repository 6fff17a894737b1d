// Made-up matrices and rows, and what is required of results. Every buffer has exactly the size it must have, and
// begins where only its elements must begin, so that a step beyond it is seen.
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

#include "../kernels.h"
#include "../packed.h"

namespace genserve::driver {

void require(bool is_true, const char* what);

// Elements that begin one after an aligned boundary.
template <class T>
class Unaligned {
 public:
  explicit Unaligned(size_t size) : memory_(size + 1), size_(size) {}
  explicit Unaligned(const std::vector<T>& values) : Unaligned(values.size()) {
    for (size_t i = 0; i < size_; ++i) memory_[i + 1] = values[i];
  }
  T* data() { return memory_.data() + 1; }
  const T* data() const { return memory_.data() + 1; }
  size_t size() const { return size_; }
  T& operator[](size_t i) { return memory_[i + 1]; }
  bool operator==(const Unaligned& other) const {
    return std::vector<T>(data(), data() + size_) == std::vector<T>(other.data(), other.data() + size_);
  }

 private:
  std::vector<T> memory_;
  size_t size_;
};

std::vector<float> random_floats(size_t size);

// A packed matrix beside its exact values, (rows, columns).
struct MadeUpMatrix {
  std::shared_ptr<PackedMatrix> packed;
  std::vector<double> values;
};
MadeUpMatrix made_up_floats(int rows, int columns, Format format);
MadeUpMatrix made_up_quantized(int rows, int columns, int bits, int group, Format scales);

void try_products(const Kernels&);
void try_halves(const Kernels&);
void try_draw(const Kernels&);
void try_pool(const Kernels&);

}  // namespace genserve::driver
