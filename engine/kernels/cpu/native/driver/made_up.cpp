#include "made_up.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>

namespace genserve::driver {

namespace {

std::mt19937 random_bits(1);

float random_float() { return static_cast<float>(random_bits() % 2000) / 1000.0f - 1.0f; }

size_t size_of(Format format) { return format == Format::float32 ? 4 : 2; }

// Writes a number between -1 and 1 in a format, and answers it.
double put_random(Format format, uint8_t* out) {
  const auto bits = static_cast<uint16_t>(random_bits());
  const int sign = bits >> 15 ? -1 : 1, exponent = bits >> 10 & 7;
  if (format == Format::float32) {
    const float value = random_float();
    std::memcpy(out, &value, sizeof value);
    return value;
  }
  const int mantissa_bits = format == Format::float16 ? 10 : 7, bias = format == Format::float16 ? 15 : 127;
  const int mantissa = bits & ((1 << mantissa_bits) - 1);
  const auto word = static_cast<uint16_t>((bits & 0x8000) | (bias - 8 + exponent) << mantissa_bits | mantissa);
  std::memcpy(out, &word, sizeof word);
  return sign * std::ldexp(1.0 + std::ldexp(mantissa, -mantissa_bits), exponent - 8);
}

}  // namespace

void require(bool is_true, const char* what) {
  if (is_true) return;
  std::printf("failed: %s\n", what);
  std::exit(1);
}

std::vector<float> random_floats(size_t size) {
  std::vector<float> values(size);
  for (float& each : values) each = random_float();
  return values;
}

MadeUpMatrix made_up_floats(int rows, int columns, Format format) {
  const size_t size = static_cast<size_t>(rows) * columns, each = size_of(format);
  std::vector<uint8_t> bytes(size * each);
  MadeUpMatrix made;
  for (size_t i = 0; i < size; ++i) made.values.push_back(put_random(format, bytes.data() + i * each));
  made.packed = std::make_shared<PackedMatrix>(bytes.data(), format, rows, columns);
  return made;
}

MadeUpMatrix made_up_quantized(int rows, int columns, int bits, int group, Format scale_format) {
  const size_t row_words = static_cast<size_t>(columns) * bits / 32, groups = columns / group;
  std::vector<uint32_t> words(rows * row_words);
  for (uint32_t& word : words) word = static_cast<uint32_t>(random_bits());
  std::vector<uint8_t> scales(rows * groups * size_of(scale_format)), biases(scales.size());
  MadeUpMatrix made;
  for (int row = 0; row < rows; ++row)
    for (size_t g = 0; g < groups; ++g) {
      const size_t at = (row * groups + g) * size_of(scale_format);
      const double scale = put_random(scale_format, scales.data() + at);
      const double bias = put_random(scale_format, biases.data() + at);
      for (int column = static_cast<int>(g) * group; column < static_cast<int>(g + 1) * group; ++column) {
        uint32_t value = 0;  // a bit at a time, which no packing does
        for (int bit = 0; bit < bits; ++bit) {
          const size_t place = static_cast<size_t>(column) * bits + bit;
          value |= (words[row * row_words + place / 32] >> place % 32 & 1u) << bit;
        }
        made.values.push_back(scale * value + bias);
      }
    }
  made.packed = std::make_shared<PackedMatrix>(
      words.data(), scales.data(), biases.data(), scale_format, rows, columns, bits, group);
  return made;
}

}  // namespace genserve::driver
