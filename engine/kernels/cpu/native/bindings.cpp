// What Python sees, as `engine.kernels.cpu._native`.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>

#include "mlx/mlx.h"
#include "pool.h"
#include "primitives.h"
#include "unwritten.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace genserve {

namespace {

// What Python holds of an object. Not the object itself: whose last owner may be a thread that must not meet Python.
template <class T>
struct Handle {
  std::shared_ptr<T> of;
};
using MatrixHandle = Handle<PackedMatrix>;
using DecoderHandle = Handle<Decoder>;
using AdaptersHandle = Handle<Adapters>;

// An evaluated array in row order. Loading is eager: packing reads memory.
mx::array settled(const mx::array& a) {
  if (a.is_available() && a.flags().row_contiguous) return a;
  mx::array b = mx::contiguous(a, false, mx::Device::cpu);
  nb::gil_scoped_release release;  // an operation before it may have to ask Python for its end
  b.eval();
  return b;
}

Format float_format(mx::Dtype dtype) {
  if (dtype == mx::float32) return Format::float32;
  if (dtype == mx::float16) return Format::float16;
  if (dtype == mx::bfloat16) return Format::bfloat16;
  throw std::invalid_argument("floats of 32 or 16 bits were wanted");
}

MatrixHandle pack_quantized(
    const mx::array& words, const mx::array& scales, const mx::array& biases, int bits, int group) {
  const bool is_known = (bits >= 2 && bits <= 6) || bits == 8;
  const bool is_matrix = words.ndim() == 2 && words.size() > 0;
  if (!is_known || (group != 32 && group != 64 && group != 128) || !is_matrix || words.dtype() != mx::uint32)
    throw std::invalid_argument("affine words of 2, 3, 4, 5, 6 or 8 bits in groups of 32, 64 or 128 were wanted");
  const int rows = words.shape(0), columns = static_cast<int>(static_cast<int64_t>(words.shape(1)) * 32 / bits);
  const mx::Shape wanted = {rows, columns / group};
  if (columns % group != 0 || scales.shape() != wanted || biases.shape() != wanted || scales.dtype() != biases.dtype())
    throw std::invalid_argument("a scale and a bias of one type for each group were wanted");
  const mx::array w = settled(words), s = settled(scales), b = settled(biases);
  return {std::make_shared<PackedMatrix>(
      w.data<uint32_t>(), s.data<void>(), b.data<void>(), float_format(s.dtype()), rows, columns, bits, group)};
}

MatrixHandle pack_floats(const mx::array& values) {
  if (values.ndim() != 2 || values.size() == 0) throw std::invalid_argument("a matrix was wanted");
  const mx::array v = settled(values);
  return {std::make_shared<PackedMatrix>(v.data<void>(), float_format(v.dtype()), v.shape(0), v.shape(1))};
}

std::vector<float> to_vector(const std::optional<mx::array>& a) {
  if (!a) return {};
  const mx::array b = settled(mx::astype(*a, mx::float32, mx::Device::cpu));
  return {b.data<float>(), b.data<float>() + b.size()};
}

DecoderHandle make_decoder(
    int hidden, int intermediate, int num_heads, int kv_heads, int head_dim, float eps, int window, int block_size,
    const mx::array& wavelengths, float magnitude) {
  if (std::min({hidden, intermediate, num_heads, kv_heads, head_dim, block_size}) < 1 || num_heads % kv_heads != 0 ||
      num_heads / kv_heads > MAX_QUERIES || head_dim % 2 != 0)
    throw std::invalid_argument("these numbers of heads are not known to this kernel");
  if (wavelengths.size() != static_cast<size_t>(head_dim / 2))
    throw std::invalid_argument("a wavelength for each pair of a head's dimensions was wanted");
  const Shape shape{hidden, intermediate, num_heads, kv_heads, head_dim, eps, window, block_size};
  return {std::make_shared<Decoder>(Decoder{shape, Rotation(to_vector(wavelengths), magnitude), {}, &active_kernels()})};
}

void add_layer(
    DecoderHandle& handle, const std::vector<const MatrixHandle*>& weights,
    const std::vector<std::optional<mx::array>>& biases, const mx::array& input_norm, const mx::array& post_norm,
    const std::optional<mx::array>& q_norm, const std::optional<mx::array>& k_norm) {
  Decoder& decoder = *handle.of;
  const Shape& s = decoder.shape;
  const int q = s.num_heads * s.head_dim, kv = s.kv_heads * s.head_dim;
  const int sizes[NUM_MODULES][2] = {{q, s.hidden}, {kv, s.hidden}, {kv, s.hidden}, {s.hidden, q},
                                     {s.intermediate, s.hidden}, {s.intermediate, s.hidden}, {s.hidden, s.intermediate}};
  if (weights.size() != NUM_MODULES || biases.size() != NUM_MODULES) throw std::invalid_argument("seven modules were wanted");
  Layer layer;
  for (int i = 0; i < NUM_MODULES; ++i) {
    const Matrix& view = weights[i]->of->view();
    layer.modules[i] = {weights[i]->of, to_vector(biases[i])};
    if (view.rows != sizes[i][0] || view.columns != sizes[i][1] ||
        (biases[i] && layer.modules[i].bias.size() != static_cast<size_t>(view.rows)))
      throw std::invalid_argument("a module's shape is not what the model's numbers say");
  }
  layer.input_norm = to_vector(input_norm);
  layer.post_norm = to_vector(post_norm);
  layer.q_norm = to_vector(q_norm);
  layer.k_norm = to_vector(k_norm);
  const auto is_size = [](const std::vector<float>& v, int size) { return v.size() == static_cast<size_t>(size); };
  if (!is_size(layer.input_norm, s.hidden) || !is_size(layer.post_norm, s.hidden) ||
      (q_norm && !is_size(layer.q_norm, s.head_dim)) || (k_norm && !is_size(layer.k_norm, s.head_dim)))
    throw std::invalid_argument("a norm's size is not what the model's numbers say");
  decoder.layers.push_back(std::move(layer));
}

// One module's arrays: a (ranks, in), scale (ranks,), starts (adapters + 1,), and b (rows, out) from rank row `first` on:
// all of them at first, later what has changed.
void set_adapters(
    AdaptersHandle& handle, int layer, int module, const mx::array& a, const mx::array& b, const mx::array& scale,
    const mx::array& starts, int first) {
  Adapters& adapters = *handle.of;
  struct Owner {
    mx::array a, scale, starts;
  };
  const auto floats = [](const mx::array& x) { return settled(mx::astype(x, mx::float32, mx::Device::cpu)); };
  auto owner = std::make_shared<Owner>(
      Owner{floats(a), floats(scale), settled(mx::astype(starts, mx::int32, mx::Device::cpu))});
  if (a.ndim() != 2 || b.ndim() != 2) throw std::invalid_argument("matrices were wanted");
  const int ranks = a.shape(0), count = static_cast<int>(owner->starts.size()) - 1;
  if (first < 0 || b.shape(0) > ranks - first || owner->scale.size() != static_cast<size_t>(ranks) || count < 0)
    throw std::invalid_argument("adapters of equal ranks were wanted");
  const int32_t* begins = owner->starts.data<int32_t>();
  for (int i = 0, before = 0; i <= count; before = begins[i++])
    if (begins[i] < before || begins[i] > ranks) throw std::invalid_argument("the adapters' ranks overlap");
  if (adapters.count != 0 && adapters.count != count) throw std::invalid_argument("every module has the same adapters");
  StackedModule& stacked = adapters.layers.at(layer).at(module);
  const bool is_new = stacked.b == nullptr || stacked.ranks != ranks || stacked.outputs != b.shape(1);
  if (is_new && b.shape(0) != ranks) throw std::invalid_argument("all rows of a new module were wanted");
  adapters.count = count;
  stacked = {owner->a.data<float>(), owner->scale.data<float>(), begins, ranks, a.shape(1), b.shape(1), owner,
             is_new ? nullptr : stacked.b};
  stacked.write(floats(b).data<float>(), first, b.shape(0));
}

// What is copied of some adapters, and nothing that lies in arrays: to be `set` before use. Another object, because a
// thread that comes late to a job may still look at this one.
AdaptersHandle copied(const AdaptersHandle& handle) {
  Adapters adapters = *handle.of;
  for (auto& layer : adapters.layers)
    for (StackedModule& module : layer)
      module = {nullptr, nullptr, nullptr, module.ranks, module.inputs, module.outputs, nullptr, module.b};
  return {std::make_shared<Adapters>(std::move(adapters))};
}

std::shared_ptr<Adapters> adapters_for(const Decoder& decoder, const AdaptersHandle* handle) {
  if (handle == nullptr) return nullptr;
  const auto& layers = handle->of->layers;
  bool fits = layers.size() == decoder.layers.size();
  for (size_t i = 0; fits && i < layers.size(); ++i)
    for (int module = 0; module < NUM_MODULES; ++module) {
      const StackedModule& stacked = layers[i][module];
      const Matrix& w = decoder.layers[i].modules[module].weight->view();
      fits = fits && (stacked.ranks == 0 || (stacked.inputs == w.columns && stacked.outputs == w.rows));
    }
  if (!fits) throw std::invalid_argument("adapters of another model");
  return handle->of;
}

AdaptersHandle make_adapters(int num_layers) {
  const std::vector<StackedModule> none(NUM_MODULES);
  return {std::make_shared<Adapters>(Adapters{std::vector<std::vector<StackedModule>>(num_layers, none), 0})};
}

std::vector<mx::array> run_decoder(
    const DecoderHandle& decoder, int first, int last, const mx::array& x, const mx::array& positions,
    const mx::array& slots, const mx::array& sequence_of, const mx::array& block_tables,
    const std::vector<mx::array>& caches, const std::optional<mx::array>& adapter_of, const AdaptersHandle* adapters) {
  return run(
      decoder.of, first, last, x, {positions, slots, sequence_of, block_tables, adapter_of}, caches,
      adapters_for(*decoder.of, adapters));
}

mx::array run_feed_forward(
    const DecoderHandle& decoder, int layer, const mx::array& x, const std::optional<mx::array>& adapter_of,
    const AdaptersHandle* adapters) {
  return run(decoder.of, 2 * layer + 1, 2 * layer + 2, x, adapter_of, adapters_for(*decoder.of, adapters));
}

}  // namespace

}  // namespace genserve

NB_MODULE(_native, m) {
  using namespace genserve;
  nb::module_::import_("mlx.core");

  nb::class_<MatrixHandle>(m, "PackedMatrix")
      .def_prop_ro("shape", [](const MatrixHandle& w) { return nb::make_tuple(w.of->view().rows, w.of->view().columns); })
      .def_prop_ro("num_bytes", [](const MatrixHandle& w) { return w.of->num_bytes(); });
  m.def("pack_quantized", &pack_quantized, "words"_a, "scales"_a, "biases"_a, "bits"_a, "group_size"_a);
  m.def("pack_floats", &pack_floats, "values"_a);
  m.def(
      "unwritten_like",
      [](DecoderHandle& decoder, const mx::array& a) {
        mx::array part = unwritten_like(a);
        const Pool::Turn turn = Pool::instance().turn();
        decoder.of->large_pages.forget(part.data<uint8_t>());
        return part;
      },
      "decoder"_a, "array"_a);
  m.def("forget", [](mx::array& a) { a.overwrite_descriptor(mx::array(0.0f)); }, "array"_a);

  m.def("multiply", [](const mx::array& x, const MatrixHandle& w) { return multiply(x, w.of); }, "x"_a, "w"_a);
  m.def("multiply_back", [](const mx::array& x, const MatrixHandle& w) { return multiply_back(x, w.of); }, "x"_a, "w"_a);
  m.def("look_up", [](const MatrixHandle& w, const mx::array& i) { return look_up(w.of, i); }, "w"_a, "indices"_a);
  m.def(
      "head",
      [](const mx::array& x, const mx::array& rows, const mx::array& norm, float eps, const MatrixHandle& w) {
        return head(x, rows, norm, eps, w.of);
      },
      "x"_a, "rows"_a, "norm"_a, "eps"_a, "w"_a);
  m.def(
      "draw", [](const mx::array& logits, const mx::array& knobs, bool is_greedy) { return draw(logits, knobs, is_greedy); },
      "logits"_a, "knobs"_a, "is_greedy"_a);

  nb::class_<AdaptersHandle>(m, "Adapters")
      .def("copied", &copied)
      .def("set", &set_adapters, "layer"_a, "module"_a, "a"_a, "b"_a, "scale"_a, "starts"_a, "first"_a);
  m.def("make_adapters", &make_adapters, "num_layers"_a);

  nb::class_<DecoderHandle>(m, "Decoder")
      .def("add_layer", &add_layer, "weights"_a, "biases"_a, "input_norm"_a, "post_norm"_a, "q_norm"_a.none(), "k_norm"_a.none());
  m.def("make_decoder", &make_decoder, "hidden"_a, "intermediate"_a, "num_heads"_a, "kv_heads"_a, "head_dim"_a, "eps"_a,
        "window"_a, "block_size"_a, "wavelengths"_a, "magnitude"_a);
  m.def("run", &run_decoder, "decoder"_a, "first"_a, "last"_a, "x"_a, "positions"_a, "slots"_a, "sequence_of"_a,
        "block_tables"_a, "caches"_a, "adapter_of"_a.none(), "adapters"_a.none());
  m.def("run_feed_forward", &run_feed_forward, "decoder"_a, "layer"_a, "x"_a, "adapter_of"_a.none(), "adapters"_a.none());

  m.def("num_threads", [] { return Pool::instance().size(); });
  m.def("set_num_threads", [](int n) { Pool::instance().resize(n); }, "n"_a, nb::call_guard<nb::gil_scoped_release>());
  m.def("instruction_set", [] { return std::string(active_kernels().name); });
  m.def("use_instruction_set", &activate_kernels, "name"_a);
  m.attr("mlx_version") = GENSERVE_MLX_VERSION;
}
