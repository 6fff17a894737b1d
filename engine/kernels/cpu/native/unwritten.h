// Arrays of MLX that are written by nobody before they are needed.
#pragma once
#include "mlx/array.h"

namespace genserve {

namespace mx = mlx::core;

// As large as `a`, and holding anything: no page is touched, so memory is taken as it is written. It begins where a
// large page may.
mx::array unwritten_like(const mx::array& a);

}  // namespace genserve
