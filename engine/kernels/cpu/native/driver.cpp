// The kernels without Python, for sanitizers and valgrind:
//   cmake -S engine/kernels/cpu/native -B build/asan -DGENSERVE_DRIVER=ON -DGENSERVE_SANITIZE=address,undefined
//   cmake --build build/asan && build/asan/driver
// Every buffer has exactly the size it must have, odd sizes and unaligned activations included, so that a step beyond
// it is seen; and results are compared over threads, so that a race is.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "model.h"
#include "pool.h"

using namespace genserve;

namespace {

std::mt19937 random_bits(1);

float random_float() { return static_cast<float>(random_bits() % 2000) / 1000.0f - 1.0f; }

std::vector<float> random_floats(size_t size) {
  std::vector<float> values(size);
  for (float& each : values) each = random_float();
  return values;
}

void require(bool is_true, const char* what) {
  if (is_true) return;
  std::printf("failed: %s\n", what);
  std::exit(1);
}

std::shared_ptr<PackedMatrix> random_quantized(int rows, int columns, int bits, int group) {
  std::vector<uint32_t> words(static_cast<size_t>(rows) * columns * bits / 32);
  for (uint32_t& word : words) word = static_cast<uint32_t>(random_bits());
  const float step = 2.0f / static_cast<float>(1 << bits) / std::sqrt(static_cast<float>(columns));
  std::vector<float> scales(static_cast<size_t>(rows) * columns / group, step);
  std::vector<float> biases(scales.size(), -step * static_cast<float>(1 << (bits - 1)));
  return std::make_shared<PackedMatrix>(
      words.data(), scales.data(), biases.data(), Format::float32, rows, columns, bits, group);
}

std::shared_ptr<PackedMatrix> random_matrix(int rows, int columns) {
  const std::vector<float> values = random_floats(static_cast<size_t>(rows) * columns);
  return std::make_shared<PackedMatrix>(values.data(), Format::float32, rows, columns);
}

// Activations one float after a boundary, in a buffer that ends with them.
void try_product(const Kernels& kernels, const PackedMatrix& w, int rows) {
  const Matrix& view = w.view();
  const size_t columns = view.columns, outputs = view.rows;
  const std::vector<float> buffer = random_floats(1 + rows * columns);
  std::vector<float> out(rows * outputs), again(outputs), back(rows * columns);
  multiply(kernels, view, buffer.data() + 1, rows, out.data());
  multiply_back(kernels, view, out.data(), rows, back.data());
  if (rows == 0) return;
  multiply(kernels, view, buffer.data() + 1 + (rows - 1) * columns, 1, again.data());
  require(std::memcmp(again.data(), out.data() + (rows - 1) * outputs, outputs * 4) == 0, "a row alone has the same bits");
  std::vector<float> row(columns);
  const int32_t last = view.rows - 1;
  look_up(kernels, view, &last, 1, row.data());
}

void try_products(const Kernels& kernels) {
  for (int bits : {2, 3, 4, 5, 6, 8})
    for (int rows : {0, 1, 3, 13, 29}) try_product(kernels, *random_quantized(33 + bits, 128, bits, 32), rows);
  for (int columns : {1, 7, 65, 577})
    for (int rows : {1, 2, 11, 30}) try_product(kernels, *random_matrix(columns % 50 + 1, columns), rows);
}

struct Store {
  std::vector<uint8_t> keys, values;
  std::vector<float> key_scales, value_scales;
  Cache cache;
};

Store make_store(int slots, int heads, int head_dim, Format format) {
  const size_t size = format == Format::float32 ? 4 : format == Format::float16 ? 2 : 1;
  Store store;
  store.keys.resize(slots * heads * head_dim * size);
  store.values.resize(store.keys.size());
  store.key_scales.resize(static_cast<size_t>(slots) * heads);
  store.value_scales.resize(store.key_scales.size());
  store.cache = {store.keys.data(), store.values.data(), store.key_scales.data(), store.value_scales.data(), format, heads, head_dim};
  return store;
}

std::vector<float> run_model(
    const std::shared_ptr<Decoder>& decoder, Format format, const std::shared_ptr<Adapters>& adapters,
    const std::vector<int>& chunks) {
  const Shape& shape = decoder->shape;
  const int total = 300, blocks = (total + shape.block_size - 1) / shape.block_size;
  std::vector<int32_t> table(blocks);
  for (int i = 0; i < blocks; ++i) table[i] = blocks - 1 - i;
  Store store = make_store(blocks * shape.block_size, shape.kv_heads, shape.head_dim, format);
  std::mt19937 same(7);
  std::vector<float> x(static_cast<size_t>(total) * shape.hidden);
  for (float& each : x) each = static_cast<float>(same() % 2000) / 1000.0f - 1.0f;
  int start = 0;
  for (int count : chunks) {
    std::vector<int32_t> positions(count), slots(count), sequences(count, 0), adapter_of(count, 0);
    for (int i = 0; i < count; ++i) {
      positions[i] = start + i;
      slots[i] = table[(start + i) / shape.block_size] * shape.block_size + (start + i) % shape.block_size;
    }
    const Batch batch{count, positions.data(), slots.data(), sequences.data(), table.data(), blocks, adapter_of.data()};
    run_halves(decoder, 0, 2, x.data() + static_cast<size_t>(start) * shape.hidden, batch, {store.cache}, adapters);
    start += count;
  }
  x.resize(static_cast<size_t>(start) * shape.hidden);
  return x;
}

void try_model(const Kernels& kernels, int hidden, int heads, int kv_heads, int head_dim, int window) {
  const Shape shape{hidden, 70, heads, kv_heads, head_dim, 1e-5f, window, 16};
  std::vector<float> wavelengths(head_dim / 2);
  for (size_t i = 0; i < wavelengths.size(); ++i) wavelengths[i] = std::pow(10000.0f, 2.0f * float(i) / float(head_dim));
  auto decoder = std::make_shared<Decoder>(Decoder{shape, Rotation(wavelengths, 1.0f), {}, &kernels});
  const int q = heads * head_dim, kv = kv_heads * head_dim;
  Layer layer;
  const int sizes[NUM_MODULES][2] = {{q, hidden}, {kv, hidden}, {kv, hidden}, {hidden, q}, {70, hidden}, {70, hidden}, {hidden, 70}};
  auto adapters = std::make_shared<Adapters>(Adapters{{std::vector<StackedModule>(NUM_MODULES)}, 1});
  struct Owner {
    std::vector<float> a, b, scale{0.5f, 0.5f, 0.5f};
    std::vector<int32_t> starts{0, 3};
  };
  for (int i = 0; i < NUM_MODULES; ++i) {
    layer.modules[i] = {random_matrix(sizes[i][0], sizes[i][1]), random_floats(sizes[i][0])};
    auto owner = std::make_shared<Owner>();
    owner->a = random_floats(static_cast<size_t>(3) * sizes[i][1]);
    owner->b = random_floats(static_cast<size_t>(3) * sizes[i][0]);
    adapters->layers[0][i] = {owner->a.data(), owner->b.data(), owner->scale.data(), owner->starts.data(), 3, owner};
  }
  layer.input_norm = layer.post_norm = std::vector<float>(hidden, 1.0f);
  layer.q_norm = layer.k_norm = std::vector<float>(head_dim, 1.0f);
  decoder->layers.push_back(layer);
  for (Format format : {Format::float32, Format::float16, Format::int8}) {
    Pool::instance().resize(2);
    const std::vector<float> whole = run_model(decoder, format, adapters, {262, 1, 1});
    Pool::instance().resize(5);
    const std::vector<float> cut = run_model(decoder, format, adapters, {1, 1, 38, 200, 21, 1, 1, 1});
    require(whole == cut, "chunks and threads do not change a bit");
  }
  Pool::instance().resize(0);
}

void try_draw(const Kernels& kernels) {
  for (int size : {1, 5, 1000, 4099}) {
    const int rows = 3;
    const std::vector<float> logits = random_floats(static_cast<size_t>(rows) * size);
    for (float top_p : {0.0f, 0.5f, 1.0f}) {
      std::vector<float> knobs;
      for (int row = 0; row < rows; ++row) knobs.insert(knobs.end(), {0.5f * float(row), 7, top_p, 0.01f, 0.999f});
      std::vector<int32_t> tokens(rows);
      draw(kernels, logits.data(), rows, size, knobs.data(), false, tokens.data());
      for (int32_t token : tokens) require(token >= 0 && token < size, "a token of the vocabulary");
    }
  }
}

// Callers on many threads, pools of many sizes.
void try_pool(const Kernels& kernels) {
  const auto w = random_quantized(256, 64, 4, 32);
  const std::vector<float> x = random_floats(3 * 64);
  std::vector<float> expected(3 * 256);
  multiply(kernels, w->view(), x.data(), 3, expected.data());
  for (int size : {1, 2, 7}) {
    Pool::instance().resize(size);
    std::vector<std::thread> callers;
    for (int caller = 0; caller < 3; ++caller)
      callers.emplace_back([&] {
        std::vector<float> out(expected.size());
        for (int turn = 0; turn < 50; ++turn) {
          multiply(kernels, w->view(), x.data(), 3, out.data());
          require(out == expected, "one result on all threads");
        }
      });
    for (std::thread& caller : callers) caller.join();
  }
  Pool::instance().resize(0);
}

}  // namespace

int main() {
  for (const char* name : {"avx512", "avx2", "generic", "neon"}) {
    const Kernels* kernels = find_kernels(name);
    if (kernels == nullptr) continue;
    std::printf("%s\n", name);
    try_products(*kernels);
    try_model(*kernels, 75, 4, 2, 26, 0);
    try_model(*kernels, 64, 6, 1, 80, 40);
    try_model(*kernels, 33, 3, 3, 64, 0);
    try_draw(*kernels);
    try_pool(*kernels);
  }
  Pool::instance().resize(1);
  std::printf("all is well\n");
}
