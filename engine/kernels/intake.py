"""Intake: how bytes that are read from a file become arrays, where MLX's own way is a detour."""

from collections.abc import Callable
from functools import cache
from typing import Protocol

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

LEAST_BYTES = 1 << 20  # less takes MLX's way


class Intake(Protocol):
    def bring(self, num_bytes: int, fill: Callable[[NDArray[np.uint8], int], None]) -> mx.array:
        """That many bytes, a multiple of 4, as flat words; `fill` is given memory, and where among them it begins."""


def intake_for(num_bytes: int) -> Intake | None:
    """This machine's, if it has one and an array of this size is worth it."""
    return intake() if num_bytes >= LEAST_BYTES and num_bytes % 4 == 0 else None


@cache
def intake() -> Intake | None:
    if mx.default_device().type != mx.DeviceType.gpu or not mx.cuda.is_available():
        return None
    from engine.kernels.cuda import missing_reason
    from engine.kernels.cuda.intake import CudaIntake

    return CudaIntake() if missing_reason() is None else None
