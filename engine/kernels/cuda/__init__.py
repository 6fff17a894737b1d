"""The column for NVIDIA GPUs of the Hopper generation."""

from engine.kernels.cuda.column import CudaKernels
from engine.kernels.cuda.compiler import CompileError, missing_reason

__all__ = ["CompileError", "CudaKernels", "missing_reason"]
