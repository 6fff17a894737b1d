// Tokens: of the vocabulary, never a masked one, and those that the plain fallback draws.
#include <cmath>

#include "../model.h"
#include "../pool.h"
#include "made_up.h"

namespace genserve::driver {

void try_draw(const Kernels& kernels) {
  constexpr int ROWS = 5;
  for (int size : {1, 5, 1000, 4099}) {
    Unaligned<float> logits(random_floats(static_cast<size_t>(ROWS) * size));
    for (size_t i = 0; i < logits.size(); ++i)
      if (i % size != 0 && i % 3 == 0) logits[i] = -INFINITY;
    for (float top_p : {0.0f, 0.5f, 1.0f})
      for (float top_k : {0.0f, 1.0f, 7.0f}) {
        std::vector<float> each;
        for (int row = 0; row < ROWS; ++row) each.insert(each.end(), {0.5f * float(row), top_k, top_p, 0.01f, 0.999f});
        const Unaligned<float> knobs(each);
        for (bool is_greedy : {false, true}) {
          Unaligned<int32_t> tokens(ROWS), expected(ROWS);
          Pool::instance().resize(1 + size % 4);
          draw(kernels, logits.data(), ROWS, size, knobs.data(), is_greedy, tokens.data());
          draw(*find_kernels("generic"), logits.data(), ROWS, size, knobs.data(), is_greedy, expected.data());
          for (int row = 0; row < ROWS; ++row) {
            require(tokens[row] >= 0 && tokens[row] < size, "a token of the vocabulary");
            require(logits[static_cast<size_t>(row) * size + tokens[row]] > -INFINITY, "no masked token is drawn");
          }
          require(tokens == expected, "the tokens of the plain fallback");
        }
      }
    draw(kernels, logits.data(), 0, size, nullptr, false, nullptr);
  }
  Pool::instance().resize(0);
}

}  // namespace genserve::driver
