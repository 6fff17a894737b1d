// The kernels without Python, for sanitizers, valgrind and machines of another kind:
//   make sanitize      (or one of them: make sanitize-address)
// Results are compared with float64 or with the plain fallback, and over threads, so that a race is seen.
#include <cstdio>

#include "../pool.h"
#include "made_up.h"

using namespace genserve;

int main() {
  for (const char* name : {"avx512", "avx2", "neon", "generic"}) {
    const Kernels* kernels = find_kernels(name);
    if (kernels == nullptr) continue;
    std::printf("%s\n", name);
    std::fflush(stdout);
    driver::try_products(*kernels);
    driver::try_halves(*kernels);
    driver::try_draw(*kernels);
    driver::try_pool(*kernels);
  }
  Pool::instance().resize(1);
  std::printf("all is well\n");
}
