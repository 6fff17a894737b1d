"""The column for CPUs: a C++ extension of MLX. `native/` holds the sources, and may not have been built here."""

import sys

from engine.kernels.cpu.extension import missing_reason

__all__ = ["missing_reason"]

# A copy of the code alone, as a Ray job's upload is, finds the extension where genserve is installed.
__path__ += [f"{place}/engine/kernels/cpu" for place in sys.path]
