"""Safetensors files: tensors by name, each made when it is asked for, and a writer. Knows no models.

`open_tensors(path)` reads nothing but the header; `tensors["model.norm.weight"]` then copies that one tensor.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import mlx.core as mx
import numpy as np

from engine.kernels.intake import intake_for
from engine.refusal import BrokenFile, Unsupported
from loaders.atomic_file import atomic_file
from loaders.mapped_file import MappedFile, own
from loaders.safetensors_header import BITS_OF, Header, TensorEntry, read_header
from loaders.unreadable import reason

__all__ = ["Header", "SafetensorsWriter", "TensorEntry", "TensorFile", "open_tensors", "read_header", "save"]

# BF16 has no type in NumPy: its bits travel as U16, and MLX is told what they are.
TYPES: dict[str, tuple[type[np.generic], mx.Dtype]] = {
    "BOOL": (np.bool_, mx.bool_),
    "U8": (np.uint8, mx.uint8),
    "I8": (np.int8, mx.int8),
    "U16": (np.uint16, mx.uint16),
    "I16": (np.int16, mx.int16),
    "U32": (np.uint32, mx.uint32),
    "I32": (np.int32, mx.int32),
    "U64": (np.uint64, mx.uint64),
    "I64": (np.int64, mx.int64),
    "F16": (np.float16, mx.float16),
    "BF16": (np.uint16, mx.bfloat16),
    "F32": (np.float32, mx.float32),
}
NAMES = {dtype: name for name, (_, dtype) in TYPES.items()}


class TensorFile(Mapping[str, mx.array]):
    """The tensors of one file by name; looking one up makes it anew and keeps nothing."""

    def __init__(self, path: Path | str) -> None:
        self.header = read_header(path)
        self._file = MappedFile(self.header.path)
        if self._file.size != self.header.num_bytes:
            raise BrokenFile(f"{path} changed while it was read")

    def __getitem__(self, name: str) -> mx.array:
        entry = self.header.tensors[name]
        dtype = mlx_type(name, entry)
        size = entry.stop - entry.start
        intake = intake_for(size)
        if intake is not None:
            words = intake.bring(size, lambda target, first: self._file.fill(target, entry.start + first))
            return words.view(dtype).reshape(entry.shape)
        values = self._file.view(entry.start, entry.stop, TYPES[entry.dtype][0])
        array = own(values, entry.shape, dtype)
        self._file.forget(entry.start, entry.stop)
        return array

    def outline(self, name: str) -> mx.array:
        """An array of a tensor's type and shape that is not there yet, and takes no memory until it is computed."""
        entry = self.header.tensors[name]
        return mx.zeros(entry.shape, mlx_type(name, entry))

    def sample(self, name: str, num_bytes: int) -> bytes:
        """Some bytes from the middle of a tensor."""
        entry = self.header.tensors[name]
        return self._file.sample(entry.start, entry.stop, num_bytes)

    def __contains__(self, name: object) -> bool:
        return name in self.header.tensors  # Mapping's own would read the tensor to find out

    def __iter__(self) -> Iterator[str]:
        return iter(self.header.tensors)

    def __len__(self) -> int:
        return len(self.header.tensors)


def mlx_type(name: str, entry: TensorEntry) -> mx.Dtype:
    if entry.dtype not in TYPES:
        raise Unsupported(f"tensor {name!r} has the type {entry.dtype}; usable are {', '.join(TYPES)}")
    return TYPES[entry.dtype][1]


def open_tensors(path: Path | str) -> TensorFile:
    """Check a file's header and map its tensors."""
    return TensorFile(path)


class SafetensorsWriter:
    """Writes tensors one at a time, in any order, at the places that their shapes give them."""

    def __init__(
        self, file: BinaryIO, tensors: Mapping[str, tuple[mx.Dtype, tuple[int, ...]]], metadata: Mapping[str, str]
    ) -> None:
        # Wide types first, as the safetensors package has it: every tensor is then aligned to its type.
        order = sorted(tensors, key=lambda name: (-BITS_OF[NAMES[tensors[name][0]]], name))
        listed: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
        end = 0
        for name in order:
            dtype, shape = tensors[name]
            start, end = end, end + int(np.prod(shape, dtype=np.int64)) * dtype.size
            listed[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
        content = json.dumps(listed, separators=(",", ":")).encode()
        content += b" " * (-len(content) % 8)
        file.write(len(content).to_bytes(8, "little") + content)
        self._file = file
        self._tensors = tensors
        self._starts = {name: 8 + len(content) + listed[name]["data_offsets"][0] for name in order}

    def write(self, name: str, array: mx.array) -> None:
        dtype, shape = self._tensors[name]
        assert (array.dtype, array.shape) == (dtype, shape), f"{name}: {array.dtype} {array.shape}, not {dtype} {shape}"
        self._file.seek(self._starts.pop(name))
        self._file.write(content_of(array))

    def finish(self) -> None:
        assert not self._starts, f"never written: {', '.join(self._starts)}"


def save(path: Path | str, tensors: Mapping[str, mx.array], metadata: Mapping[str, str] | None = None) -> None:
    """Write a file that appears whole or not at all."""
    for name, array in tensors.items():
        if array.dtype not in NAMES:
            raise Unsupported(f"tensor {name!r} has the type {array.dtype}, which a safetensors file cannot hold here")
    try:
        with atomic_file(Path(path)) as file:
            writer = SafetensorsWriter(file, {name: (a.dtype, a.shape) for name, a in tensors.items()}, metadata or {})
            for name, array in tensors.items():
                writer.write(name, array)
            writer.finish()
    except OSError as trouble:
        raise BrokenFile(f"{path} cannot be written: {reason(trouble)}") from None


def content_of(array: mx.array) -> memoryview:
    """The bytes of an array, row by row."""
    plain = array.view(mx.uint16) if array.dtype == mx.bfloat16 else array
    return np.ascontiguousarray(np.asarray(plain)).reshape(-1).view(np.uint8).data
