// Half-layers as one operation, with the cache written in place.
//
// MLX gives an input's memory to an output when nobody else holds it. Two things stand in the way here. Every output
// of an operation holds its inputs, so all but one must let go first. And the stream holds the buffers of operations
// that it has not finished: in a pipeline the step before is one, so its end is awaited, which the caller would do
// next in any case. What is then still held by somebody is copied.
#include <cstring>
#include <stdexcept>

#include "mlx/ops.h"
#include "mlx/utils.h"
#include "operands.h"
#include "primitives.h"

namespace genserve {

namespace {

Format format_of(mx::Dtype dtype) {
  if (dtype == mx::float32) return Format::float32;
  if (dtype == mx::float16) return Format::float16;
  if (dtype == mx::int8) return Format::int8;
  throw std::invalid_argument("keys and values are kept in float32, float16 or int8");
}

void await_stream(mx::Stream stream) {
  std::promise<void> end;
  mx::scheduler::enqueue(stream, [&end] { end.set_value(); });
  end.get_future().wait();
}

class Halves : public mx::Primitive {
 public:
  Halves(mx::Stream stream, std::shared_ptr<Decoder> decoder, int first, int last, std::shared_ptr<Adapters> adapters,
         int num_caches)
      : Primitive(stream), decoder_(std::move(decoder)), adapters_(std::move(adapters)), first_(first), last_(last),
        num_caches_(num_caches) {}

  const char* name() const override { return "Halves"; }

  void eval_gpu(const std::vector<mx::array>&, std::vector<mx::array>&) override {
    throw std::runtime_error("this kernel runs on the CPU only");
  }

  // inputs: x, [positions, slots, sequence_of, block_tables], [adapter_of], caches; outputs: x, caches
  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    auto& encoder = mx::cpu::get_command_encoder(stream());
    const size_t first_cache = inputs.size() - num_caches_;
    bool is_kept = false;  // by a transformation, which will want the inputs again
    for (mx::array& out : outputs) is_kept = is_kept || out.is_tracer();
    for (mx::array& out : outputs)
      if (!is_kept && &out.inputs() != &inputs) out.inputs().clear();
    bool has_waited = false;
    for (int i = 0; i < num_caches_; ++i) succeed(inputs[first_cache + i], outputs[1 + i], has_waited);

    std::vector<Cache> caches;
    const int each = num_caches_ == 0 ? 0 : (outputs[1].dtype() == mx::int8 ? 4 : 2);
    for (int i = 1; i <= num_caches_; i += each) {
      mx::array &keys = outputs[i], &values = outputs[i + each / 2];
      caches.push_back(
          {keys.data<uint8_t>(), values.data<uint8_t>(), each == 4 ? outputs[i + 1].data<float>() : nullptr,
           each == 4 ? outputs[i + 3].data<float>() : nullptr, format_of(keys.dtype()), keys.shape(1), keys.shape(2),
           keys.shape(0)});
    }
    std::vector<Input<int32_t>> integers;
    for (size_t i = 1; i < first_cache; ++i) integers.emplace_back(inputs[i]);
    Extents extents{inputs[0].shape(0), 0, 0, 0};
    if (num_caches_ > 0)
      extents = {inputs[0].shape(0), outputs[1].shape(0), inputs[4].shape(0), inputs[4].shape(1)};
    encoder.dispatch([x = Input<float>(inputs[0]), y = allocate<float>(outputs[0]), bytes = inputs[0].nbytes(),
                      integers = std::move(integers), caches = std::move(caches), extents, decoder = decoder_,
                      adapters = adapters_, first = first_, last = last_]() mutable {
      std::memcpy(y, x.read(), bytes);
      run_halves(decoder, first, last, y, read_batch(integers, extents, *decoder, adapters.get()), caches, adapters);
    });
  }

 private:
  struct Extents {
    int rows, slots, sequences, table_width;
  };

  static Batch read_batch(
      std::vector<Input<int32_t>>& integers, const Extents& extents, const Decoder& decoder, const Adapters* adapters) {
    Batch batch{};
    batch.rows = extents.rows;
    const size_t rows = extents.rows, given = integers.size();
    if (given >= 4) {
      batch.positions = integers[0].read();
      batch.slots = integers[1].read();
      batch.sequence_of = integers[2].read();
      batch.tables = integers[3].read();
      batch.table_width = extents.table_width;
      const int64_t num_blocks = extents.slots / decoder.shape.block_size;
      check_range(batch.positions, rows, static_cast<int64_t>(extents.table_width) * decoder.shape.block_size, "position");
      check_range(batch.slots, rows, extents.slots, "slot");
      check_range(batch.sequence_of, rows, extents.sequences, "sequence");
      check_range(
          batch.tables, static_cast<size_t>(extents.sequences) * extents.table_width, num_blocks, "block");
    }
    if (given % 4 == 1 && adapters != nullptr) {
      batch.adapter_of = integers.back().read();
      for (size_t i = 0; i < rows; ++i)
        if (batch.adapter_of[i] >= adapters->count) throw std::out_of_range("a row's adapter is not in the stack");
    }
    return batch;
  }

  void succeed(const mx::array& old, mx::array& successor, bool& has_waited) {
    const bool is_in_order = old.flags().row_contiguous;
    if (is_in_order && !old.is_donatable() && !has_waited) {
      await_stream(stream());
      has_waited = true;
    }
    if (is_in_order && old.is_donatable()) {
      successor.copy_shared_buffer(old);
      return;
    }
    auto* to = allocate<uint8_t>(successor);
    auto& encoder = mx::cpu::get_command_encoder(stream());
    if (is_in_order) {
      encoder.dispatch([from = old.data<uint8_t>(), to, bytes = old.nbytes()] { std::memcpy(to, from, bytes); });
    } else {
      throw std::invalid_argument("a cache's array must lie in row order");
    }
  }

  std::shared_ptr<Decoder> decoder_;
  std::shared_ptr<Adapters> adapters_;
  int first_, last_, num_caches_;
};

mx::Stream cpu_stream() { return mx::to_stream({}, mx::Device::cpu); }

mx::array rows_of(const Decoder& decoder, const mx::array& x) {
  if (x.ndim() != 2 || x.shape(1) != decoder.shape.hidden)
    throw std::invalid_argument("rows of " + std::to_string(decoder.shape.hidden) + " floats were wanted");
  return mx::astype(x, mx::float32, cpu_stream());
}

void check_halves(const Decoder& decoder, int first, int last) {
  if (first < 0 || last < first || last > 2 * static_cast<int>(decoder.layers.size()))
    throw std::out_of_range("no such layers");
}

mx::array integers(const mx::array& a, size_t size) {
  if (a.size() != size) throw std::invalid_argument("an integer for each row was wanted");
  return mx::astype(a, mx::int32, cpu_stream());
}

}  // namespace

std::vector<mx::array> run(
    const std::shared_ptr<Decoder>& decoder, int first, int last, const mx::array& x, const BatchArrays& batch,
    const std::vector<mx::array>& caches, const std::shared_ptr<Adapters>& adapters) {
  check_halves(*decoder, first, last);
  const Shape& shape = decoder->shape;
  const int num_attentions = (last + 1) / 2 - (first + 1) / 2;
  const size_t rows = x.shape(0), each = caches.empty() || caches[0].dtype() != mx::int8 ? 2 : 4;
  if (caches.size() != each * num_attentions || batch.block_tables.ndim() != 2)
    throw std::invalid_argument("a cache for each attention half, and a table of blocks, were wanted");
  for (size_t i = 0; i < caches.size(); i += each)
    for (size_t j : {i, i + each / 2}) {
      const mx::array& a = caches[j];
      format_of(a.dtype());
      if (a.dtype() != caches[0].dtype() || a.ndim() != 3 || a.shape(0) != caches[0].shape(0) ||
          a.shape(1) != shape.kv_heads || a.shape(2) != shape.head_dim)
        throw std::invalid_argument("caches of (slots, kv_heads, head_dim) were wanted");
      const bool is_scaled = each == 4;
      if (is_scaled && (caches[j + 1].dtype() != mx::float32 || caches[j + 1].shape() != mx::Shape{a.shape(0), a.shape(1)}))
        throw std::invalid_argument("a scale for each of a cache's vectors was wanted");
    }
  std::vector<mx::array> inputs = {
      rows_of(*decoder, x), integers(batch.positions, rows), integers(batch.slots, rows),
      integers(batch.sequence_of, rows), mx::astype(batch.block_tables, mx::int32, cpu_stream())};
  if (batch.adapter_of && adapters != nullptr) inputs.push_back(integers(*batch.adapter_of, rows));
  inputs.insert(inputs.end(), caches.begin(), caches.end());
  std::vector<mx::Shape> shapes = {x.shape()};
  std::vector<mx::Dtype> dtypes = {mx::float32};
  for (const mx::array& cache : caches) {
    shapes.push_back(cache.shape());
    dtypes.push_back(cache.dtype());
  }
  return mx::array::make_arrays(
      std::move(shapes), dtypes,
      std::make_shared<Halves>(cpu_stream(), decoder, first, last, adapters, static_cast<int>(caches.size())), inputs);
}

mx::array run(
    const std::shared_ptr<Decoder>& decoder, int first, int last, const mx::array& x,
    const std::optional<mx::array>& adapter_of, const std::shared_ptr<Adapters>& adapters) {
  check_halves(*decoder, first, last);
  if (last - first != 1 || first % 2 == 0) throw std::invalid_argument("a feed-forward half was wanted");
  std::vector<mx::array> inputs = {rows_of(*decoder, x)};
  if (adapter_of && adapters != nullptr) inputs.push_back(integers(*adapter_of, x.shape(0)));
  return mx::array(
      x.shape(), mx::float32, std::make_shared<Halves>(cpu_stream(), decoder, first, last, adapters, 0), inputs);
}

}  // namespace genserve
