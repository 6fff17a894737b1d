// Both halves of a layer: the same bits in any chunks, on any number of threads and beside any other rows, and near to
// what the plain fallback gives.
#include <cmath>
#include <cstring>

#include "../model.h"
#include "../pool.h"
#include "made_up.h"

namespace genserve::driver {

namespace {

constexpr int TOKENS = 540, RANKS = 7;

struct Store {
  Unaligned<uint16_t> keys, values;  // the widest alignment that every format has
  Unaligned<float> key_scales, value_scales;
  Cache cache;

  Store(int slots, int heads, int head_dim, Format format)
      : keys(bytes(slots, heads, head_dim, format) / 2), values(keys.size()),
        key_scales(format == Format::int8 ? static_cast<size_t>(slots) * heads : 0), value_scales(key_scales.size()),
        cache{at(keys, format), at(values, format), key_scales.data(), value_scales.data(), format, heads, head_dim, slots} {}

  static size_t bytes(int slots, int heads, int head_dim, Format format) {
    const size_t size = format == Format::float32 ? 4 : format == Format::float16 ? 2 : 1;
    return static_cast<size_t>(slots) * heads * head_dim * size;
  }
  static uint8_t* at(Unaligned<uint16_t>& from, Format format) {
    return reinterpret_cast<uint8_t*>(from.data() - (format == Format::float32 ? 1 : 0));
  }
};

// Rows [first, first + count) of a sequence.
struct Run {
  int sequence, first, count;
};
using Step = std::vector<Run>;

// What each sequence's rows become, when the steps are taken one after the other. Sequence 1 has no adapter.
std::vector<std::vector<float>> run_steps(
    const std::shared_ptr<Decoder>& decoder, Format format, const std::shared_ptr<Adapters>& adapters,
    const std::vector<Step>& steps) {
  const Shape& shape = decoder->shape;
  const size_t hidden = shape.hidden;
  const int width = (TOKENS + shape.block_size - 1) / shape.block_size, blocks = 2 * width;
  std::vector<int32_t> tables(blocks);
  for (int i = 0; i < blocks; ++i) tables[i] = blocks - 1 - i;
  Store store(blocks * shape.block_size, shape.kv_heads, shape.head_dim, format);
  std::vector<std::vector<float>> results(2);
  for (const Step& step : steps) {
    std::vector<int32_t> positions, slots, sequences, adapter_of;
    std::vector<float> given;
    for (const Run& run : step)
      for (int position = run.first; position < run.first + run.count; ++position) {
        positions.push_back(position);
        const int32_t block = tables[run.sequence * width + position / shape.block_size];
        slots.push_back(block * shape.block_size + position % shape.block_size);
        sequences.push_back(run.sequence);
        adapter_of.push_back(run.sequence == 0 ? 0 : -1);
        for (size_t k = 0; k < hidden; ++k)
          given.push_back(std::sin(0.1f * float(position * 7 + run.sequence * 3) + float(k * k)));
      }
    Unaligned<float> x(given);
    const Batch batch{
        static_cast<int>(positions.size()), positions.data(), slots.data(), sequences.data(), tables.data(), width,
        adapter_of.data()};
    run_halves(decoder, 0, 2, x.data(), batch, {store.cache}, adapters);
    for (size_t row = 0; row < positions.size(); ++row) {
      const float* from = x.data() + row * hidden;
      std::vector<float>& result = results[sequences[row]];
      result.insert(result.end(), from, from + hidden);
    }
  }
  return results;
}

struct Model {
  std::shared_ptr<Decoder> decoder;
  std::shared_ptr<Adapters> adapters;
};

// `bits`: 0 for floats.
Model made_up_model(const Kernels& kernels, Shape shape, int bits) {
  std::vector<float> wavelengths(shape.head_dim / 2);
  for (size_t i = 0; i < wavelengths.size(); ++i)
    wavelengths[i] = std::pow(10000.0f, 2.0f * float(i) / float(shape.head_dim));
  auto decoder = std::make_shared<Decoder>(Decoder{shape, Rotation(wavelengths, 1.0f), {}, &kernels});
  auto adapters = std::make_shared<Adapters>(Adapters{{std::vector<StackedModule>(NUM_MODULES)}, 1});
  const int q = shape.num_heads * shape.head_dim, kv = shape.kv_heads * shape.head_dim;
  const int hidden = shape.hidden, inner = shape.intermediate;
  const int sizes[NUM_MODULES][2] = {{q, hidden}, {kv, hidden}, {kv, hidden}, {hidden, q}, {inner, hidden}, {inner, hidden}, {hidden, inner}};
  struct Owner {
    std::vector<float> a, scale = std::vector<float>(RANKS, 0.5f);
    std::vector<int32_t> starts{0, RANKS};
  };
  Layer layer;
  for (int i = 0; i < NUM_MODULES; ++i) {
    const auto [rows, columns] = sizes[i];
    const MadeUpMatrix w = bits == 0 ? made_up_floats(rows, columns, i % 2 == 0 ? Format::float32 : Format::bfloat16)
                                     : made_up_quantized(rows, columns, bits, 32, Format::float16);
    layer.modules[i] = {w.packed, random_floats(rows)};
    auto owner = std::make_shared<Owner>();
    owner->a = random_floats(static_cast<size_t>(RANKS) * columns);
    StackedModule& stacked = adapters->layers[0][i];
    stacked = {owner->a.data(), owner->scale.data(), owner->starts.data(), RANKS, columns, rows, owner, nullptr};
    stacked.write(random_floats(static_cast<size_t>(RANKS) * rows).data(), 0, RANKS);
  }
  layer.input_norm = layer.post_norm = random_floats(hidden);
  layer.q_norm = layer.k_norm = random_floats(shape.head_dim);
  decoder->layers.push_back(layer);
  return {decoder, adapters};
}

bool are_near(const std::vector<float>& some, const std::vector<float>& others) {
  float difference = 0, largest = 0;
  for (size_t i = 0; i < some.size(); ++i) {
    difference = std::fmax(difference, std::fabs(some[i] - others[i]));
    largest = std::fmax(largest, std::fabs(others[i]));
  }
  return some.size() == others.size() && difference <= 1e-4f * largest;
}

void try_model(const Kernels& kernels, const Shape& shape, int bits) {
  const Model model = made_up_model(kernels, shape, bits);
  for (Format format : {Format::float32, Format::float16, Format::int8}) {
    const auto run = [&](int threads, const std::vector<Step>& steps) {
      Pool::instance().resize(threads);
      return run_steps(model.decoder, format, model.adapters, steps);
    };
    const auto whole = run(2, {{{0, 0, 262}}, {{0, 262, 1}}, {{0, 263, 1}}});
    const auto cut = run(
        3, {{{0, 0, 1}}, {{0, 1, 1}}, {{0, 2, 38}}, {}, {{0, 40, 200}}, {{0, 240, 22}}, {{0, 262, 1}}, {{0, 263, 1}}});
    require(whole[0] == cut[0], "chunks and threads do not change a bit");
    const auto beside = run(
        4, {{{1, 0, 30}, {0, 0, 100}}, {{0, 100, 163}, {1, 30, 1}}, {{1, 31, 1}, {0, 263, 1}}});
    require(whole[0] == beside[0], "other rows and their adapters do not change a bit");
    require(run(1, {{{1, 0, 32}}})[1] == beside[1], "nor those of a row that has none");
    if (format != Format::float32) continue;  // a rounding in the cache may fall otherwise
    model.decoder->kernels = find_kernels("generic");
    require(are_near(whole[0], run(2, {{{0, 0, 264}}})[0]), "the halves are near to the plain fallback's");
    model.decoder->kernels = &kernels;
  }
}

// Rows alone that one thread gives all heads of a split, and sequences of several splits.
void try_long(const Kernels& kernels, const Shape& shape) {
  const Model model = made_up_model(kernels, shape, 0);
  for (Format format : {Format::float32, Format::float16, Format::int8}) {
    std::vector<Step> alone{{{0, 0, 510}}};
    for (int row = 510; row < 530; ++row) alone.push_back({{0, row, 1}});
    Pool::instance().resize(1);
    const auto one_by_one = run_steps(model.decoder, format, model.adapters, alone);
    Pool::instance().resize(3);
    const auto together = run_steps(model.decoder, format, model.adapters, {{{0, 0, 270}}, {{0, 270, 260}}});
    require(one_by_one[0] == together[0], "heads that are read together do not change a bit");
  }
}

}  // namespace

void try_halves(const Kernels& kernels) {
  constexpr float EPS = 1e-5f;
  try_model(kernels, {75, 70, 4, 2, 26, EPS, 0, 16}, 0);
  try_model(kernels, {64, 96, 6, 1, 80, EPS, 40, 17}, 0);
  try_model(kernels, {33, 70, 3, 3, 64, EPS, 0, 16}, 0);
  try_model(kernels, {96, 64, 2, 1, 96, EPS, 0, 8}, 5);
  try_model(kernels, {64, 96, 2, 2, 128, EPS, 300, 32}, 4);
  try_long(kernels, {16, 24, 6, 3, 26, EPS, 0, 16});
  try_long(kernels, {16, 24, 12, 2, 64, EPS, 0, 32});
  try_long(kernels, {16, 24, 12, 4, 20, EPS, 40, 17});
  Pool::instance().resize(0);
}

}  // namespace genserve::driver
