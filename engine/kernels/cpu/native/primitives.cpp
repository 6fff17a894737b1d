#include "primitives.h"

#include <stdexcept>

#include "mlx/ops.h"
#include "mlx/utils.h"
#include "operands.h"

namespace genserve {

namespace {

std::atomic<const Kernels*> the_kernels{nullptr};

mx::Stream cpu_stream() { return mx::to_stream({}, mx::Device::cpu); }
mx::array floats(const mx::array& a) { return mx::astype(a, mx::float32, cpu_stream()); }
mx::array integers(const mx::array& a) { return mx::astype(a, mx::int32, cpu_stream()); }

class Multiply : public CpuPrimitive {
 public:
  Multiply(mx::Stream stream, std::shared_ptr<PackedMatrix> w, bool is_back)
      : CpuPrimitive(stream), w_(std::move(w)), is_back_(is_back), kernels_(active_kernels()) {}

  void eval_cpu(const std::vector<mx::array>& inputs, mx::array& out) override {
    auto& encoder = mx::cpu::get_command_encoder(stream());
    const auto rows = static_cast<int>(inputs[0].size() / inputs[0].shape(-1));
    encoder.dispatch([x = Input<float>(inputs[0]), y = allocate<float>(out), rows, w = w_, is_back = is_back_,
                      &kernels = kernels_]() mutable {
      if (is_back)
        genserve::multiply_back(kernels, w->view(), x.read(), rows, y);
      else
        genserve::multiply(kernels, w->view(), x.read(), rows, y);
    });
  }

  std::vector<mx::array> vjp(
      const std::vector<mx::array>&, const std::vector<mx::array>& cotangents, const std::vector<int>&,
      const std::vector<mx::array>&) override {
    return {is_back_ ? multiply(cotangents[0], w_) : multiply_back(cotangents[0], w_)};
  }

  const char* name() const override { return is_back_ ? "MultiplyBack" : "Multiply"; }

  bool is_equivalent(const Primitive& other) const override {
    const auto& o = static_cast<const Multiply&>(other);
    return w_ == o.w_ && is_back_ == o.is_back_ && &kernels_ == &o.kernels_;
  }

  static mx::array make(const mx::array& x, const std::shared_ptr<PackedMatrix>& w, bool is_back) {
    const int from = is_back ? w->view().rows : w->view().columns, to = is_back ? w->view().columns : w->view().rows;
    if (x.ndim() < 1 || x.shape(-1) != from || !mx::issubdtype(x.dtype(), mx::floating))
      throw std::invalid_argument("rows of " + std::to_string(from) + " floats were wanted");
    mx::Shape shape = x.shape();
    shape.back() = to;
    return mx::array(shape, mx::float32, std::make_shared<Multiply>(cpu_stream(), w, is_back), {floats(x)});
  }

 private:
  std::shared_ptr<PackedMatrix> w_;
  bool is_back_;
  const Kernels& kernels_;
};

class LookUp : public CpuPrimitive {
 public:
  LookUp(mx::Stream stream, std::shared_ptr<PackedMatrix> w)
      : CpuPrimitive(stream), w_(std::move(w)), kernels_(active_kernels()) {}
  const char* name() const override { return "LookUp"; }

  void eval_cpu(const std::vector<mx::array>& inputs, mx::array& out) override {
    auto& encoder = mx::cpu::get_command_encoder(stream());
    encoder.dispatch([indices = Input<int32_t>(inputs[0]), count = inputs[0].size(), y = allocate<float>(out), w = w_,
                      &kernels = kernels_]() mutable {
      check_range(indices.read(), count, w->view().rows, "token");
      genserve::look_up(kernels, w->view(), indices.read(), static_cast<int>(count), y);
    });
  }

 private:
  std::shared_ptr<PackedMatrix> w_;
  const Kernels& kernels_;
};

class Head : public CpuPrimitive {
 public:
  Head(mx::Stream stream, std::shared_ptr<PackedMatrix> w, float eps)
      : CpuPrimitive(stream), w_(std::move(w)), eps_(eps), kernels_(active_kernels()) {}
  const char* name() const override { return "Head"; }

  void eval_cpu(const std::vector<mx::array>& inputs, mx::array& out) override {
    auto& encoder = mx::cpu::get_command_encoder(stream());
    encoder.dispatch([x = Input<float>(inputs[0]), num_rows = inputs[0].shape(0), rows = Input<int32_t>(inputs[1]),
                      count = inputs[1].size(), norm = Input<float>(inputs[2]), y = allocate<float>(out), w = w_,
                      eps = eps_, &kernels = kernels_]() mutable {
      check_range(rows.read(), count, num_rows, "row");
      genserve::head(
          kernels, w->view(), norm.read(), eps, x.read(), rows.read(), static_cast<int>(count), y);
    });
  }

 private:
  std::shared_ptr<PackedMatrix> w_;
  float eps_;
  const Kernels& kernels_;
};

class Draw : public CpuPrimitive {
 public:
  Draw(mx::Stream stream, bool is_greedy)
      : CpuPrimitive(stream), is_greedy_(is_greedy), kernels_(active_kernels()) {}
  const char* name() const override { return "Draw"; }

  void eval_cpu(const std::vector<mx::array>& inputs, mx::array& out) override {
    auto& encoder = mx::cpu::get_command_encoder(stream());
    encoder.dispatch([logits = Input<float>(inputs[0]), rows = inputs[0].shape(0), size = inputs[0].shape(1),
                      knobs = Input<float>(inputs[1]), tokens = allocate<int32_t>(out), is_greedy = is_greedy_,
                      &kernels = kernels_]() mutable {
      genserve::draw(kernels, logits.read(), rows, size, knobs.read(), is_greedy, tokens);
    });
  }

 private:
  bool is_greedy_;
  const Kernels& kernels_;
};

}  // namespace

const Kernels& active_kernels() {
  const Kernels* kernels = the_kernels.load();
  return kernels != nullptr ? *kernels : *find_kernels("best");
}

void activate_kernels(const std::string& name) {
  const Kernels* kernels = find_kernels(name.c_str());
  if (kernels == nullptr) throw std::invalid_argument("this machine has no instruction set " + name);
  the_kernels.store(kernels);
}

mx::array multiply(const mx::array& x, const std::shared_ptr<PackedMatrix>& w) { return Multiply::make(x, w, false); }
mx::array multiply_back(const mx::array& x, const std::shared_ptr<PackedMatrix>& w) {
  return Multiply::make(x, w, true);
}

mx::array look_up(const std::shared_ptr<PackedMatrix>& w, const mx::array& indices) {
  mx::Shape shape = indices.shape();
  shape.push_back(w->view().columns);
  return mx::array(shape, mx::float32, std::make_shared<LookUp>(cpu_stream(), w), {integers(indices)});
}

mx::array head(
    const mx::array& x, const mx::array& rows, const mx::array& norm, float eps,
    const std::shared_ptr<PackedMatrix>& w) {
  if (x.ndim() != 2 || x.shape(1) != w->view().columns || norm.size() != static_cast<size_t>(w->view().columns))
    throw std::invalid_argument("rows of " + std::to_string(w->view().columns) + " floats were wanted");
  return mx::array(
      {static_cast<int>(rows.size()), w->view().rows}, mx::float32, std::make_shared<Head>(cpu_stream(), w, eps),
      {floats(x), integers(rows), floats(norm)});
}

mx::array draw(const mx::array& logits, const mx::array& knobs, bool is_greedy) {
  if (logits.ndim() != 2 || knobs.ndim() != 2 || knobs.shape(0) != logits.shape(0) || knobs.shape(1) != 5)
    throw std::invalid_argument("logits (rows, vocabulary) and knobs (rows, 5) were wanted");
  return mx::array(
      {logits.shape(0)}, mx::int32, std::make_shared<Draw>(cpu_stream(), is_greedy), {floats(logits), floats(knobs)});
}

}  // namespace genserve
