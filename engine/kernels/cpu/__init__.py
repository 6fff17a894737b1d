"""The column for CPUs: a C++ extension of MLX. `native/` holds the sources, and may not have been built here."""

from engine.kernels.cpu.extension import missing_reason

__all__ = ["missing_reason"]
