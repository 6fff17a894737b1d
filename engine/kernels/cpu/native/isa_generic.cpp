#define ISA generic
#define GENSERVE_ISA_NAME "generic"
#define GENSERVE_WIDE_TILES 0
#include "simd_generic.h"
#include "table.h"

namespace genserve {
const Kernels* generic_kernels() { return &generic::TABLE; }
}  // namespace genserve
