#define ISA avx2
#define GENSERVE_ISA_NAME "avx2"
#define GENSERVE_WIDE_TILES 0
#include "simd_avx2.h"
#include "table.h"

namespace genserve {
const Kernels* avx2_kernels() { return &avx2::TABLE; }
}  // namespace genserve
