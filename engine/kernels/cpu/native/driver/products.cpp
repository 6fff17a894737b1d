// Products, their transposes, rows of a table and the head: near to float64, and the same bits for a row alone and on
// any number of threads.
#include <cmath>
#include <cstring>

#include "../model.h"
#include "../pool.h"
#include "made_up.h"

namespace genserve::driver {

namespace {

constexpr float EPS = 1e-5f;

// One element against float64, by the sum of its terms' sizes: what rounding is proportional to.
struct Sum {
  double value = 0, size = 0;
  void add(double term) { value += term, size += std::fabs(term); }
  bool is_near(float got) const { return std::fabs(got - value) <= 2e-6 * size + 1e-30; }
};

void compare(const MadeUpMatrix& w, const float* x, int rows, const float* out, const char* what) {
  const size_t outputs = w.packed->view().rows, columns = w.packed->view().columns;
  for (int row = 0; row < rows; ++row)
    for (size_t n = 0; n < outputs; ++n) {
      Sum sum;
      for (size_t k = 0; k < columns; ++k) sum.add(w.values[n * columns + k] * x[row * columns + k]);
      require(sum.is_near(out[row * outputs + n]), what);
    }
}

void compare_back(const MadeUpMatrix& w, const float* dy, int rows, const float* dx) {
  const size_t outputs = w.packed->view().rows, columns = w.packed->view().columns;
  for (int row = 0; row < rows; ++row)
    for (size_t k = 0; k < columns; ++k) {
      Sum sum;
      for (size_t n = 0; n < outputs; ++n) sum.add(w.values[n * columns + k] * dy[row * outputs + n]);
      require(sum.is_near(dx[row * columns + k]), "a gradient is near to float64");
    }
}

void try_rows_of_table(const Kernels& kernels, const MadeUpMatrix& w) {
  const Matrix& view = w.packed->view();
  const size_t columns = view.columns;
  const std::vector<int32_t> indices = {view.rows - 1, 0, view.rows / 2};
  Unaligned<float> rows(indices.size() * columns);
  look_up(kernels, view, indices.data(), static_cast<int>(indices.size()), rows.data());
  for (size_t i = 0; i < rows.size(); ++i) {
    const double value = w.values[indices[i / columns] * columns + i % columns];
    require(std::fabs(rows[i] - value) <= 1e-5 * std::fabs(value) + 1e-4, "a row of the table is near to float64");
  }
  look_up(kernels, view, indices.data(), 0, nullptr);
}

void try_head(const Kernels& kernels, const MadeUpMatrix& w, const Unaligned<float>& x, int rows) {
  const Matrix& view = w.packed->view();
  const size_t columns = view.columns, outputs = view.rows;
  const Unaligned<float> norm(random_floats(columns));
  const std::vector<int32_t> chosen = {rows - 1, 0};
  Unaligned<float> logits(chosen.size() * outputs);
  head(kernels, view, norm.data(), EPS, x.data(), chosen.data(), static_cast<int>(chosen.size()), logits.data());
  head(kernels, view, norm.data(), EPS, x.data(), nullptr, 0, nullptr);
  for (size_t i = 0; i < chosen.size(); ++i) {
    const float* row = x.data() + chosen[i] * columns;
    double squares = 0;
    for (size_t k = 0; k < columns; ++k) squares += static_cast<double>(row[k]) * row[k];
    const double inverse = 1 / std::sqrt(squares / static_cast<double>(columns) + EPS);
    for (size_t n = 0; n < outputs; ++n) {
      Sum sum;
      for (size_t k = 0; k < columns; ++k) sum.add(row[k] * inverse * norm.data()[k] * w.values[n * columns + k]);
      require(sum.is_near(logits[i * outputs + n]), "a logit is near to float64");
    }
  }
}

void try_product(const Kernels& kernels, const MadeUpMatrix& w, int rows) {
  const Matrix& view = w.packed->view();
  const size_t columns = view.columns, outputs = view.rows;
  const Unaligned<float> x(random_floats(rows * columns)), dy(random_floats(rows * outputs));
  Unaligned<float> out(rows * outputs), back(rows * columns), again(outputs), back_again(columns);
  multiply(kernels, view, x.data(), rows, out.data());
  multiply_back(kernels, view, dy.data(), rows, back.data());
  if (rows == 0) return;
  compare(w, x.data(), rows, out.data(), "a product is near to float64");
  compare_back(w, dy.data(), rows, back.data());
  Pool::instance().resize(1 + rows % 4);
  const int last = rows - 1;
  multiply(kernels, view, x.data() + last * columns, 1, again.data());
  multiply_back(kernels, view, dy.data() + last * outputs, 1, back_again.data());
  require(std::memcmp(again.data(), out.data() + last * outputs, outputs * sizeof(float)) == 0 &&
              std::memcmp(back_again.data(), back.data() + last * columns, columns * sizeof(float)) == 0,
          "a row alone, on other threads, has the same bits");
  try_head(kernels, w, x, rows);
}

void try_matrix(const Kernels& kernels, const MadeUpMatrix& w) {
  for (int rows : {0, 1, 3, 13, 29}) try_product(kernels, w, rows);
  try_rows_of_table(kernels, w);
}

}  // namespace

void try_products(const Kernels& kernels) {
  const Format formats[] = {Format::float32, Format::float16, Format::bfloat16};
  for (int bits : {2, 3, 4, 5, 6, 8})
    for (int group : {32, 64, 128})
      try_matrix(kernels, made_up_quantized(33 + bits, 5 * group, bits, group, formats[(bits + group / 32) % 3]));
  for (int columns : {1, 7, 65, 577})
    for (Format format : formats) try_matrix(kernels, made_up_floats(columns % 50 + 1, columns, format));
  Pool::instance().resize(0);
}

}  // namespace genserve::driver
