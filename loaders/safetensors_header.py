"""The header of a safetensors file, believed only after every check. Knows no arrays and reads no tensor.

A file is 8 bytes of header length, a JSON object, and the tensors' bytes without a gap. The verdict is that of the
`safetensors` package, and stricter in these points, where a well-meant file never goes:
a name twice in an object; a tensor or its type written in any form but the specification's; a field in a tensor's
entry that the specification does not have; a dimension of more than 31 bits, which MLX cannot hold; more than
MAX_TENSORS tensors.
"""

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.refusal import BrokenFile, shown
from loaders.json_file import parse_object
from loaders.unreadable import reason

MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors package
MAX_TENSORS = 1_000_000
MAX_DIMENSION = 2**31 - 1
MAX_SIZE = 2**64 - 1
LONE_SURROGATE = re.compile("[\ud800-\udfff]")

BITS_OF = {
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where a tensor lies in its file, and what it is."""

    dtype: str  # as the file spells it: "F32", "BF16", "U32"
    shape: tuple[int, ...]
    start: int  # from the beginning of the file, in bytes
    stop: int

    @property
    def num_bytes(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Header:
    """All that a safetensors file says about itself."""

    path: Path
    tensors: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]
    num_bytes: int  # of the whole file
    digest: str  # SHA-256 of the header


def read_header(path: Path | str) -> Header:
    """Read and check a file's header."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            num_bytes = os.fstat(file.fileno()).st_size
            prefix = file.read(8)
            length = int.from_bytes(prefix, "little")
            check_length(path, num_bytes, len(prefix), length)
            content = file.read(length)
    except OSError as trouble:
        raise BrokenFile(f"{path} cannot be read: {reason(trouble)}") from None
    if len(content) < length:
        raise BrokenFile(f"{path} ends within its header")
    fields = parse_object(content, f"the header of {path}")
    metadata = check_metadata(path, fields.pop("__metadata__", None))
    if len(fields) > MAX_TENSORS:
        raise BrokenFile(f"{path} lists {len(fields)} tensors; at most {MAX_TENSORS} are read")
    tensors = {name: check_entry(path, name, value, 8 + length) for name, value in fields.items()}
    check_cover(path, tensors, 8 + length, num_bytes)
    return Header(path, tensors, metadata, num_bytes, hashlib.sha256(content).hexdigest())


def check_length(path: Path, num_bytes: int, num_prefix: int, length: int) -> None:
    if num_prefix < 8:
        raise BrokenFile(f"{path} has {num_prefix} bytes; a safetensors file begins with 8 for its header's length")
    if length > MAX_HEADER_BYTES:
        raise BrokenFile(f"{path} announces a header of {length} bytes; at most {MAX_HEADER_BYTES} are read")
    if length > num_bytes - 8:
        raise BrokenFile(f"{path} announces a header of {length} bytes, but only {num_bytes - 8} follow")


def check_metadata(path: Path, value: Any) -> Mapping[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise BrokenFile(f"{path} has a __metadata__ that is a {type(value).__name__}; an object is wanted")
    for name, text in value.items():
        if not isinstance(text, str):
            raise BrokenFile(f"{path} has __metadata__ whose {shown(name)} is not a string")
        check_text(path, name)
        check_text(path, text)
    return value


def check_entry(path: Path, name: str, value: Any, data_start: int) -> TensorEntry:
    check_text(path, name)
    where = f"{path}: tensor {shown(name)}"
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise BrokenFile(f"{where} needs an object of dtype, shape and data_offsets, and nothing else")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str):
        raise BrokenFile(f"{where} has a type that is a {type(dtype).__name__}; a string is wanted")
    if dtype not in BITS_OF:
        raise BrokenFile(f"{where} has the type {shown(dtype)}; known are {', '.join(BITS_OF)}")
    if not (isinstance(shape, list) and all(is_size(n) and n <= MAX_DIMENSION for n in shape)):
        raise BrokenFile(f"{where} has the shape {shown(shape)}; whole numbers up to {MAX_DIMENSION} are wanted")
    if not (isinstance(offsets, list) and len(offsets) == 2 and all(is_size(n) for n in offsets)):
        raise BrokenFile(f"{where} has the offsets {shown(offsets)}; two whole numbers are wanted")
    start, stop = offsets
    if stop < start:
        raise BrokenFile(f"{where} ends at {stop}, before it starts at {start}")
    num_bits = count_bits(where, dtype, shape)
    if num_bits % 8:
        raise BrokenFile(f"{where} has {num_bits} bits, which is not a whole number of bytes")
    if num_bits // 8 != stop - start:
        raise BrokenFile(f"{where} of type {dtype} and shape {shape} needs {num_bits // 8} bytes, not {stop - start}")
    return TensorEntry(dtype, tuple(shape), data_start + start, data_start + stop)


def count_bits(where: str, dtype: str, shape: list[int]) -> int:
    """The bits of a tensor, where every step of the product fits in 64 of them."""
    product = 1
    for factor in (*shape, BITS_OF[dtype]):
        product *= factor
        if product > MAX_SIZE:
            raise BrokenFile(f"{where} has the shape {shown(shape)}, whose size overflows 64 bits")
    return product


def check_cover(path: Path, tensors: Mapping[str, TensorEntry], data_start: int, num_bytes: int) -> None:
    """The tensors must lie one behind the other, from the header to the last byte."""
    end = data_start
    for name, entry in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].stop)):
        if entry.start != end:
            fault = "overlaps the one before it" if entry.start < end else f"leaves a gap of {entry.start - end} bytes"
            raise BrokenFile(f"{path}: tensor {shown(name)} {fault}")
        end = entry.stop
    if end > num_bytes:
        raise BrokenFile(f"{path} is truncated: its tensors need {end} bytes, and it has {num_bytes}")
    if end < num_bytes:
        raise BrokenFile(f"{path} has {num_bytes - end} bytes behind its last tensor")


def check_text(path: Path, text: str) -> None:
    if LONE_SURROGATE.search(text):
        raise BrokenFile(f"{path} has a name or text with half a character in its header")


def is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MAX_SIZE  # `type`, because True is an int as well
