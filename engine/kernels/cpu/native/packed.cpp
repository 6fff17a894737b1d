#include "packed.h"

#include <algorithm>
#include <cstring>

#include "memory.h"
#include "pool.h"

namespace genserve {

namespace {

size_t size_of(Format format) { return format == Format::float32 ? 4 : 2; }

// Value `column` of a row of MLX's words: values lie side by side, lowest bits first, across words.
uint32_t value_at(const uint32_t* row, int column, int bits) {
  const size_t bit = static_cast<size_t>(column) * bits;
  uint64_t pair = row[bit / 32];
  if (bit % 32 + bits > 32) pair |= static_cast<uint64_t>(row[bit / 32 + 1]) << 32;
  return static_cast<uint32_t>(pair >> (bit % 32)) & ((1u << bits) - 1);
}

// `columns` consecutive values' bits [from, from + width) as words of row `lane`: out (words, BLOCK).
void put_plane(const uint32_t* row, int first, int bits, int from, int width, int lane, uint32_t* out) {
  const int run = 32 / width;
  for (int word = 0; word < width; ++word) {
    uint32_t packed = 0;
    for (int j = 0; j < run; ++j)
      packed |= (value_at(row, first + word * run + j, bits) >> from & ((1u << width) - 1)) << (j * width);
    out[word * BLOCK + lane] = packed;
  }
}

void put_unit(const uint32_t* row, int first, int bits, int lane, uint8_t* out) {
  uint32_t* words = reinterpret_cast<uint32_t*>(out);
  if (bits == 8) {
    for (int j = 0; j < UNIT; ++j) out[j * BLOCK + lane] = static_cast<uint8_t>(value_at(row, first + j, 8));
  } else if (bits == 4 || bits == 2) {  // as MLX has it, word for word
    const uint32_t* from = row + static_cast<size_t>(first) * bits / 32;
    for (int word = 0; word < bits; ++word) words[word * BLOCK + lane] = from[word];
  } else {
    const int low = bits > 4 ? 4 : 2;
    put_plane(row, first, bits, 0, low, lane, words);
    put_plane(row, first, bits, low, bits - low, lane, words + low * BLOCK);
  }
}

}  // namespace

PackedMatrix::PackedMatrix(
    const uint32_t* words, const void* scales, const void* biases, Format scale_format, int rows, int columns,
    int bits, int group) {
  const size_t scale_size = size_of(scale_format);
  const size_t unit_bytes = static_cast<size_t>(bits) * BLOCK * 4, row_words = static_cast<size_t>(columns) * bits / 32;
  const size_t group_bytes = 2 * BLOCK * scale_size + group / UNIT * unit_bytes;
  const int num_groups = columns / group;
  view_ = {nullptr, rows, columns, num_groups * group_bytes, Format::quantized, scale_format, bits, group};
  memory_ = allocate_weights(num_bytes());
  view_.data = memory_.get();
  Pool::instance().turn().run([=, view = view_, memory = memory_](Worker& worker) {
    worker.share(view.num_blocks(), [&](int block) {
      uint8_t* out = memory.get() + block * view.block_bytes;
      if ((block + 1) * BLOCK > rows) std::memset(out, 0, view.block_bytes);
      for (int lane = 0; lane < std::min(BLOCK, rows - block * BLOCK); ++lane) {
        const size_t row = static_cast<size_t>(block) * BLOCK + lane;
        for (int g = 0; g < num_groups; ++g) {
          uint8_t* at = out + g * group_bytes;
          const size_t source = (row * num_groups + g) * scale_size;
          std::memcpy(at + lane * scale_size, static_cast<const uint8_t*>(scales) + source, scale_size);
          at += BLOCK * scale_size;
          std::memcpy(at + lane * scale_size, static_cast<const uint8_t*>(biases) + source, scale_size);
          at += BLOCK * scale_size;
          for (int unit = 0; unit < group / UNIT; ++unit)
            put_unit(words + row * row_words, g * group + unit * UNIT, bits, lane, at + unit * unit_bytes);
        }
      }
    });
  });
}

PackedMatrix::PackedMatrix(const void* values, Format format, int rows, int columns) {
  const size_t size = size_of(format);
  view_ = {nullptr, rows, columns, columns * BLOCK * size, format, format, 0, 0};
  memory_ = allocate_weights(num_bytes());
  view_.data = memory_.get();
  Pool::instance().turn().run([=, view = view_, memory = memory_](Worker& worker) {
    worker.share(view.num_blocks(), [&](int block) {
      uint8_t* out = memory.get() + block * view.block_bytes;
      if ((block + 1) * BLOCK > rows) std::memset(out, 0, view.block_bytes);
      for (int lane = 0; lane < std::min(BLOCK, rows - block * BLOCK); ++lane) {
        const uint8_t* row = static_cast<const uint8_t*>(values) + (static_cast<size_t>(block) * BLOCK + lane) * columns * size;
        for (int k = 0; k < columns; ++k)
          std::memcpy(out + (static_cast<size_t>(k) * BLOCK + lane) * size, row + k * size, size);
      }
    });
  });
}

}  // namespace genserve
