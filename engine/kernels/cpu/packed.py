"""PackedTensor: a matrix in the form that the CPU kernels read, that multiplies like any other."""

from typing import Self

import mlx.core as mx

from engine.kernels.cpu import _native
from engine.quantized import QuantizedTensor

FLOATS = (mx.float32, mx.float16, mx.bfloat16)


class PackedTensor(mx.array):
    """A weight held by the extension. As an array it is empty; it is one so that `x @ w.T` asks it first."""

    matrix: _native.PackedMatrix
    is_transposed: bool

    def __init__(self, matrix: _native.PackedMatrix, is_transposed: bool = False) -> None:
        super().__init__(0)
        self.matrix = matrix
        self.is_transposed = is_transposed

    @property
    def logical_shape(self) -> tuple[int, int]:
        """The shape of the matrix it stands for."""
        rows, columns = self.matrix.shape
        return (columns, rows) if self.is_transposed else (rows, columns)

    @property
    def num_bytes(self) -> int:
        return self.matrix.num_bytes

    @property
    def T(self) -> Self:
        return type(self)(self.matrix, not self.is_transposed)

    def __rmatmul__(self, x: mx.array) -> mx.array:
        product = _native.multiply if self.is_transposed else _native.multiply_back
        return product(x, self.matrix).astype(x.dtype)

    def rows(self, indices: mx.array) -> mx.array:
        """Some rows of the matrix, in float32."""
        return _native.look_up(self.matrix, indices)


def is_packable(w: mx.array) -> bool:
    """Whether the extension knows this format."""
    if isinstance(w, QuantizedTensor):
        return w.mode == "affine" and w.biases is not None
    return w.ndim == 2 and w.dtype in FLOATS


def pack(w: mx.array) -> PackedTensor:
    """The same matrix, packed; the scales keep their type, so that not a byte more is read."""
    if not isinstance(w, QuantizedTensor):
        return PackedTensor(_native.pack_floats(w))
    assert w.biases is not None
    return PackedTensor(_native.pack_quantized(w, w.scales, w.biases.astype(w.scales.dtype), w.bits, w.group_size))


def forget(w: mx.array) -> None:
    """Let go of a tensor's memory, whoever still holds the tensor."""
    parts = [w, w.scales, w.biases] if isinstance(w, QuantizedTensor) else [w]
    for part in parts:
        if part is not None:
            _native.forget(part)
