"""Raw lines: a file's lines as bytes, one at a time. Knows no JSON. A line of any length costs no more than a limit."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

MAX_LINE_BYTES = 8 << 20
SKIP_BYTES = 1 << 20
BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class RawLine:
    """One line without its end. `data` is None where the line is longer than the limit."""

    number: int  # from 1
    data: bytes | None
    num_bytes: int


def raw_lines(file: BinaryIO, max_bytes: int = MAX_LINE_BYTES) -> Iterator[RawLine]:
    """All lines, blank ones too."""
    number = 0
    while data := file.readline(max_bytes + len(BOM) + len(b"\r\n")):
        number += 1
        num_bytes = len(data) + (0 if data.endswith(b"\n") else skip_to_end(file))
        if num_bytes > len(data):
            yield RawLine(number, None, num_bytes)
            continue
        data = (data.removeprefix(BOM) if number == 1 else data).removesuffix(b"\n").removesuffix(b"\r")
        if len(data) > max_bytes:
            yield RawLine(number, None, len(data))
        else:
            yield RawLine(number, data, len(data))


def skip_to_end(file: BinaryIO) -> int:
    """Read the rest of a line and forget it; how many bytes it had."""
    num_bytes = 0
    while data := file.readline(SKIP_BYTES):
        num_bytes += len(data)
        if data.endswith(b"\n"):
            break
    return num_bytes
