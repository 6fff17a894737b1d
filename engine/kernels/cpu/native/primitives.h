// The kernels as operations of MLX: lazy, on its CPU stream.
#pragma once
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "mlx/array.h"
#include "model.h"

namespace genserve {

namespace mx = mlx::core;

// What the operations made from now on run with.
const Kernels& active_kernels();
void activate_kernels(const std::string& name);

// x @ w.T for x (..., columns); differentiable in x. And its transpose: x @ w for x (..., rows).
mx::array multiply(const mx::array& x, const std::shared_ptr<PackedMatrix>& w);
mx::array multiply_back(const mx::array& x, const std::shared_ptr<PackedMatrix>& w);

// Rows of w, (indices, columns).
mx::array look_up(const std::shared_ptr<PackedMatrix>& w, const mx::array& indices);

// norm(x[rows]) @ w.T
mx::array head(
    const mx::array& x, const mx::array& rows, const mx::array& norm, float eps, const std::shared_ptr<PackedMatrix>& w);

mx::array draw(const mx::array& logits, const mx::array& knobs, bool is_greedy);

struct BatchArrays {
  mx::array positions, slots, sequence_of, block_tables;
  std::optional<mx::array> adapter_of;
};

// Half-layers [first, last) of x, as `run_halves`. `caches` are keys and values of each attention half (with int8,
// keys, key scales, values and value scales). The answer is the new x, then the caches' successors, which take over
// the memory of those that nobody else holds, and copy the others.
std::vector<mx::array> run(
    const std::shared_ptr<Decoder>& decoder, int first, int last, const mx::array& x, const BatchArrays& batch,
    const std::vector<mx::array>& caches, const std::shared_ptr<Adapters>& adapters);
mx::array run(
    const std::shared_ptr<Decoder>& decoder, int first, int last, const mx::array& x,
    const std::optional<mx::array>& adapter_of, const std::shared_ptr<Adapters>& adapters);

}  // namespace genserve
