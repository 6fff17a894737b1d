#include <cstring>

#include "kernels.h"

namespace genserve {

const Kernels* generic_kernels();
#if defined(__x86_64__)
const Kernels* avx2_kernels();
const Kernels* avx512_kernels();
#elif defined(__aarch64__)
const Kernels* neon_kernels();
#endif

const Kernels* find_kernels(const char* name) {
  const bool is_any = std::strcmp(name, "best") == 0;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool has_avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (has_avx512 && (is_any || std::strcmp(name, "avx512") == 0)) return avx512_kernels();
  if (has_avx2 && (is_any || std::strcmp(name, "avx2") == 0)) return avx2_kernels();
#elif defined(__aarch64__)
  if (is_any || std::strcmp(name, "neon") == 0) return neon_kernels();
#endif
  const Kernels* generic = generic_kernels();
  return is_any || std::strcmp(name, generic->name) == 0 ? generic : nullptr;
}

}  // namespace genserve
