"""engine/quantized.py: every format stands for the matrix it says, and its products are that matrix's, in float64."""

import mlx.core as mx
import numpy as np
import pytest

from engine.quantized import (
    AFFINE_BITS,
    AFFINE_GROUPS,
    FLOAT_FORMATS,
    Mode,
    QuantizedTensor,
    check_format,
    dequantize,
    quantize,
)
from engine.refusal import Unsupported

FORMATS: list[tuple[int, int, Mode]] = [
    *((bits, group, "affine") for bits in AFFINE_BITS for group in AFFINE_GROUPS),
    *((*FLOAT_FORMATS[mode], mode) for mode in FLOAT_FORMATS),  # type: ignore[misc]
]
SHAPE = (24, 256)
FLOAT4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def matrix(shape: tuple[int, int] = SHAPE, seed: int = 0) -> mx.array:
    return mx.array(np.random.default_rng(seed).standard_normal(shape), mx.float32)


def floats(x: mx.array) -> np.ndarray:  # type: ignore[type-arg]
    return np.array(x.astype(mx.float32))


def unpacked(w: QuantizedTensor) -> np.ndarray:  # type: ignore[type-arg]
    """The small numbers of a matrix, lowest bits first, as the format's description has them."""
    rows = []
    for words in np.array(w.packed).astype("<u4"):
        bits = np.unpackbits(words.view(np.uint8), bitorder="little").reshape(-1, w.bits)
        rows.append(bits @ (1 << np.arange(w.bits)))
    return np.array(rows)


def float8(codes: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    """Sign, four bits of exponent, three of mantissa, without infinities."""
    sign, exponent, mantissa = np.where(codes & 128, -1.0, 1.0), (codes >> 3) & 15, codes & 7
    return sign * np.where(exponent == 0, mantissa / 8 * 2.0**-6, (1 + mantissa / 8) * 2.0 ** (exponent - 7.0))


def by_definition(w: QuantizedTensor) -> np.ndarray:  # type: ignore[type-arg]
    """The matrix in float64, written out by hand."""
    codes, scales = unpacked(w), np.array(w.scales)
    match w.mode:
        case "affine":
            return codes * spread(scales, w) + spread(np.array(w.biases), w)
        case "mxfp4":
            return FLOAT4[codes] * spread(2.0 ** (scales.astype(np.float64) - 127), w)
        case "mxfp8":
            return float8(codes) * spread(2.0 ** (scales.astype(np.float64) - 127), w)
        case "nvfp4":
            return FLOAT4[codes] * spread(float8(scales.astype(np.int64)), w)


def spread(per_group: np.ndarray, w: QuantizedTensor) -> np.ndarray:  # type: ignore[type-arg]
    return np.repeat(per_group.astype(np.float64), w.group_size, axis=1)


@pytest.mark.parametrize(("bits", "group_size", "mode"), FORMATS)
def test_dequantizing_gives_what_the_format_means(bits: int, group_size: int, mode: Mode) -> None:
    w = quantize(matrix(), bits, group_size, mode)
    assert w.logical_shape == SHAPE and w.T.logical_shape == SHAPE[::-1]
    np.testing.assert_allclose(floats(dequantize(w)), by_definition(w), rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(floats(dequantize(w.T)), floats(dequantize(w)).T)


@pytest.mark.parametrize(("bits", "group_size", "mode"), FORMATS)
def test_quantizing_is_off_by_a_step_at_most(bits: int, group_size: int, mode: Mode) -> None:
    x = matrix()
    w = quantize(x, bits, group_size, mode)
    error = np.abs(by_definition(w) - np.array(x, np.float64))
    if mode == "affine":
        assert (error <= spread(np.abs(np.array(w.scales)), w)).all()
    else:
        assert error.max() < {"mxfp4": 0.9, "nvfp4": 0.5, "mxfp8": 0.2}[mode]
    again = quantize(dequantize(w), bits, group_size, mode)
    if mode != "affine":
        np.testing.assert_array_equal(floats(dequantize(again)), floats(dequantize(w)))


@pytest.mark.parametrize("rows", [1, 2, 5, 33])
@pytest.mark.parametrize(("bits", "group_size", "mode"), FORMATS)
def test_products_are_those_of_the_matrix_in_float64(bits: int, group_size: int, mode: Mode, rows: int) -> None:
    square = quantize(matrix((256, 256)), bits, group_size, mode)
    exact = by_definition(square)
    x = matrix((rows, 256), seed=1)
    for product, wanted in ((x @ square.T, exact.T), (x @ square, exact)):
        wanted = np.array(x, np.float64) @ wanted
        assert product.shape == (rows, 256)
        np.testing.assert_allclose(np.array(product), wanted, atol=2e-5 * np.abs(wanted).max())


@pytest.mark.parametrize(("bits", "group_size", "mode"), FORMATS)
def test_rows_of_the_matrix_are_looked_up(bits: int, group_size: int, mode: Mode) -> None:
    w = quantize(matrix(), bits, group_size, mode)
    indices = [3, 0, 23, 3]
    np.testing.assert_array_equal(floats(w.rows(mx.array(indices))), floats(dequantize(w))[indices])


def test_a_float_matrix_multiplies_and_stays_as_it_is() -> None:
    w, x = matrix(), matrix((3, 256), seed=1)
    assert dequantize(w) is w
    np.testing.assert_allclose(np.array(x @ w.T), np.array(x) @ np.array(w).T, rtol=1e-4, atol=1e-4)


def test_a_vector_and_a_stack_multiply_like_rows() -> None:
    w, x = quantize(matrix()), matrix((6, 256), seed=1)
    rows = np.array(x @ w.T)
    np.testing.assert_allclose(np.array(x[0] @ w.T), rows[0], atol=1e-5)
    np.testing.assert_allclose(np.array(x.reshape(2, 3, 256) @ w.T), rows.reshape(2, 3, 24), atol=1e-5)


def test_bytes_are_those_of_words_scales_and_biases() -> None:
    assert quantize(matrix(), 4, 64).num_bytes == 24 * 256 // 2 + 2 * 4 * 24 * 4
    assert quantize(matrix(), 8, 32, "mxfp8").num_bytes == 24 * 256 + 24 * 8


@pytest.mark.parametrize(
    ("bits", "group_size", "mode", "sentence"),
    [
        (7, 64, "affine", "quantization has 7 bits; known are 2, 3, 4, 5, 6, 8"),
        (4, 48, "affine", "quantization has groups of 48; known are 32, 64, 128"),
        (4, 64, "mxfp4", "mxfp4 has 4 bits in groups of 32; got 4 in 64"),
        (4, 64, "int4", "quantization mode is 'int4'; known are affine"),
    ],
)
def test_formats_that_no_kernel_knows_are_refused(bits: int, group_size: int, mode: str, sentence: str) -> None:
    with pytest.raises(Unsupported) as caught:
        check_format(bits, group_size, mode)
    assert sentence in caught.value.message


def test_a_matrix_that_does_not_divide_into_groups_is_refused() -> None:
    with pytest.raises(Unsupported, match=r"shape \(4, 40\) does not divide into groups of 64"):
        quantize(matrix((4, 40)))
