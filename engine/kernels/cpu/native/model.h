// A decoder as the kernels see it: numbers, packed matrices, adapters. Knows nothing of MLX.
#pragma once
#include <memory>
#include <mutex>
#include <vector>

#include "adapters.h"
#include "kernels.h"
#include "large_pages.h"
#include "packed.h"

namespace genserve {

struct Shape {
  int hidden, intermediate, num_heads, kv_heads, head_dim;
  float eps;
  int window;      // 0 for none
  int block_size;  // of the paged cache
};

struct Projection {
  std::shared_ptr<PackedMatrix> weight;
  std::vector<float> bias;  // empty for none
};

enum Module { Q, K, V, O, GATE, UP, DOWN, NUM_MODULES };

struct Layer {
  Projection modules[NUM_MODULES];
  std::vector<float> input_norm, post_norm, q_norm, k_norm;  // the last two empty for none
};

// Cosines and sines by position, computed once for a page of positions and kept.
class Rotation {
 public:
  Rotation(std::vector<float> wavelengths, float magnitude);
  Rotation(Rotation&&) = default;
  // (head_dim / 2) cosines, then as many sines. Not for several threads at once.
  const float* at(int position);
  float magnitude() const { return magnitude_; }

 private:
  static constexpr int PAGE = 64;
  std::vector<float> wavelengths_;
  float magnitude_;
  std::vector<std::unique_ptr<float[]>> pages_;
};

// The rows of one forward pass, and where their keys lie.
struct Batch {
  int rows;
  const int32_t *positions, *slots, *sequence_of;
  const int32_t* tables;  // (sequences, table_width)
  int table_width;
  const int32_t* adapter_of;  // or null
};

struct Decoder {
  Shape shape;
  Rotation rotation;
  std::vector<Layer> layers;
  const Kernels* kernels;
  LargePages large_pages{};
};

// Half-layers [first, last) of rows x (rows, hidden), in place: 2 i is layer i's attention, 2 i + 1 its feed-forward.
// `caches` holds those of the attention halves in the range, in order; `adapters` may be null.
void run_halves(
    const std::shared_ptr<Decoder>&, int first, int last, float* x, const Batch&, std::vector<Cache> caches,
    std::shared_ptr<const Adapters>);

// out (rows, outputs) = x @ w.T, and its gradient dx = dy @ w.
void multiply(const Kernels&, const Matrix&, const float* x, int rows, float* out);
void multiply_back(const Kernels&, const Matrix&, const float* dy, int rows, float* dx);
// Rows of the table, out (count, columns).
void look_up(const Kernels&, const Matrix&, const int32_t* indices, int count, float* out);
// norm(x[rows]) @ head.T
void head(
    const Kernels&, const Matrix&, const float* norm, float eps, const float* x, const int32_t* rows, int count,
    float* out);
// One token a row; knobs (rows, 5).
void draw(const Kernels&, const float* logits, int rows, int size, const float* knobs, bool is_greedy, int32_t* out);

}  // namespace genserve
