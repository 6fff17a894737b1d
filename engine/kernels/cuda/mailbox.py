"""Mailbox: pinned memory through which the host hands a step its numbers, and gets the tokens back.

An `mx.array` made by the host lies in managed memory: the device faults on its first read and the host on its next
write, 50 to 280 microseconds each where it was measured, in every step. Pinned memory is read in place instead.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from engine.kernels.cuda.source import Launcher

SLOTS = 32  # steps that may be on their way
HEADER = 16  # numbers before the first array: their sizes
PORTABLE, MAPPED = 1, 2


@dataclass(frozen=True, slots=True)
class Slot:
    """A piece of the memory. Kernels are given the place of a `word` that holds its address."""

    word: int
    address: int
    memory: NDArray[np.int32]


class Mailbox:
    """A ring of slots. Owned by the thread that launches."""

    def __init__(self, slot_bytes: int = 1 << 18) -> None:
        self._driver: Any = ctypes.CDLL("libcuda.so.1")
        self._next = 0
        self._receive = Launcher("receive", [], ["where"], ["out"], {"HEADER": HEADER}, threads=256)
        self._sent: dict[int, tuple[mx.array, Slot, int]] = {}
        self._allocate(slot_bytes)

    def _allocate(self, slot_bytes: int) -> None:
        mx.eval(mx.ones(4096) + 1)  # this thread has a context now, and nothing reads the old memory
        pointer = ctypes.c_void_p()
        code = self._driver.cuMemHostAlloc(
            ctypes.byref(pointer), ctypes.c_size_t((slot_bytes + 8) * SLOTS), ctypes.c_uint(PORTABLE | MAPPED)
        )
        assert code == 0 and pointer.value, f"cuMemHostAlloc gave {code}"
        self.slot_bytes, words = slot_bytes, pointer.value + slot_bytes * SLOTS
        buffer = (ctypes.c_int32 * (slot_bytes * SLOTS // 4)).from_address(pointer.value)
        memory = np.ctypeslib.as_array(buffer).reshape(SLOTS, -1)
        addresses = [pointer.value + index * slot_bytes for index in range(SLOTS)]
        np.ctypeslib.as_array((ctypes.c_int64 * SLOTS).from_address(words))[:] = addresses
        self._slots = [Slot(words + 8 * index, addresses[index], memory[index]) for index in range(SLOTS)]

    def take(self, count: int) -> Slot:
        """The next slot, with room for so many numbers."""
        if count * 4 > self.slot_bytes:
            mx.synchronize()
            self._allocate(1 << (count * 4 - 1).bit_length())
        index = self._next
        self._next = (index + 1) % SLOTS
        return self._slots[index]

    def post(self, arrays: Sequence[NDArray[np.int32]]) -> Slot:
        """Put arrays into a slot, one after another."""
        slot = self.take(HEADER + sum(array.size for array in arrays))
        start = HEADER
        for index, array in enumerate(arrays):
            slot.memory[index] = array.size
            slot.memory[start : start + array.size] = array.reshape(-1)
            start += array.size
        return slot

    def send(self, arrays: Sequence[NDArray[np.int32]]) -> mx.array:
        """Put arrays into a slot; its address, for a kernel that MLX launches."""
        return mx.array(np.array([self.post(arrays).address], np.int64))

    def receive(self, where: mx.array, shape: tuple[int, ...]) -> mx.array:
        """The one array that was sent there, in the device's own memory."""
        size = int(np.prod(shape))
        return self._receive([where], (-(-size // 256), 1, 1), [shape], [mx.int32])[0]

    def bring(self, numbers: NDArray[np.int32]) -> mx.array:
        """An array of the host's, in the device's own memory."""
        return self.receive(self.send([numbers]), numbers.shape)

    def expect(self, count: int) -> tuple[mx.array, Slot]:
        """Room for so many tokens: its address, and what the host will read there."""
        slot = self.take(count)
        return mx.array(np.array([slot.address], np.int64)), slot

    def note(self, tokens: mx.array, slot: Slot, count: int) -> None:
        """So many tokens will be in that slot once they are computed."""
        self._sent[id(tokens)] = (tokens, slot, count)
        while len(self._sent) > SLOTS // 4:
            del self._sent[next(iter(self._sent))]

    def read(self, tokens: mx.array) -> list[int]:
        """Wait for tokens; from their slot if they have one."""
        _, slot, count = self._sent.pop(id(tokens), (None, None, 0))
        if slot is None:
            return [int(token) for token in np.array(tokens)]
        mx.eval(tokens)
        found: list[int] = slot.memory[:count].tolist()
        return found

    def place_of(self, tokens: mx.array) -> int:
        """The address of tokens that are computed, in pinned memory."""
        _, slot, _ = self._sent.get(id(tokens), (None, None, 0))
        return slot.address if slot is not None else self.post([np.array(tokens, np.int32)]).address + 4 * HEADER
