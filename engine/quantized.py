"""QuantizedTensor: a matrix kept in a few bits a weight, that multiplies like any other.

`x @ w.T` and `x @ w` take the quantized kernel, so a model's code never asks which kind of weight it holds.
It is an `mx.array` (of packed words) for one reason: Python asks the right operand first only if its
type extends the left one's, and `mx.array` refuses strangers on its right instead of deferring to them.
"""

from typing import Literal, get_args

import mlx.core as mx

from engine.refusal import Unsupported

Mode = Literal["affine", "mxfp4", "mxfp8", "nvfp4"]
AFFINE_BITS = (2, 3, 4, 5, 6, 8)
AFFINE_GROUPS = (32, 64, 128)
FLOAT_FORMATS: dict[str, tuple[int, int]] = {"mxfp4": (4, 32), "mxfp8": (8, 32), "nvfp4": (4, 16)}  # (bits, group)


class QuantizedTensor(mx.array):
    """A matrix of shape (out, in) as packed words, with a scale (and, if affine, a bias) for each group of a row."""

    scales: mx.array  # (out, in / group_size)
    biases: mx.array | None
    bits: int
    group_size: int
    mode: Mode

    def __init__(
        self,
        packed: mx.array,
        scales: mx.array,
        biases: mx.array | None,
        *,
        bits: int,
        group_size: int,
        mode: Mode = "affine",
    ) -> None:
        super().__init__(mx.zeros(packed.shape, packed.dtype))  # lazy, and never computed, for the next line
        self[...] = packed  # takes the words over; `super().__init__(packed)` would copy them
        check_format(bits, group_size, mode)
        self.scales, self.biases = scales, biases
        self.bits, self.group_size, self.mode = bits, group_size, mode

    @property
    def packed(self) -> mx.array:
        """The words themselves, uint32, as the checkpoint stores them."""
        return self

    @property
    def logical_shape(self) -> tuple[int, int]:
        """The shape of the matrix it stands for."""
        rows, words = self.shape
        columns = words * 32 // self.bits
        return rows, columns

    @property
    def num_bytes(self) -> int:
        return self.nbytes + self.scales.nbytes + (0 if self.biases is None else self.biases.nbytes)

    @property
    def T(self) -> "Transposed":
        return Transposed(self)

    def __rmatmul__(self, x: mx.array) -> mx.array:
        return self.product(x, transpose=False)

    def product(self, x: mx.array, *, transpose: bool) -> mx.array:
        return mx.quantized_matmul(
            x,
            self,
            self.scales,
            self.biases,
            transpose=transpose,
            group_size=self.group_size,
            bits=self.bits,
            mode=self.mode,
        )

    def rows(self, indices: mx.array) -> mx.array:
        """Some rows of the matrix, dequantized: what an embedding looks up."""
        biases = None if self.biases is None else self.biases[indices]
        return mx.dequantize(
            mx.take(self, indices, axis=0),
            self.scales[indices],
            biases,
            group_size=self.group_size,
            bits=self.bits,
            mode=self.mode,
        )


class Transposed(mx.array):
    """A quantized matrix read the other way round: what `w.T` is. As an array it is empty; it costs nothing to make."""

    def __init__(self, of: QuantizedTensor) -> None:
        super().__init__(0)
        self.of = of

    @property
    def logical_shape(self) -> tuple[int, int]:
        rows, columns = self.of.logical_shape
        return columns, rows

    @property
    def T(self) -> QuantizedTensor:
        return self.of

    def __rmatmul__(self, x: mx.array) -> mx.array:
        return self.of.product(x, transpose=True)


def check_format(bits: int, group_size: int, mode: str) -> None:
    """Refuse what no kernel knows."""
    if mode == "affine":
        if bits not in AFFINE_BITS:
            raise Unsupported(f"quantization has {bits!r} bits; known are {', '.join(map(str, AFFINE_BITS))}", "bits")
        if group_size not in AFFINE_GROUPS:
            known = ", ".join(map(str, AFFINE_GROUPS))
            raise Unsupported(f"quantization has groups of {group_size!r}; known are {known}", "group_size")
    elif mode not in FLOAT_FORMATS:
        raise Unsupported(f"quantization mode is {mode!r}; known are {', '.join(get_args(Mode))}", "mode")
    elif (bits, group_size) != FLOAT_FORMATS[mode]:
        want_bits, want_group = FLOAT_FORMATS[mode]
        raise Unsupported(
            f"{mode} has {want_bits} bits in groups of {want_group}; got {bits!r} in {group_size!r}", "mode"
        )


def quantize(w: mx.array, bits: int = 4, group_size: int = 64, mode: Mode = "affine") -> QuantizedTensor:
    """The nearest matrix that fits in `bits` a weight."""
    check_format(bits, group_size, mode)
    if w.ndim != 2 or w.shape[1] % group_size:
        raise Unsupported(
            f"a matrix of shape {tuple(w.shape)} does not divide into groups of {group_size}", "group_size"
        )
    parts = mx.quantize(w, group_size=group_size, bits=bits, mode=mode)
    packed, scales, biases = parts if len(parts) == 3 else (*parts, None)
    return QuantizedTensor(packed, scales, biases, bits=bits, group_size=group_size, mode=mode)


def dequantize(w: mx.array) -> mx.array:
    """The matrix in floats; a float matrix is itself."""
    if isinstance(w, Transposed):
        return dequantize(w.of).T
    if not isinstance(w, QuantizedTensor):
        return w
    return mx.dequantize(w, w.scales, w.biases, group_size=w.group_size, bits=w.bits, mode=w.mode)
