#define ISA avx512
#define GENSERVE_ISA_NAME "avx512"
#define GENSERVE_WIDE_TILES 1
#include "simd_avx512.h"
#include "table.h"

namespace genserve {
const Kernels* avx512_kernels() { return &avx512::TABLE; }
}  // namespace genserve
