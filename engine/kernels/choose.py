"""Choosing: which column of kernels serves a model on this machine."""

from engine.config import ModelConfig
from engine.kernels.portable import PortableKernels
from engine.kernels.table import Kernels
from engine.weights import Weights


def choose(config: ModelConfig, weights: Weights, block_size: int) -> Kernels:
    """The fastest column that works here."""
    return PortableKernels(config, block_size)
