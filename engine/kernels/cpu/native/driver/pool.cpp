// Callers on many threads, pools of many sizes.
#include "../pool.h"

#include <thread>

#include "../model.h"
#include "made_up.h"

namespace genserve::driver {

void try_pool(const Kernels& kernels) {
  const auto w = made_up_quantized(256, 64, 4, 32, Format::float32).packed;
  const std::vector<float> x = random_floats(3 * 64);
  std::vector<float> expected(3 * 256);
  multiply(kernels, w->view(), x.data(), 3, expected.data());
  for (int size : {1, 2, 3, 4, 7}) {
    Pool::instance().resize(size);
    std::vector<std::thread> callers;
    for (int caller = 0; caller < 3; ++caller)
      callers.emplace_back([&] {
        std::vector<float> out(expected.size());
        for (int turn = 0; turn < 30; ++turn) {
          multiply(kernels, w->view(), x.data(), 3, out.data());
          require(out == expected, "one result on all threads");
        }
      });
    for (std::thread& caller : callers) caller.join();
  }
  for (int turn = 0; turn < 200; ++turn) {  // a pool that stops while its threads still wake for the last job
    Pool::instance().resize(2 + turn % 3);
    std::vector<float> out(expected.size());
    multiply(kernels, w->view(), x.data(), 3, out.data());
  }
  Pool::instance().resize(0);
}

}  // namespace genserve::driver
