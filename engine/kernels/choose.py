"""Choosing: which column of kernels serves a model on this machine."""

import logging

import mlx.core as mx

from engine.config import ModelConfig
from engine.kernels.portable import PortableKernels
from engine.kernels.table import Kernels
from engine.kernels.trial import try_column
from engine.weights import Weights

log = logging.getLogger("genserve")
CPU_TOLERANCE = 1e-4  # relative to the largest logit; both sides compute in float32


def choose(config: ModelConfig, weights: Weights, block_size: int, *, takes_weights: bool = False) -> Kernels:
    """The fastest column that works here; what is left out is told, with the reason.

    `takes_weights`: the column may empty the tensors that it is given to prepare, so that memory does not double.
    """
    if mx.default_device().type == mx.DeviceType.cpu:
        column = cpu_column(config, weights, block_size, takes_weights)
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

    trial = try_column(lambda small: CpuKernels(small, block_size), config, weights, block_size)
    if not trial.passes(CPU_TOLERANCE):
        log.warning(
            "the CPU kernels are left out, for they disagree with the portable ones on this machine: "
            f"logits by {trial.logits_error:.1e}, {trial.num_wrong_tokens} tokens drawn otherwise"
        )
        return None
    return CpuKernels(config, block_size, takes_weights=takes_weights)
