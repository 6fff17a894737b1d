#define ISA generic
#if defined(__aarch64__)
#define GENSERVE_ISA_NAME "neon"
#define GENSERVE_WIDE_TILES 1
#else
#define GENSERVE_ISA_NAME "generic"
#define GENSERVE_WIDE_TILES 0
#endif
#include "simd_generic.h"
#include "table.h"

namespace genserve {
const Kernels* generic_kernels() { return &generic::TABLE; }
}  // namespace genserve
