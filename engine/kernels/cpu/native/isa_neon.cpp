#define ISA neon
#define GENSERVE_ISA_NAME "neon"
#define GENSERVE_WIDE_TILES 1
#include "simd_neon.h"
#include "table.h"

namespace genserve {
const Kernels* neon_kernels() { return &neon::TABLE; }
}  // namespace genserve
