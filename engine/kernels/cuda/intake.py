"""Intake: pinned memory that whoever reads a file fills, and whose bytes become arrays in the device's own memory.

MLX would put an array made of the host's bytes into managed memory, page by page, and move it on its first use.
"""

import ctypes
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from engine.kernels.cuda.source import Launcher

SLOTS, SLOT_BYTES = 4, 64 << 20
PORTABLE, MAPPED = 1, 2
Fill = Callable[[NDArray[np.uint8], int], None]  # the memory to be filled, and where in the array it begins


class CudaIntake:
    """A ring of slots. Owned by the thread that loads."""

    def __init__(self) -> None:
        driver: Any = ctypes.CDLL("libcuda.so.1")
        mx.eval(mx.ones(4096) + 1)  # this thread has a context now
        pointer = ctypes.c_void_p()
        flags = ctypes.c_uint(PORTABLE | MAPPED)
        code = driver.cuMemHostAlloc(ctypes.byref(pointer), ctypes.c_size_t(SLOTS * SLOT_BYTES), flags)
        assert code == 0 and pointer.value, f"cuMemHostAlloc gave {code}"
        self._base = pointer.value
        buffer = (ctypes.c_uint8 * (SLOTS * SLOT_BYTES)).from_address(pointer.value)
        self._memory = np.ctypeslib.as_array(buffer).reshape(SLOTS, SLOT_BYTES)
        self._taken: list[mx.array | None] = [None] * SLOTS  # what is read from a slot
        self._next = 0
        self._copy = Launcher("intake", [], ["where"], ["out"], {}, threads=256)

    def bring(self, num_bytes: int, fill: Fill) -> mx.array:
        """That many bytes, a multiple of 4, as a flat array of words."""
        parts = [
            self._bring(start, min(SLOT_BYTES, num_bytes - start), fill) for start in range(0, num_bytes, SLOT_BYTES)
        ]
        return parts[0] if len(parts) == 1 else mx.concatenate(parts)

    def _bring(self, start: int, size: int, fill: Fill) -> mx.array:
        index, self._next = self._next, (self._next + 1) % SLOTS
        before = self._taken[index]
        if before is not None:
            mx.eval(before)
        fill(self._memory[index, :size], start)
        where = mx.array(np.array([self._base + index * SLOT_BYTES], np.int64))
        words = size // 4
        grid = (-(-words // 4096), 1, 1)
        out = self._copy([where], grid, [(words,)], [mx.uint32], words=words)[0]
        mx.async_eval(out)
        self._taken[index] = out
        return out
