"""engine turns tokens into tokens: model, caches, scheduler, sampling, kernels. No Ray, no files, no clock."""

import engine.kernels.settings  # noqa: F401  # before MLX is used
