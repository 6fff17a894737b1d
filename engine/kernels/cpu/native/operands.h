// Arrays of MLX as memory, in a primitive's evaluation.
#pragma once
#include <future>
#include <stdexcept>
#include <string>
#include <vector>

#include "mlx/allocator.h"
#include "mlx/array.h"
#include "mlx/backend/common/utils.h"
#include "mlx/backend/cpu/encoder.h"
#include "mlx/primitives.h"

namespace genserve {

namespace mx = mlx::core;

// An input's elements in row order: itself if it lies so, else a copy made when the operation runs.
template <class T>
class Input {
 public:
  explicit Input(const mx::array& a)
      : data_(a.data<T>()), is_in_order_(a.flags().row_contiguous), size_(a.size()), shape_(a.shape()), strides_(a.strides()) {}

  const T* read() {
    if (is_in_order_) return data_;
    copy_.resize(size_);
    for (size_t i = 0; i < size_; ++i) copy_[i] = data_[mx::elem_to_loc(static_cast<int>(i), shape_, strides_)];
    return copy_.data();
  }

 private:
  const T* data_;
  bool is_in_order_;
  size_t size_;
  mx::Shape shape_;
  mx::Strides strides_;
  std::vector<T> copy_;
};

template <class T>
T* allocate(mx::array& out) {
  out.set_data(mx::allocator::malloc(out.nbytes()));
  return out.data<T>();
}

inline void check_range(const int32_t* values, size_t count, int64_t end, const char* what) {
  for (size_t i = 0; i < count; ++i)
    if (values[i] < 0 || values[i] >= end)
      throw std::out_of_range(
          std::string(what) + " " + std::to_string(values[i]) + " is not in [0, " + std::to_string(end) + ")");
}

// A primitive of one output that runs on a CPU stream only.
class CpuPrimitive : public mx::UnaryPrimitive {
 public:
  using UnaryPrimitive::UnaryPrimitive;
  void eval_gpu(const std::vector<mx::array>&, mx::array&) override {
    throw std::runtime_error("this kernel runs on the CPU only");
  }
};

}  // namespace genserve
