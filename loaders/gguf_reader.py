"""GGUFReader: the values in a GGUF file's head, one after the other. Knows how a value is written, not what it is for.

Nothing is read that is not there, and nothing is allocated that the file's own size does not pay for.
"""

import struct
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from engine.refusal import BrokenFile
from loaders.mapped_file import MappedFile

MAX_NAME_BYTES = 65_535  # the specification's limit for a key
MAX_TEXT_BYTES = 64 << 20
MAX_NESTING = 4

LENGTH = struct.Struct("<Q")

UINT32, BOOL, STRING, ARRAY = 4, 7, 8, 9
NUMBERS = {
    code: np.dtype(name)
    for code, name in (
        (0, "u1"),
        (1, "i1"),
        (2, "<u2"),
        (3, "<i2"),
        (UINT32, "<u4"),
        (5, "<i4"),
        (6, "<f4"),
        (BOOL, "u1"),
        (10, "<u8"),
        (11, "<i8"),
        (12, "<f8"),
    )
}


class GGUFReader:
    """A position in a file that only goes forward."""

    def __init__(self, file: MappedFile) -> None:
        self.path: Path = file.path
        self.size = file.size
        self.position = 0
        self._file = file

    def fail(self, fault: str) -> NoReturn:
        raise BrokenFile(f"{self.path} {fault}")

    def skip(self, num_bytes: int, what: str) -> int:
        """Go over some bytes, and say where they began."""
        start = self.position
        if num_bytes > self.size - start:
            self.fail(f"ends at byte {self.size}, within {what}: {num_bytes} bytes at {start} are wanted")
        self.position += num_bytes
        return start

    def whole(self, num_bytes: int, what: str) -> int:
        """An unsigned number of so many bytes."""
        start = self.skip(num_bytes, what)
        return int.from_bytes(self._file.read(start, self.position), "little")

    def text(self, most: int, what: str) -> str:
        length = self.whole(8, what)
        if length > most:
            self.fail(f"has {what} of {length} bytes; at most {most} are read")
        start = self.skip(length, what)
        try:
            return self._file.read(start, self.position).decode("utf-8")
        except UnicodeDecodeError:
            self.fail(f"has {what} that is not UTF-8")

    def value(self, code: int, what: str, nesting: int = 0) -> Any:
        """A value of the type with this code: a number, a bool, a string or a list."""
        if code in NUMBERS:
            return self.numbers(code, 1, what)[0]
        if code == STRING:
            return self.text(MAX_TEXT_BYTES, what)
        if code != ARRAY:
            self.fail(f"has the unknown type {code} for {what}")
        if nesting == MAX_NESTING:
            self.fail(f"nests lists more than {MAX_NESTING} deep in {what}")
        inner, count = self.whole(4, what), self.whole(8, what)
        if inner in NUMBERS:
            return self.numbers(inner, count, what)
        smallest = 12 if inner == ARRAY else 8  # the bytes that an empty one takes
        if count * smallest > self.size - self.position:
            self.fail(f"announces {count} values for {what}, but only {self.size - self.position} bytes follow")
        if inner == STRING:
            return self.texts(count, what)
        return [self.value(inner, what, nesting + 1) for _ in range(count)]

    def texts(self, count: int, what: str) -> list[str]:
        """So many texts, in a loop that calls nothing of ours: a vocabulary has a hundred thousand."""
        content, offset, found = self._file.view(self.position, self.size).data, 0, list[str]()
        try:
            for _ in range(count):
                start = offset + 8
                stop = start + LENGTH.unpack_from(content, offset)[0]
                if stop > len(content):
                    break
                found.append(str(content[start:stop], "utf-8"))
                offset = stop
        except (struct.error, UnicodeDecodeError):
            pass
        self.position += offset
        while len(found) < count:  # the next one has a fault, which is told as that of any other text
            found.append(self.text(MAX_TEXT_BYTES, what))
        return found

    def numbers(self, code: int, count: int, what: str) -> list[Any]:
        kind = NUMBERS[code]
        start = self.skip(count * kind.itemsize, what)
        values: list[Any] = self._file.view(start, self.position, kind).tolist()
        if code != BOOL:
            return values
        if set(values) - {0, 1}:
            self.fail(f"has a truth value that is neither 0 nor 1 in {what}")
        return [value == 1 for value in values]
