"""Settings of MLX that its CUDA backend reads when it is first used; what the environment says already stands.

A step is some hundred kernels in one graph. MLX would cut it after a hundred, and forget graphs and plans while they
are still in use. What it compiles itself is kept where the next start finds it.
"""

import os
import sys
from pathlib import Path

if sys.platform == "linux":
    os.environ.setdefault("MLX_CUDA_GRAPH_CACHE_SIZE", "4000")
    os.environ.setdefault("MLX_CUDA_SDPA_CACHE_SIZE", "4000")
    os.environ.setdefault("MLX_ENABLE_CACHE_THRASHING_CHECK", "0")
    os.environ.setdefault("MLX_MAX_OPS_PER_BUFFER", "400")
    os.environ.setdefault("MLX_MAX_MB_PER_BUFFER", "1000000")
    kept = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "genserve" / "mlx"
    os.environ.setdefault("MLX_PTX_CACHE_DIR", str(kept))
