"""ggml's blocks -> MLX's words, scales and biases, with the same values: nothing is dequantized. Knows no file.

A block of 32 is a group of 32: `w = d * q + m` in Q4_1, `d * (q - 8)` in Q4_0, `d * q` with a signed q in Q8_0. Only
the order of the nibbles differs: ggml has weight j beside weight j + 16, MLX has weight 2j beside weight 2j + 1.
Everything is done in NumPy: MLX would compute with float16 in software on a CPU.
"""

from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from engine.quantized import QuantizedTensor
from engine.refusal import BrokenFile, Unsupported
from loaders.ggml_types import GGML_TYPES
from loaders.mapped_file import own

Bytes = NDArray[np.uint8]
Halfs = NDArray[np.float16]

GROUP = 32
CHUNK_BYTES = 1 << 20
FLOATS: dict[str, tuple[type[np.generic], mx.Dtype]] = {
    "F32": (np.float32, mx.float32),
    "F16": (np.float16, mx.float16),
    "BF16": (np.uint16, mx.bfloat16),  # the bits: NumPy has no such type
}
NUM_BYTES = {kind.name: kind.num_bytes for kind in GGML_TYPES.values()}
READABLE = (*FLOATS, "Q8_0", "Q4_0", "Q4_1")


def floats(content: Bytes, kind: str, shape: tuple[int, ...]) -> mx.array:
    """A tensor of plain numbers, in the type it is stored in."""
    numpy_type, dtype = FLOATS[kind]
    return own(content.view(numpy_type), shape, dtype)


def matrix(rows: Bytes, kind: str, name: str) -> mx.array:
    """A matrix of any readable type from the bytes of its rows, (out, bytes a row)."""
    if kind in FLOATS:
        numpy_type, dtype = FLOATS[kind]
        values = np.ascontiguousarray(rows).view(numpy_type)
        return own(values, values.shape, dtype)
    if kind not in READABLE:
        raise Unsupported(f"tensor {name!r} has the type {kind}; readable are {', '.join(READABLE)}", "type")
    bits = 8 if kind == "Q8_0" else 4
    num_groups = rows.shape[1] // NUM_BYTES[kind]
    packed = np.empty((len(rows), num_groups * bits), np.uint32)
    scales, biases = np.empty((2, len(rows), num_groups), np.float16)
    step = max(1, CHUNK_BYTES // rows.shape[1])  # what is in between then stays small, and in the processor's cache
    for start in range(0, len(rows), step):
        some = slice(start, start + step)
        blocks = rows[some].reshape(-1, num_groups, NUM_BYTES[kind])  # (out, groups, bytes a block)
        words, scales[some], biases[some] = repack(blocks, kind)
        packed[some] = words.reshape(len(words), -1).view(np.uint32)
    if not (np.isfinite(scales).all() and np.isfinite(biases).all()):
        raise BrokenFile(f"tensor {name!r} has a block whose scale is not a finite number")
    return QuantizedTensor(mx.array(packed), mx.array(scales), mx.array(biases), bits=bits, group_size=GROUP)


def repack(blocks: Bytes, kind: str) -> tuple[Bytes, Halfs, Halfs]:
    """Blocks -> (out, groups, bytes of words), scales and biases (out, groups)."""
    scales = halfs(blocks[..., :2])
    match kind:
        case "Q4_1":
            return pair_neighbours(blocks[..., 4:]), scales, halfs(blocks[..., 2:4])
        case "Q4_0":
            return pair_neighbours(blocks[..., 2:]), scales, times(scales, -8)
        case "Q8_0":
            return blocks[..., 2:] ^ np.uint8(0x80), scales, times(scales, -128)  # q + 128, which has no sign
    raise KeyError(kind)


def halfs(content: Bytes) -> Halfs:
    """The one float16 at a block's place, of every block: (out, groups)."""
    values: Halfs = np.ascontiguousarray(content).view(np.float16)[..., 0]
    return values


def times(scales: Halfs, factor: int) -> Halfs:
    """A power of two times float16 loses nothing, short of an overflow, which the caller finds."""
    with np.errstate(over="ignore", invalid="ignore"):
        return (scales.astype(np.float32) * factor).astype(np.float16)


def pair_neighbours(nibbles: Bytes) -> Bytes:
    """(..., 16) bytes of weights j and j + 16 -> (..., 16) bytes of weights 2j and 2j + 1, the first one low."""
    pairs = np.ascontiguousarray(nibbles).view(np.uint16)  # weights 2j, 2j + 16, 2j + 1, 2j + 17 from the low bits up
    paired: NDArray[Any] = np.empty(nibbles.shape, np.uint8)
    half = pairs.shape[-1]
    paired[..., :half] = (pairs & 0x0F) | (pairs >> 4 & 0xF0)
    paired[..., half:] = (pairs >> 4 & 0x0F) | (pairs >> 8 & 0xF0)
    return paired
