"""MappedFile: a file's bytes as arrays, read where they lie. Knows no format; offsets were checked by who asks.

MLX must own its memory: it refuses to import a CPU array without a copy (`mx.from_dlpack(..., copy=False)`).
So a tensor is copied once, from the page cache into MLX's buffer, and `forget` drops the file's pages from this
process at once. What stays resident is the weights, and nothing twice. The other way, `mx.load`, needs no more
memory, but it parses headers itself, without the checks that ours have passed.
"""

import mmap
import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import DTypeLike, NDArray

from engine.refusal import BrokenFile
from loaders.unreadable import reason

MAPPED_AROUND = 1 << 16  # when one page is looked at, Linux maps its neighbours too
READERS, READ_BYTES = 8, 4 << 20  # threads that copy from the page cache, and how much at a time


class MappedFile:
    """A file mapped read-only; its views keep the mapping alive."""

    __slots__ = ("path", "size", "_file", "_map")

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self._map = mmap.mmap(self._file, 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as trouble:  # ValueError: an empty file cannot be mapped
            raise BrokenFile(f"{path} cannot be read: {reason(trouble)}") from None
        self.size = len(self._map)

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            os.close(self._file)

    def read(self, start: int, stop: int) -> bytes:
        return self._map[start:stop]

    def sample(self, start: int, stop: int, num_bytes: int) -> bytes:
        """Some bytes from the middle between start and stop."""
        first = max(start, (start + stop - num_bytes) // 2)
        content = self._map[first : min(stop, first + num_bytes)]
        self.forget(first, first + 1)
        return content

    def view(self, start: int, stop: int, dtype: DTypeLike = np.uint8) -> NDArray[Any]:
        """The bytes from start to stop as a flat array, without a copy."""
        kind = np.dtype(dtype)
        return np.frombuffer(self._map, kind, (stop - start) // kind.itemsize, start)

    def fill(self, target: NDArray[np.uint8], start: int) -> None:
        """Copy the bytes from start on into other memory, by several threads."""

        def read(first: int) -> None:
            piece, at = target[first : first + READ_BYTES].data, start + first
            while piece:
                count = os.preadv(self._file, [piece], at)
                if not count:
                    raise BrokenFile(f"{self.path} changed while it was read")
                piece, at = piece[count:], at + count

        list(readers().map(read, range(0, target.size, READ_BYTES)))

    def forget(self, start: int, stop: int) -> None:
        """Take the bytes from start to stop out of this process's memory; they can be read again at any time."""
        first = start - start % MAPPED_AROUND
        length = min(self.size, stop + MAPPED_AROUND) - first
        if length > 0 and hasattr(self._map, "madvise"):
            self._map.madvise(mmap.MADV_DONTNEED, first, length)


@cache
def readers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(READERS, thread_name_prefix="reader")


def own(values: NDArray[Any], shape: tuple[int, ...], dtype: mx.Dtype) -> mx.array:
    """Values as an array that MLX owns, with the bits that they have."""
    # Empty arrays are made by MLX: NumPy counts the other dimensions of an empty shape and may find too many.
    if values.size == 0:
        return mx.zeros(shape, dtype)
    array = mx.array(values)
    return (array if array.dtype == dtype else array.view(dtype)).reshape(shape)
