// Fills the table of one instruction set; included by one source file a set, after its vectors.
#pragma once
#include "attend.h"
#include "draw.h"
#include "product.h"
#include "project.h"

namespace genserve::ISA {

constexpr Kernels TABLE = {
    .name = GENSERVE_ISA_NAME,
    .lanes = LANES,
    .cut = cut,
    .product = product,
    .gated = gated_product,
    .product_back = product_back,
    .embed = embed,
    .normalize = normalize,
    .low_rank = low_rank,
    .heads = heads,
    .attend = attend,
    .join = join,
    .draw = draw,
    .argmax = argmax,
};

}  // namespace genserve::ISA
