"""Mailbox: pinned memory through which the host hands a step its numbers, and gets the tokens back.

An `mx.array` made by the host lies in managed memory: the device faults on its first read and the host on its next
write, 50 to 280 microseconds each where it was measured, in every step. Pinned memory is read in place instead.
"""

import ctypes
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from engine.kernels.cuda.source import Launcher

SLOTS = 32  # steps that may be on their way
HEADER = 16  # numbers before the first array: their sizes
PORTABLE, MAPPED = 1, 2


class Mailbox:
    """A ring of slots. Owned by the thread that launches."""

    def __init__(self, slot_bytes: int = 1 << 18) -> None:
        self._driver: Any = ctypes.CDLL("libcuda.so.1")
        self._next = 0
        self._receive = Launcher("receive", [], ["where"], ["out"], {"HEADER": HEADER}, threads=256)
        self._sent: dict[int, tuple[mx.array, NDArray[np.int32]]] = {}
        self._allocate(slot_bytes)

    def _allocate(self, slot_bytes: int) -> None:
        mx.eval(mx.ones(4096) + 1)  # this thread has a context now, and nothing reads the old memory
        pointer = ctypes.c_void_p()
        code = self._driver.cuMemHostAlloc(
            ctypes.byref(pointer), ctypes.c_size_t(slot_bytes * SLOTS), ctypes.c_uint(PORTABLE | MAPPED)
        )
        assert code == 0 and pointer.value, f"cuMemHostAlloc gave {code}"
        self.slot_bytes, self._base = slot_bytes, pointer.value
        buffer = (ctypes.c_int32 * (slot_bytes * SLOTS // 4)).from_address(pointer.value)
        self._memory = np.ctypeslib.as_array(buffer).reshape(SLOTS, -1)

    def _slot(self, count: int) -> tuple[mx.array, NDArray[np.int32]]:
        if count * 4 > self.slot_bytes:
            mx.synchronize()
            self._allocate(1 << (count * 4 - 1).bit_length())
        index = self._next
        self._next = (index + 1) % SLOTS
        address = np.array([self._base + index * self.slot_bytes], np.int64)
        return mx.array(address), self._memory[index]

    def send(self, arrays: Sequence[NDArray[np.int32]]) -> mx.array:
        """Put arrays into a slot; its address, for a kernel."""
        total = HEADER + sum(array.size for array in arrays)
        where, slot = self._slot(total)
        start = HEADER
        for index, array in enumerate(arrays):
            slot[index] = array.size
            slot[start : start + array.size] = array.reshape(-1)
            start += array.size
        return where

    def receive(self, where: mx.array, shape: tuple[int, ...]) -> mx.array:
        """The one array that was sent there, in the device's own memory."""
        size = int(np.prod(shape))
        return self._receive([where], (-(-size // 256), 1, 1), [shape], [mx.int32])[0]

    def bring(self, numbers: NDArray[np.int32]) -> mx.array:
        """An array of the host's, in the device's own memory."""
        return self.receive(self.send([numbers]), numbers.shape)

    def expect(self, count: int) -> tuple[mx.array, NDArray[np.int32]]:
        """Room for so many tokens: its address, and what the host will read there."""
        where, slot = self._slot(count)
        return where, slot[:count]

    def note(self, tokens: mx.array, slot: NDArray[np.int32]) -> None:
        """These tokens will be in that slot once they are computed."""
        self._sent[id(tokens)] = (tokens, slot)
        while len(self._sent) > SLOTS // 4:
            del self._sent[next(iter(self._sent))]

    def read(self, tokens: mx.array) -> list[int]:
        """Wait for tokens; from their slot if they have one."""
        _, slot = self._sent.pop(id(tokens), (None, None))
        if slot is None:
            return [int(token) for token in np.array(tokens)]
        mx.eval(tokens)
        found: list[int] = slot.tolist()
        return found
