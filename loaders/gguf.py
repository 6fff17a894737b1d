"""GGUF files: metadata and the table of tensors, believed only after every check. Reads no tensor, knows no models.

A file is a magic word, a version, two counts, metadata as typed pairs, one entry a tensor, and from the next multiple
of the alignment on the tensors' bytes. Gaps between tensors are harmless and accepted; overlaps are not.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from engine.refusal import Unsupported, shown
from loaders.ggml_types import GGML_TYPES
from loaders.gguf_reader import MAX_NAME_BYTES, GGUFReader
from loaders.mapped_file import MappedFile

VERSIONS = (2, 3)
MAX_PAIRS = MAX_TENSORS = 100_000
MAX_DIMENSIONS = 4
MAX_DIMENSION = 2**31 - 1  # what MLX can hold
MAX_ALIGNMENT = 1 << 20
DEFAULT_ALIGNMENT = 32


@dataclass(frozen=True, slots=True)
class GGUFTensor:
    """Where a tensor lies in its file, and what it is."""

    kind: str  # ggml's name of the type: "Q4_1"
    shape: tuple[int, ...]  # the outermost dimension first, as everywhere but in the file
    start: int  # from the beginning of the file, in bytes
    stop: int


@dataclass(frozen=True, slots=True)
class GGUFFile:
    """All that a GGUF file says about itself, and its bytes."""

    path: Path
    version: int
    metadata: Mapping[str, object]  # numbers, bools, strings, and lists of them
    tensors: Mapping[str, GGUFTensor]
    mapped: MappedFile
    digest: str  # SHA-256 of all that comes before the tensors


def read_gguf(path: Path | str) -> GGUFFile:
    """Read and check a file's metadata and its table of tensors."""
    file = MappedFile(Path(path))
    reader = GGUFReader(file)
    version, num_tensors, num_pairs = read_prefix(reader)
    metadata = read_metadata(reader, num_pairs)
    alignment = check_alignment(reader, metadata)
    entries = read_entries(reader, num_tensors, alignment)
    data_start = -(-reader.position // alignment) * alignment
    tensors = {name: place(reader, name, entry, data_start) for name, entry in entries.items()}
    check_overlap(reader, tensors)
    digest = hashlib.sha256(file.read(0, reader.position)).hexdigest()
    file.forget(0, reader.position)
    return GGUFFile(file.path, version, metadata, tensors, file, digest)


def read_prefix(reader: GGUFReader) -> tuple[int, int, int]:
    """The version, and how many tensors and pairs there are."""
    if reader.whole(4, "its magic word") != int.from_bytes(b"GGUF", "little"):
        reader.fail("is not a GGUF file: it does not begin with GGUF")
    version = reader.whole(4, "its version")
    if version not in VERSIONS:
        turned = int.from_bytes(version.to_bytes(4, "little"), "big")
        fault = "is big-endian" if turned in VERSIONS else f"has version {version}"
        raise Unsupported(f"{reader.path} {fault}; known are versions 2 and 3 in little-endian")
    num_tensors, num_pairs = reader.whole(8, "its number of tensors"), reader.whole(8, "its number of pairs")
    if num_tensors > MAX_TENSORS:
        reader.fail(f"announces {num_tensors} tensors; at most {MAX_TENSORS} are read")
    if num_pairs > MAX_PAIRS:
        reader.fail(f"announces {num_pairs} metadata pairs; at most {MAX_PAIRS} are read")
    return version, num_tensors, num_pairs


def read_metadata(reader: GGUFReader, num_pairs: int) -> dict[str, object]:
    metadata: dict[str, object] = {}
    for _ in range(num_pairs):
        name = reader.text(MAX_NAME_BYTES, "the name of a metadata pair")
        if name in metadata:
            reader.fail(f"has the metadata {shown(name)} twice")
        code = reader.whole(4, f"the type of {shown(name)}")
        metadata[name] = reader.value(code, f"the metadata {shown(name)}")
    return metadata


def check_alignment(reader: GGUFReader, metadata: Mapping[str, object]) -> int:
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(alignment) is not int or not 8 <= alignment <= MAX_ALIGNMENT or alignment % 8:
        reader.fail(f"has the alignment {shown(alignment)}; a multiple of 8 up to {MAX_ALIGNMENT} is wanted")
    return alignment


def read_entries(reader: GGUFReader, num_tensors: int, alignment: int) -> dict[str, GGUFTensor]:
    """The table of tensors, their places counted from where the data begin."""
    entries: dict[str, GGUFTensor] = {}
    for _ in range(num_tensors):
        name = reader.text(MAX_NAME_BYTES, "the name of a tensor")
        what = f"tensor {shown(name)}"
        if name in entries:
            reader.fail(f"has the {what} twice")
        num_dimensions = reader.whole(4, f"the number of dimensions of {what}")
        if num_dimensions > MAX_DIMENSIONS:
            reader.fail(f"has the {what} of {num_dimensions} dimensions; at most {MAX_DIMENSIONS} are known")
        shape = tuple(reader.whole(8, f"the shape of {what}") for _ in range(num_dimensions))[::-1]
        kind, num_bytes = size_of(reader, what, shape, reader.whole(4, f"the type of {what}"))
        start = reader.whole(8, f"the offset of {what}")
        if start % alignment:
            reader.fail(f"has the {what} at offset {start}, which is no multiple of {alignment}")
        entries[name] = GGUFTensor(kind, shape, start, start + num_bytes)
    return entries


def size_of(reader: GGUFReader, what: str, shape: tuple[int, ...], code: int) -> tuple[str, int]:
    """The name of a tensor's type, and how many bytes the tensor takes."""
    kind = GGML_TYPES.get(code)
    if kind is None:
        reader.fail(f"has the {what} of the unknown type {code}")
    num_weights = 1
    for dimension in shape:
        num_weights *= dimension
        if dimension > MAX_DIMENSION or num_weights >= 2**63:
            reader.fail(f"has the {what} of shape {shown(shape)}, which overflows")
    if (shape[-1] if shape else 1) % kind.weights:
        reader.fail(
            f"has the {what} with rows of {shape[-1] if shape else 1} weights; {kind.name} has blocks of {kind.weights}"
        )
    return kind.name, num_weights // kind.weights * kind.num_bytes


def place(reader: GGUFReader, name: str, entry: GGUFTensor, data_start: int) -> GGUFTensor:
    """The entry with its place counted from the beginning of the file, where it must lie."""
    placed = GGUFTensor(entry.kind, entry.shape, data_start + entry.start, data_start + entry.stop)
    if placed.stop > reader.size:
        reader.fail(f"is truncated: tensor {shown(name)} ends at byte {placed.stop}, and the file at {reader.size}")
    return placed


def check_overlap(reader: GGUFReader, tensors: Mapping[str, GGUFTensor]) -> None:
    end = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].stop)):
        if tensor.start < end:
            reader.fail(f"has the tensor {shown(name)} on top of another one")
        end = tensor.stop
