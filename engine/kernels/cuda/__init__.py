"""The column for NVIDIA GPUs."""

from engine.kernels.cuda.column import CudaKernels

__all__ = ["CudaKernels"]
