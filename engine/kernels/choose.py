"""Choosing: which column of kernels serves a model on this machine."""

import logging

import mlx.core as mx

from engine.config import ModelConfig
from engine.kernels.expand import Expand
from engine.kernels.portable import PortableKernels
from engine.kernels.table import Kernels
from engine.kernels.trial import SMALL, WIDE, try_column
from engine.weights import Weights

log = logging.getLogger("genserve")
CPU_TOLERANCE = 1e-4  # relative to the largest logit; both sides compute in float32
CUDA_TOLERANCE = 0.15  # against float32, from which bfloat16 was 0.01 to 0.05 away; a wrong kernel is as far as logits


def choose(
    config: ModelConfig, weights: Weights, block_size: int, *, takes_weights: bool = False, expand: Expand = "auto"
) -> Kernels:
    """The fastest column that works here; what is left out is told, with the reason.

    `takes_weights`: the column may empty the tensors that it is given to prepare, so that memory does not double.
    """
    if mx.default_device().type == mx.DeviceType.cpu:
        column = cpu_column(config, weights, block_size, takes_weights)
        if column is not None:
            return column
    elif mx.cuda.is_available():
        column = cuda_column(config, weights, block_size, expand)
        if column is not None:
            return column
    return PortableKernels(config, block_size)


def cpu_column(config: ModelConfig, weights: Weights, block_size: int, takes_weights: bool) -> Kernels | None:
    from engine.kernels.cpu import missing_reason

    reason = missing_reason()
    if reason is not None:
        log.warning(reason)
        return None
    from engine.kernels.cpu.column import CpuKernels  # only now: it imports what may not be built

    trial = try_column(
        lambda small: CpuKernels(small, block_size), config, weights, block_size, SMALL, rounded=("float16", "int8")
    )
    if not trial.passes(CPU_TOLERANCE):
        log.warning(
            "the CPU kernels are left out, for they disagree with the portable ones on this machine: "
            f"logits by {trial.logits_error:.1e}, with rounded keys and values by {trial.rounded_error:.1e}, "
            f"{trial.num_wrong_tokens} tokens drawn otherwise"
        )
        return None
    return CpuKernels(config, block_size, takes_weights=takes_weights)


def cuda_column(config: ModelConfig, weights: Weights, block_size: int, expand: Expand) -> Kernels | None:
    from engine.kernels.cuda import CompileError, CudaKernels, missing_reason

    reason = missing_reason()
    if reason is not None:
        log.warning(reason)
        return None
    try:
        trial = try_column(
            lambda small: CudaKernels(small, block_size, "never"),
            config,
            weights,
            block_size,
            WIDE,
            is_reference_wide=True,
        )
    except CompileError as error:
        log.warning(f"the CUDA kernels are left out, for they do not compile here: {error}")
        return None
    if not trial.passes(CUDA_TOLERANCE):
        log.warning(
            "the CUDA kernels are left out, for they disagree with float32 on this machine: "
            f"logits by {trial.logits_error:.1e}, {trial.num_wrong_tokens} tokens drawn otherwise"
        )
        return None
    return CudaKernels(config, block_size, expand)
