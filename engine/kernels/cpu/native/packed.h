// A weight matrix as the kernels read it, made once at load.
//
// Rows stand in blocks of BLOCK, one a lane, so that a vector of weights meets one activation and no sum crosses
// lanes. A quantized block runs along the columns: for each group the rows' scales, then their biases, in the
// checkpoint's own type; then, for each UNIT columns, `bits` words a row. The words hold the four (or two) low bits
// of consecutive columns, lowest first, then what is above them in the same way; with 8 bits, one byte a column.
// So one stream is read in decode, of exactly the checkpoint's size, but for padding to whole blocks.
// A float block is (columns, BLOCK) in the checkpoint's type.
#pragma once
#include <memory>

#include "kernels.h"

namespace genserve {

class PackedMatrix {
 public:
  // MLX's packing: (rows, columns * bits / 32) words, (rows, columns / group) scales and biases.
  PackedMatrix(
      const uint32_t* words, const void* scales, const void* biases, Format scale_format, int rows, int columns,
      int bits, int group);
  PackedMatrix(const void* values, Format format, int rows, int columns);

  const Matrix& view() const { return view_; }
  size_t num_bytes() const { return view_.block_bytes * view_.num_blocks(); }

 private:
  Matrix view_;
  std::shared_ptr<uint8_t> memory_;
};

}  // namespace genserve
